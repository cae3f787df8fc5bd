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
    STATISTICS,
    Engine,
    ForBackward,
    Forward,
    Gradients,
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


TENSORS = len(Tensors._fields)
LEAVES = 6  # of them may ask for a gradient: half of these are the student's


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
        engine: what computes.
    """

    numbers: Sequence[float]
    flags: Sequence[bool]
    wanted: Sequence[bool]
    kind: Any
    keep: Any
    engine: Any


class Loop(Protocol):
    """A loop over tiles: the modules ``attention`` and ``logits``."""

    NO_SECOND_DERIVATIVE: str

    def forward(self, pair: Pair, wanted: Wanted, keep: ForBackward) -> Forward: ...

    def backward(
        self,
        upstream: Tensor,
        pair: Pair,
        wanted: Wanted,
        maps: Sides[Tensor] | None = None,
        into: Gradients | None = None,
    ) -> Sides[Gradients]: ...

    def scale_guess(self, upstream: Tensor, pair: Pair, guess: Gradients) -> Leaves[bool]: ...


def pack_tensors(pair: Pair) -> tuple[Tensor | None, ...]:
    """The tensors of a comparison in the order of :class:`Tensors`, as the operators take them."""
    # a plain tuple, field by field: this is traced, and a compiler before torch 2.13 neither cuts a
    # NamedTuple nor sees its properties
    student, teacher = pair.student, pair.teacher
    return (
        student.query, student.key, student.bias,
        teacher.query, teacher.key, teacher.bias,
        student.mask, teacher.mask, pair.rows, pair.keys,
    )  # fmt: skip


def pack_settings(
    pair: Pair, wanted: Sequence[bool], keep: ForBackward, engine: Engine
) -> Settings:
    """Everything else of a comparison, as the operators take it."""
    student, teacher = pair.student, pair.teacher
    numbers = Numbers(
        temperature=student.temperature,
        beta=pair.kind.beta,
        student_scale=student.scale,
        teacher_scale=teacher.scale,
        student_softcap=student.softcap,
        teacher_softcap=teacher.softcap,
    )
    flags = Flags(student.causal, teacher.causal, pair.mean)
    return Settings(tuple(numbers), tuple(flags), tuple(wanted), pair.kind.name, keep, engine)


def by_side(leaves: Sequence[Any]) -> Sides[Leaves[Any]]:
    """Leaves in the order of :class:`Tensors`, under the names of their sides."""
    half = LEAVES // 2
    return Sides(Leaves(*leaves[:half]), Leaves(*leaves[half:]))


def _unpack(packed: Sequence[Any]) -> tuple[Pair, Wanted, Settings]:
    """Tensors and settings of an operator's call, under their names again."""
    x = Tensors(*packed[:TENSORS])
    given = Settings(*packed[TENSORS:])
    numbers = Numbers(*given.numbers)
    flags = Flags(*given.flags)
    student = Side(
        x.student_query, x.student_key, x.student_bias, x.student_mask, numbers.temperature,
        numbers.student_scale, numbers.student_softcap, flags.student_causal,
    )  # fmt: skip
    teacher = Side(
        x.teacher_query, x.teacher_key, x.teacher_bias, x.teacher_mask, numbers.temperature,
        numbers.teacher_scale, numbers.teacher_softcap, flags.teacher_causal,
    )  # fmt: skip
    kind = Kind(given.kind, numbers.beta)
    pair = Pair(student, teacher, x.rows, kind, x.keys, flags.mean)
    return pair, by_side(given.wanted), given


def loop_for(query: Tensor, engine: Engine) -> Loop:
    """The loop over tiles: attentions have axes of examples and heads, logits have not."""
    if engine == "triton":
        from ._triton import attention as fused_attention  # triton is optional
        from ._triton import logits as fused_logits

        return fused_attention if query.ndim == 4 else fused_logits
    return attention if query.ndim == 4 else logits


# flat tensors: what torch does by itself for a mapped operator knows no lists of them
_PACKED = (
    "Tensor student_query, Tensor student_key, Tensor? student_bias, "
    "Tensor teacher_query, Tensor teacher_key, Tensor? teacher_bias, "
    "Tensor? student_mask, Tensor? teacher_mask, Tensor? rows, Tensor? keys, "
    "float[] numbers, bool[] flags, bool[] wanted, str kind, str keep, str engine"
)
_SIX = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"


