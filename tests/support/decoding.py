"""A page's maps read back as its script reads them, one number after another."""

from __future__ import annotations

import bisect
import itertools
import zlib

import numpy as np

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%,()*+-;.=:?@^_`{|}~"


def bytes_of(text):
    found = bytearray()
    for group in (text[i : i + 5] for i in range(0, len(text), 5)):
        number = 0
        for digit in [*map(ALPHABET.index, group), *[84] * (5 - len(group))]:
            number = 85 * number + digit
        found += number.to_bytes(4, "big")[: len(group) - 1]
    return bytes(found)


def planes(data):
    upper, lower = np.frombuffer(data, np.uint8).reshape(2, -1).astype(np.uint16)
    return upper << 8 | lower


def read(facts, blocks, index):
    """Numbers ``(b, h, q, k)``, rows that count, divergences, rows that are compared."""
    levels = facts["levels"]
    codes, exponents, states, kl, compared = _codes(facts, blocks, index)
    root = (np.sqrt(1 + 8 * codes / levels) - 1) / 2
    numbers = np.exp2(exponents[..., None] / (-2.0 * levels)) * root**2
    numbers[states & 2 != 0] = np.nan
    return np.where(states[..., None] == 0, 0, numbers), states & 1 != 0, kl, compared


def _codes(facts, blocks, index):
    layer, n = facts["layers"][index], facts["layers"][index]["divergences"]
    b, h, q, k = layer["shape"]
    data = bytes_of(blocks[index])
    length = int.from_bytes(data[:4], "little")
    side = zlib.decompress(data[4 : 4 + length])
    sizes = [2 * b * h * q, b * h * q, 2 * b * n * q, b * n * q, b * h, 4 * b * h]
    cuts = np.cumsum([0, *sizes])
    assert cuts[-1] == len(side)
    parts = [side[start:stop] for start, stop in itertools.pairwise(cuts)]
    exponents, states = planes(parts[0]), np.frombuffer(parts[1], np.uint8)
    kl = (planes(parts[2]).astype(np.uint32) << 16).view(np.float32).reshape(b, n, q)
    compared = np.frombuffer(parts[3], np.uint8).reshape(b, n, q).astype(bool)
    lengths = np.frombuffer(parts[5], "<u4")
    words = np.frombuffer(data[4 + length :], "<u2").tolist()
    assert sum(lengths) == len(words)
    other = None
    if layer["reference"] is not None:
        other = _codes(facts, blocks, layer["reference"])[0].reshape(b * h, q, k)
    model, codes = facts["models"][layer["model"]], np.zeros((b * h, q, k), int)
    ends = np.cumsum(lengths)
    for one in range(b * h):
        told = np.flatnonzero(states.reshape(b * h, q)[one] == 1)
        stream = words[ends[one] - lengths[one] : ends[one]]
        referred = None if other is None else other[one, told]
        codes[one, told] = _map(model, model["classes"][parts[4][one]], stream, (len(told), k), referred, facts["levels"])  # fmt: skip
    shape = (b, h, q)
    return codes.reshape(b, h, q, k), exponents.reshape(shape), states.reshape(shape), kl, compared


def _map(model, own, stream, shape, other, levels):
    found = np.zeros(shape, int)
    if not stream:
        return found
    often = planes(zlib.decompress(bytes_of(own["frequencies"]))).reshape(-1, levels + 1).tolist()
    state, *rest = (stream[0] << 16) + stream[1], *stream[2:]
    rest = iter(rest)
    for row, key in itertools.product(*map(range, shape)):
        near = [(found, at) for at in model["own"]] + [(other, at) for at in model["other"]]
        said = own["weights"][-1]
        for weight, (of, (up, left)) in zip(own["weights"], near, strict=False):
            if row >= up and key >= left:
                said += weight * int(of[row - up, key - left])
        context = often[bisect.bisect_right(own["bounds"], min(1023, max(0, said >> 4)))]
        slot, before = state & 4095, [0, *itertools.accumulate(context)]
        code = bisect.bisect_right(before, slot) - 1
        state = context[code] * (state >> 12) + slot - before[code]
        if state < 1 << 16:
            state = (state << 16) + next(rest)
        found[row, key] = code
    assert next(rest, None) is None
    assert state == 1 << 16
    return found
