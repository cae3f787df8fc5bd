"""How a tensor's numbers are written: as they are, or in fewer bytes with a measured error.

A coding turns one tensor into parts, each with the same leading axes, so that some of a batch's
tokens can be stored and put back among others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError, did_you_mean

Parts = dict[str, Tensor]

_LOWEST = 16.0  # in nats: what is less probable than exp(-16) is written as that
_STEPS = 254  # of log-probabilities in a byte; the value above them is -inf
_TOP = "top_k:"
_AT_ONCE = 1 << 16  # elements whose error is computed together


class Coding(NamedTuple):
    """One way to write a tensor.

    Attributes:
        encode: tensor -> its parts, by name; the first is ``""``.
        decode: the parts, the dtype and the last size of the tensor -> the tensor.
        absent: part -> what stands where there is no token.
    """

    encode: Callable[[Tensor], Parts]
    decode: Callable[[Parts, torch.dtype, int], Tensor]
    absent: Callable[[float], Mapping[str, float]]


def coding(name: str) -> Coding:
    """A coding by its name.

    Raises:
        OptionError: no such coding.
    """
    if name.startswith(_TOP) and name.removeprefix(_TOP).isdecimal():
        return _top_k(int(name.removeprefix(_TOP)))
    if name not in _CODINGS:
        raise OptionError(f"no coding is called {name!r}; {did_you_mean(name, _CODINGS)}")
    return _CODINGS[name]


def log_probabilities_error(given: Tensor, decoded: Tensor, temperature: float = 1.0) -> float:
    """The mean KL(given || decoded) of log-probabilities, over rows that have any, in nats."""
    # some at a time: what is computed on the way is large, and stays in the processor's cache
    count = max(1, _AT_ONCE * len(given) // max(1, given.numel()))
    pairs = zip(torch.split(given, count), torch.split(decoded, count), strict=True)
    return _mean(torch.cat([_divergences(p, q, temperature) for p, q in pairs]))


def _divergences(given: Tensor, decoded: Tensor, temperature: float) -> Tensor:
    """Of each row that has a probability, flat."""
    rows = (given > -torch.inf).any(-1)
    p, q = (x[rows].double() / temperature for x in (given, decoded))
    p = p.log_softmax(-1)
    kept = p > -torch.inf
    q = torch.where(kept, q, -torch.inf).log_softmax(-1)
    values = torch.where(kept, p.exp() * (torch.where(kept, p, 0) - torch.where(kept, q, 0)), 0)
    return values.sum(-1)


def logits_error(given: Tensor, decoded: Tensor, temperature: float = 1.0) -> float:
    """The mean KL of the softmax of logits, in nats."""
    one, other = (x.double().log_softmax(-1) for x in (given, decoded))
    return log_probabilities_error(one, other, temperature)


def relative_error(given: Tensor, decoded: Tensor) -> float:
    """The root mean square of the difference, as a part of that of what was given."""
    given, decoded = given.double(), decoded.double()
    size = given.square().mean() if given.numel() else given.new_zeros(())
    difference = (given - decoded).square().mean() if given.numel() else size
    return 0.0 if difference == 0 else float((difference / size).sqrt())


def _mean(values: Tensor) -> float:
    """NaN counts as infinite: what cannot be measured is not within any bound."""
    if not values.numel():
        return 0.0
    mean = float(values.mean())
    return mean if mean == mean else float("inf")


def _exact() -> Coding:
    return Coding(lambda x: {"": x}, lambda parts, dtype, _: parts[""].to(dtype), _one)


def _cast(dtype: torch.dtype) -> Coding:
    return Coding(lambda x: {"": x.to(dtype)}, lambda parts, wide, _: parts[""].to(wide), _one)


def _int8() -> Coding:
    """Each row (the last axis) in 255 equal steps about zero."""

    def encode(x: Tensor) -> Parts:
        scale = x.float().abs().amax(-1) / 127
        steps = x.float() / torch.where(scale > 0, scale, 1)[..., None]
        # of the smallest numbers that there are the scale is rounded, and steps may be more
        return {"": steps.round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(parts: Parts, dtype: torch.dtype, _: int) -> Tensor:
        return (parts[""].float() * parts["scale"][..., None]).to(dtype)

    return Coding(encode, decode, lambda _: {"": 0, "scale": 0})


def _uint8() -> Coding:
    """Log-probabilities from -16 to 0 in equal steps; -inf has a number of its own."""

    def encode(x: Tensor) -> Parts:
        steps = (x.float().clamp(-_LOWEST, 0) * (-_STEPS / _LOWEST)).round()
        return {"": torch.where(x > -torch.inf, steps, _STEPS + 1).to(torch.uint8)}

    def decode(parts: Parts, dtype: torch.dtype, _: int) -> Tensor:
        steps = parts[""]
        log_p = steps.to(dtype) * (-_LOWEST / _STEPS)
        return torch.where(steps > _STEPS, -torch.inf, log_p)

    return Coding(encode, decode, lambda _: {"": _STEPS + 1})


def _top_k(k: int) -> Coding:
    """The k most probable classes, and how probable all others are together.

    In what is read, the others share their part equally: it adds up to 1, and no class of the
    teacher becomes impossible.
    """

    def encode(x: Tensor) -> Parts:
        classes = x.shape[-1]
        if not 1 <= k < classes:
            raise OptionError(f"top_k:{k} stores fewer classes than there are, which is {classes}")
        log_p = x.float().log_softmax(-1)
        values, indices = log_p.topk(k, -1)
        others = torch.full_like(log_p, -torch.inf).copy_(log_p).scatter(-1, indices, -torch.inf)
        small = torch.int16 if classes <= torch.iinfo(torch.int16).max else torch.int32
        return {"": values, "index": indices.to(small), "rest": others.logsumexp(-1)}

    def decode(parts: Parts, dtype: torch.dtype, classes: int) -> Tensor:
        others = parts["rest"].float() - torch.tensor(float(classes - k)).log()
        logits = others[..., None].expand(*others.shape, classes)
        return logits.scatter(-1, parts["index"].long(), parts[""].float()).to(dtype)

    def absent(_: float) -> Mapping[str, float]:
        return {"": 0, "index": 0, "rest": 0}

    return Coding(encode, decode, absent)


def _one(nothing: float) -> Mapping[str, float]:
    return {"": nothing}


_CODINGS = {
    "exact": _exact(),
    "float16": _cast(torch.float16),
    "bfloat16": _cast(torch.bfloat16),
    "int8": _int8(),
    "uint8": _uint8(),
}
