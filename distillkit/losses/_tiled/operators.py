"""The loops over tiles as operators, of which a compiler and a fake tensor see the shapes alone.

An operator takes tensors, numbers and text, so a comparison is packed into these and unpacked
under its names again. Attention and logits share the operators; the loop that runs is told from
the number of axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import attention, logits
from .comparison import (
    NONE_WANTED,
    Forward,
    Gradients,
    Keep,
    Kind,
    Leaves,
    Pair,
    Side,
    Sides,
    Wanted,
)


class Tensors(NamedTuple):
    """All tensors of a :class:`Pair`; those that may ask for a gradient come first."""

    student_query: Any
    student_key: Any
    student_bias: Any
    teacher_query: Any
    teacher_key: Any
    teacher_bias: Any
    student_mask: Any
    teacher_mask: Any
    rows: Any
    keys: Any


LEAVES = 6  # of the tensors may ask for a gradient: half of them the student's


class Numbers(NamedTuple):
    """The numbers of a :class:`Pair`."""

    temperature: float
    beta: float
    student_scale: float
    teacher_scale: float
    student_softcap: float
    teacher_softcap: float


class Flags(NamedTuple):
    """The flags of a :class:`Pair`."""

    student_causal: bool
    teacher_causal: bool
    mean: bool


class Settings(NamedTuple):
    """Everything of a call that is no tensor, in types that an operator's schema has.

    Attributes:
        numbers: as :class:`Numbers`.
        flags: as :class:`Flags`.
        wanted: for each leaf of :class:`Tensors`, whether its gradient is asked for.
        kind: the divergence.
        keep: what the forward keeps for the backward.
    """

    numbers: Sequence[float]
    flags: Sequence[bool]
    wanted: Sequence[bool]
    kind: Any
    keep: Any


class Loop(Protocol):
    """A loop over tiles: the modules ``attention`` and ``logits``."""

    NO_SECOND_DERIVATIVE: str

    def forward(self, pair: Pair, wanted: Wanted, keep: Keep) -> Forward: ...

    def backward(
        self,
        upstream: Tensor,
        pair: Pair,
        wanted: Wanted,
        maps: Sides[Tensor] | None = None,
        into: Gradients | None = None,
    ) -> Sides[Gradients]: ...

    def scale_guess(self, upstream: Tensor, pair: Pair, guess: Gradients) -> Leaves[bool]: ...


def pack_tensors(pair: Pair) -> Tensors:
    """The tensors of a comparison, as the operators take them."""
    student, teacher = pair.sides
    masks = student.mask, teacher.mask
    return Tensors(*student.leaves, *teacher.leaves, *masks, pair.rows, pair.keys)


def pack_settings(pair: Pair, wanted: Sequence[bool], keep: Keep) -> Settings:
    """Everything else of a comparison, as the operators take it."""
    student, teacher = pair.sides
    numbers = Numbers(
        temperature=student.temperature,
        beta=pair.kind.beta,
        student_scale=student.scale,
        teacher_scale=teacher.scale,
        student_softcap=student.softcap,
        teacher_softcap=teacher.softcap,
    )
    flags = Flags(student.causal, teacher.causal, pair.mean)
    return Settings(tuple(numbers), tuple(flags), tuple(wanted), pair.kind.name, keep)


def by_side(leaves: Sequence[Any]) -> Sides[Leaves[Any]]:
    """Leaves in the order of :class:`Tensors`, under the names of their sides."""
    half = LEAVES // 2
    return Sides(Leaves(*leaves[:half]), Leaves(*leaves[half:]))


def _unpack(tensors: Sequence[Any], settings: Sequence[Any]) -> tuple[Pair, Wanted]:
    """What an operator was given, under its names again."""
    x, given = Tensors(*tensors), Settings(*settings)
    numbers, flags = Numbers(*given.numbers), Flags(*given.flags)
    student = Side(
        x.student_query, x.student_key, x.student_bias, x.student_mask, numbers.temperature,
        numbers.student_scale, numbers.student_softcap, flags.student_causal,
    )  # fmt: skip
    teacher = Side(
        x.teacher_query, x.teacher_key, x.teacher_bias, x.teacher_mask, numbers.temperature,
        numbers.teacher_scale, numbers.teacher_softcap, flags.teacher_causal,
    )  # fmt: skip
    kind = Kind(given.kind, numbers.beta)
    return Pair(student, teacher, x.rows, kind, x.keys, flags.mean), by_side(given.wanted)


def loop_for(query: Tensor) -> Loop:
    """The loop over tiles: attentions have axes of examples and heads, logits have not."""
    if query.ndim == 4:
        return attention
    return logits


def _or_empty(found: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Empty tensors in place of None: an operator returns tensors only."""
    return [like.new_empty(0) if x is None else x for x in found]


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