@torch.library.custom_op(
    "distillkit::tiled_divergence", mutates_args=(), schema=f"({_PACKED}) -> {_SIX}"
)
def run_forward(*packed: Any) -> tuple[Tensor, ...]:
    """The value, both maps, and the guessed gradients of the student's leaves."""
    pair, wanted, settings = _unpack(packed)
    with _full_precision(pair.student.query):
        loop = loop_for(pair.student.query, settings.engine)
        made = loop.forward(pair, wanted, settings.keep)
    return (made.value, *made.maps, *_or_empty(made.guess, made.value))


@run_forward.register_fake
def _(*packed: Any) -> tuple[Tensor, ...]:
    pair, wanted, settings = _unpack(packed)
    value = pair.student.query.new_empty(pair.value_shape, dtype=pair.dtype)
    if settings.engine == "triton" and value.ndim == 3:
        maps = [value.new_empty(STATISTICS * value.numel()), value.new_empty(0)]
        return (value, *maps, *_or_empty([None] * len(pair.student.leaves), value))
    maps = []
    for side, asked in zip(pair.sides, wanted, strict=True):
        kept = settings.keep == "maps" and any(asked)
        scores = side.query.shape[:-1].numel() * side.key.shape[-2]
        maps.append(value.new_empty(scores if kept else 0))
    asked = wanted.student if settings.keep == "guess" else NONE_WANTED
    guess = _empty_gradients(pair.student.leaves, asked, pair.dtype)
    return (value, *maps, *_or_empty(guess, value))


@torch.library.custom_op(
    "distillkit::tiled_divergence_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, Tensor student_map, Tensor teacher_map, {_PACKED}) -> {_SIX}",
)
def run_backward(
    upstream: Tensor, student_map: Tensor, teacher_map: Tensor, *packed: Any
) -> tuple[Tensor, ...]:
    """The gradients of all leaves."""
    pair, wanted, settings = _unpack(packed)
    maps = Sides(student_map, teacher_map)
    with _full_precision(upstream):
        loop = loop_for(pair.student.query, settings.engine)
        found = loop.backward(upstream, pair, wanted, maps)
    return _or_empty([*found.student, *found.teacher], upstream)


@run_backward.register_fake
def _(upstream: Tensor, _: Tensor, __: Tensor, *packed: Any) -> tuple[Tensor, ...]:
    pair, wanted, _settings = _unpack(packed)
    sides = zip(pair.leaves, wanted, strict=True)
    found = [x for leaves, asked in sides for x in _empty_gradients(leaves, asked)]
    return _or_empty(found, upstream)


@torch.library.custom_op(
    "distillkit::tiled_divergence_settle",
    mutates_args=("query", "key", "bias"),
    schema=(
        f"(Tensor upstream, Tensor(a!) query, Tensor(b!) key, Tensor(c!) bias, {_PACKED}) -> ()"
    ),
)
def settle_guess(upstream: Tensor, query: Tensor, key: Tensor, bias: Tensor, *packed: Any) -> None:
    """Make the guessed gradients right, in place.

    They are right for a weight of 1 in every row. What can be scaled is scaled. If row weights
    differ, the rest of the guess is discarded and computed again.
    """
    pair, wanted, settings = _unpack(packed)
    guess = zip((query, key, bias), wanted.student, strict=True)
    held = Leaves(*(x if asked else None for x, asked in guess))
    loop = loop_for(pair.student.query, settings.engine)
    with _full_precision(upstream):
        wrong = loop.scale_guess(upstream, pair, held)
        if any(wrong):
            loop.backward(upstream, pair, Sides(wrong, NONE_WANTED), into=held)


@settle_guess.register_fake
def _(*_: Any) -> None:
    return None


def _empty_gradients(
    leaves: Leaves[Tensor | None], wanted: Leaves[bool], dtype: torch.dtype | None = None
) -> Gradients:
    """Gradients without numbers, of a ``dtype`` or that of the leaves."""
    pairs = zip(leaves, wanted, strict=True)
    return Leaves(
        *(
            x.new_empty(x.shape, dtype=dtype) if x is not None and asked else None
            for x, asked in pairs
        )
    )


def _or_empty(found: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors in place of None: an operator returns tensors only."""
    return tuple(like.new_empty(0) if x is None else x for x in found)


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
