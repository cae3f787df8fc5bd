"""Which example is which, and whether it is still what the teacher saw."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import CacheError, SignalError, unknown_name
from .identity import Header

_DECODER = "decoder_"
_PLACES = 32  # bits for the places along one axis
_MULTIPLIER = 0x9E3779B1  # odd, with no pattern in its bits: Knuth's golden ratio
_AT_ONCE = 1 << 17  # elements: ten times as fast on a CPU as all images of a batch together


def keys_of(batch: Mapping[str, Any], entries: Sequence[str]) -> list[str]:
    """The keys of a batch's examples, as JSON.

    Raises:
        SignalError: an entry that is missing, or that is not one number or text for each example.
    """
    columns = [_column(batch, entry) for entry in entries]
    if len({len(column) for column in columns}) > 1:
        raise SignalError(
            f"the entries {', '.join(map(repr, entries))} say which example is which, and are of "
            f"{', '.join(str(len(column)) for column in columns)} examples"
        )
    rows = zip(*columns, strict=True)
    return [json.dumps(row[0] if len(row) == 1 else list(row)) for row in rows]


def key_of(given: Any) -> str:
    """One example's key, as JSON; a tuple where several entries tell examples apart.

    Raises:
        SignalError: neither whole numbers nor texts.
    """
    several = isinstance(given, (tuple, list))
    parts = given if several else [given]
    plain = [one.item() if hasattr(one, "item") else one for one in parts]
    names = [f"key {i}" for i in range(len(plain))] if several else ["key"]
    return keys_of({name: [one] for name, one in zip(names, plain, strict=True)}, names)[0]


def _column(batch: Mapping[str, Any], entry: str) -> list[Any]:
    if entry not in batch:
        error = unknown_name("batch entry", entry, batch)
        raise SignalError(
            f"the signal cache finds examples by the entry {entry!r}: {error}. Let the data set "
            'return a number or text of its own for each example, or name yours: key="question_id"'
        )
    value = batch[entry]
    if isinstance(value, Tensor):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = value.tolist() if hasattr(value, "tolist") else None
    if value is None or any(not isinstance(one, (int, str)) for one in value):
        raise SignalError(
            f"the entry {entry!r} is a whole number or a text for each example; got "
            f"{type(batch[entry]).__name__} {getattr(batch[entry], 'shape', '')}"
        )
    return list(value)


def comparable(batch: Mapping[str, Any], names: Iterable[str], examples: int) -> tuple[str, ...]:
    """The entries that have something for each example, so that each has a fingerprint."""
    return tuple(
        name
        for name in sorted(names)
        if isinstance(batch.get(name), Tensor)
        and batch[name].ndim > 0
        and batch[name].shape[0] == examples
    )


def fingerprints(
    batch: Mapping[str, Any], names: Iterable[str], read: Iterable[str]
) -> dict[str, list[int]]:
    """A number for each example of each entry, which changes when any element of it does.

    Padding changes nothing: neither zeros at the end of an axis, nor any token that its mask leaves
    out, at either end. The same numbers on another device have the same fingerprint.

    Args:
        batch: the teacher's view of a batch.
        names: the entries.
        read: what the teacher reads: other masks may leave out what it sees.
    """
    masks = {
        name: batch[name]
        for name in read
        if name.endswith("mask") and isinstance(batch.get(name), Tensor) and batch[name].ndim == 2
    }
    found = {}
    for name in names:
        x = batch[name].detach()
        mask = None if x.is_floating_point() else _mask_of(name, masks)
        if mask is not None and mask.shape != x.shape:
            mask = None
        found[name] = _fingerprints(x, mask).tolist()
    return found


def _fingerprints(x: Tensor, mask: Tensor | None) -> Tensor:
    """``(b,)``; a few examples at a time, so that what is computed on the way stays in a cache."""
    if mask is not None or x.device.type != "cpu" or x.numel() <= _AT_ONCE:
        return _fingerprint(x, mask)
    examples = max(1, _AT_ONCE * len(x) // x.numel())
    return torch.cat([_fingerprint(some, None) for some in torch.split(x, examples)])


def entries_read(used: Iterable[str]) -> tuple[str, ...]:
    """The entries that a teacher read, by the names that it sees them under."""
    return tuple(sorted({name.removeprefix("teacher_") for name in used}))


def check_read(used: Iterable[str], known: Sequence[str]) -> None:
    """Refuse a batch of which the teacher reads what no fingerprint would be compared of.

    Raises:
        CacheError: the entries.
    """
    others = sorted(set(entries_read(used)) - set(known))
    if others:
        raise CacheError(
            f"the teacher reads {', '.join(map(repr, others))} of this batch, and read "
            f"{', '.join(map(repr, known))} when the cache was begun: bring the same entries in "
            "every batch, or fill another cache"
        )


def seen(batch: Mapping[str, Any], header: Header, examples: int) -> dict[str, list[int]]:
    """The fingerprints of what the teacher sees of each example, entry by entry.

    Raises:
        CacheError: entries that were there when the cache was begun and are not here.
    """
    compared = header.compared
    lacking = sorted(set(compared) - set(comparable(batch, compared, examples)))
    if lacking:
        raise CacheError(
            f"the teacher saw {', '.join(map(repr, compared))} of each example when the cache was "
            f"begun, and of {', '.join(map(repr, lacking))} this batch has nothing for each of its "
            f"{examples} examples: bring the same entries, or fill another cache"
        )
    return fingerprints(batch, compared, header.inputs)


def _mask_of(entry: str, masks: Mapping[str, Tensor]) -> Tensor | None:
    """An entry's mask, by its name: two of one shape are of one shape by chance.

    ``decoder_input_ids`` has ``decoder_attention_mask``, and not ``attention_mask``.
    """
    stems = {name.removesuffix("mask").removesuffix("attention_"): name for name in masks}
    fitting = [stem for stem in stems if entry.startswith(stem)]
    if entry.startswith(_DECODER):
        fitting = [stem for stem in fitting if stem.startswith(_DECODER)]
    elif not fitting and len(masks) == 1:
        fitting = list(stems)
    return masks[stems[max(fitting, key=len)]] if fitting else None


def _fingerprint(x: Tensor, mask: Tensor | None) -> Tensor:
    """``(b,)``, int64: the elements' bits times weights of their places, summed modulo 2^64.

    The weight of a place is a product of one for each axis, so that zeros behind the last element
    of an axis add nothing.
    """
    bits = _bits(x)
    if mask is not None:
        # each token's place among those that count, wherever padding is
        place = (mask != 0).long().cumsum(-1)
        weights = _weights_of(place - 1, bits.dtype)
        return torch.where(mask != 0, bits * weights + weights, 0).sum(-1, dtype=torch.int64)
    if bits.ndim == 1:
        return bits.long()
    while bits.ndim > 1:
        # every axis has weights of its own, or rows and columns could change places
        places = torch.arange(bits.shape[-1], device=bits.device) + (bits.ndim << _PLACES)
        bits = (bits * _weights_of(places, bits.dtype)).sum(-1, dtype=torch.int64)
    return bits


def _bits(x: Tensor) -> Tensor:
    """The elements as integers: those of floating point numbers by their bits.

    Round numbers have zeros in their lower bits, which no weight would bring back: two of them
    could change places unseen. So the upper bits are added to the lower ones.
    """
    if x.is_complex():
        x = torch.view_as_real(x)
    if not x.is_floating_point():
        return _narrow(x)
    if x.dtype.itemsize == 8:
        bits = x.contiguous().view(torch.int64)
        return bits ^ ((bits >> 32) & 0xFFFFFFFF)
    if x.dtype.itemsize == 4:
        bits = x.contiguous().view(torch.int32)
        return bits ^ ((bits >> 16) & 0xFFFF)
    return (
        x.contiguous().view(torch.int16 if x.dtype.itemsize == 2 else torch.uint8).to(torch.int32)
    )


def _narrow(x: Tensor) -> Tensor:
    """Whole numbers in 32 bits, of any width the same; what does not fit is folded in."""
    low = x.to(torch.int32)
    if x.dtype.itemsize < 8:
        return low
    high = (x.to(torch.int64) - low) >> 32
    return low ^ (high * _MULTIPLIER).to(torch.int32)


def _weights_of(places: Tensor, dtype: torch.dtype) -> Tensor:
    """An odd number for each place, spread over all bits."""
    mixed = (places.long() + 1) * _MULTIPLIER
    mixed = ((mixed >> 13) ^ mixed) * 0x85EBCA6B
    mixed = (mixed ^ (mixed >> 16)) | 1
    if dtype == torch.int64:
        return mixed
    # the lower 32 bits as a signed number
    return (((mixed & 0xFFFFFFFF) + 0x80000000) % 0x100000000 - 0x80000000).to(torch.int32)


def check_inputs(
    keys: Sequence[str],
    stored: Mapping[str, Sequence[int]],
    found: Mapping[str, Sequence[int]],
    *,
    filling: bool = False,
) -> None:
    """Refuse examples that are not what the teacher saw.

    Raises:
        CacheError: the entry, the first examples, and what it may come from.
    """
    for entry, numbers in found.items():
        wrong = [key for key, a, b in zip(keys, numbers, stored[entry], strict=True) if a != b]
        if wrong:
            shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            where = f"in {len(wrong)} of {len(keys)} examples ({shown})"
            said = _BEFORE if filling else _OTHER
            raise CacheError(said.format(entry, where))


_SEED = (
    "If it is augmented at random, give each view a seed that is part of the key, "
    'fill(..., key=("id", "seed")); if the preprocessing changed, fill another cache'
)
_BEFORE = (
    "{0!r} is not what it was when an example of the same key was stored, {1}. If several examples "
    'share an id, name what tells them apart, fill(..., key=("image_id", "question_id")). ' + _SEED
)
_OTHER = (
    "{0!r} is not what the teacher saw, {1}. " + _SEED + "; if it is meant for the student alone, "
    "call it 'student_{0}'; to compare no inputs, say so: SignalCache(..., inputs=())"
)