_INPUTS = "Tensor?[] tensors"
_SETTINGS = "float[] numbers, bool[] flags, bool[] wanted, str kind, str keep"


@torch.library.custom_op(
    "distillkit::tiled_divergence", mutates_args=(), schema=f"({_INPUTS}, {_SETTINGS}) -> Tensor[]"
)
def run_forward(tensors: Sequence[Any], *settings: Any) -> list[Tensor]:
    """The value, both maps, and the guessed gradients of the student's leaves."""
    pair, wanted = _unpack(tensors, settings)
    with _full_precision(pair.student.query):
        made = loop_for(pair.student.query).forward(pair, wanted, Settings(*settings).keep)
    return [made.value, *made.maps, *_or_empty(made.guess, made.value)]


@run_forward.register_fake
def _(tensors: Sequence[Any], *settings: Any) -> list[Tensor]:
    pair, wanted = _unpack(tensors, settings)
    keep = Settings(*settings).keep
    value = pair.student.query.new_empty(pair.value_shape, dtype=pair.dtype)
    maps = []
    for side, asked in zip(pair.sides, wanted, strict=True):
        kept = keep == "maps" and any(asked)
        scores = side.query.shape[:-1].numel() * side.key.shape[-2]
        maps.append(value.new_empty(scores if kept else 0))
    guess = [
        value.new_empty(x.shape) if x is not None and asked and keep == "guess" else None
        for x, asked in zip(pair.student.leaves, wanted.student, strict=True)
    ]
    return [value, *maps, *_or_empty(guess, value)]


@torch.library.custom_op(
    "distillkit::tiled_divergence_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, {_INPUTS}, Tensor[] maps, {_SETTINGS}) -> Tensor[]",
)
def run_backward(
    upstream: Tensor, tensors: Sequence[Any], maps: Sequence[Tensor], *settings: Any
) -> list[Tensor]:
    """The gradients of all leaves."""
    pair, wanted = _unpack(tensors, settings)
    with _full_precision(upstream):
        found = loop_for(pair.student.query).backward(upstream, pair, wanted, Sides(*maps))
    return _or_empty([*found.student, *found.teacher], upstream)


@run_backward.register_fake
def _(
    upstream: Tensor, tensors: Sequence[Any], maps: Sequence[Tensor], *settings: Any
) -> list[Tensor]:
    del maps
    found = [
        x.new_empty(x.shape) if asked else None
        for x, asked in zip(tensors, Settings(*settings).wanted, strict=False)
    ]
    return _or_empty(found, upstream)


@torch.library.custom_op(
    "distillkit::tiled_divergence_settle",
    mutates_args=("guess",),
    schema=f"(Tensor upstream, {_INPUTS}, Tensor(a!)[] guess, {_SETTINGS}) -> ()",
)
def settle_guess(
    upstream: Tensor, tensors: Sequence[Any], guess: Sequence[Tensor], *settings: Any
) -> None:
    """Make the guessed gradients right, in place.

    They are right for a weight of 1 in every row. What can be scaled is scaled. If row weights
    differ, the rest of the guess is discarded and computed again.
    """
    pair, wanted = _unpack(tensors, settings)
    held = Leaves(*(x if asked else None for x, asked in zip(guess, wanted.student, strict=True)))
    loop = loop_for(pair.student.query)
    with _full_precision(upstream):
        wrong = loop.scale_guess(upstream, pair, held)
        if any(wrong):
            loop.backward(upstream, pair, Sides(wrong, NONE_WANTED), into=held)


@settle_guess.register_fake
def _(*_: Any) -> None:
    return None
