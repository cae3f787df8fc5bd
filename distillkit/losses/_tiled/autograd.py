"""The loops over tiles as one differentiable function, in every mode of torch.

Attention and logits share all three layers. They differ in the loop that an operator runs.

- Operators, opaque: a compiler and a fake tensor see the shapes of a loop alone.
- ``_Divergence``, a Function around them with ``setup_context`` and ``vmap``, because
  ``torch.func`` refuses operators that register their own gradient.
- ``_Gradient``, a Function around the backward, which turns the derivative of the gradient into an
  error. ``once_differentiable`` would drop it in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import attention, logits, tiling
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


LEAVES = 6  # that may ask for a gradient: half of them the student's
WITHOUT_GRADIENT = (None,) * (len(Tensors._fields) - LEAVES + 1)  # and the settings


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


def compare_in_tiles(pair: Pair, keep: Keep) -> Tensor:
    """The divergence of every row, not multiplied by the squared temperature.

    Args:
        pair: what is compared.
        keep: what the backward should find. ``"guess"`` becomes nothing where it cannot be: for a
            teacher that trains, on an accelerator, under a compiler or a transform.
    """
    student, teacher = pair.sides
    tensors = Tensors(
        *student.leaves, *teacher.leaves, student.mask, teacher.mask, pair.rows, pair.keys
    )
    grad = torch.is_grad_enabled()
    wanted = [grad and x is not None and x.requires_grad for x in tensors[:LEAVES]]
    if not _may_keep(keep, _by_side(wanted), student.query.device):
        keep = ""
    numbers = Numbers(
        student.temperature, pair.kind.beta, student.scale, teacher.scale,
        student.softcap, teacher.softcap,
    )  # fmt: skip
    flags = Flags(student.causal, teacher.causal, pair.mean)
    settings = Settings(tuple(numbers), tuple(flags), tuple(wanted), pair.kind.name, keep)
    value: Tensor = _Divergence.apply(*_without_aliases(tensors), settings)[0]  # type: ignore[no-untyped-call]
    return value


def _may_keep(keep: Keep, wanted: Wanted, device: torch.device) -> bool:
    """Whether the forward may keep something for a backward that is sure to come."""
    student, teacher = any(wanted.student), any(wanted.teacher)
    if not (student or teacher) or torch.compiler.is_compiling():
        return False
    # to settle a guess the weights of the rows are read, and gradients are changed in place
    guessing = keep == "guess"
    return not guessing or not (teacher or not tiling.can_sync(device) or _is_transformed())


def _is_transformed() -> bool:
    """Whether a ``torch.func`` transform is at work, whose tensors cannot be changed in place."""
    return bool(torch._C._are_functorch_transforms_active())  # noqa: SLF001 (torch has no other)


def _without_aliases(tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Replace aliased tensors by views while compiling: dynamo refuses one argument twice.

    Queries may be keys, and a teacher's projection may be the student's.
    """
    if not torch.compiler.is_compiling():
        return tensors
    return [None if x is None else x.view_as(x) for x in tensors]


def _by_side(leaves: Sequence[Any]) -> Sides[Leaves[Any]]:
    half = LEAVES // 2
    return Sides(Leaves(*leaves[:half]), Leaves(*leaves[half:]))


def _pair(tensors: Sequence[Any], settings: Sequence[Any]) -> tuple[Pair, Wanted]:
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
    return Pair(student, teacher, x.rows, kind, x.keys, flags.mean), _by_side(given.wanted)


def _loop(query: Tensor) -> Loop:
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
def _forward(tensors: Sequence[Any], *settings: Any) -> list[Tensor]:
    """The value, both maps, and the guessed gradients of the student's leaves."""
    pair, wanted = _pair(tensors, settings)
    with _full_precision(pair.student.query):
        made = _loop(pair.student.query).forward(pair, wanted, Settings(*settings).keep)
    return [made.value, *made.maps, *_or_empty(made.guess, made.value)]


@_forward.register_fake
def _(tensors: Sequence[Any], *settings: Any) -> list[Tensor]:
    (pair, wanted), keep = _pair(tensors, settings), Settings(*settings).keep
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
def _backward(
    upstream: Tensor, tensors: Sequence[Any], maps: Sequence[Tensor], *settings: Any
) -> list[Tensor]:
    """The gradients of all leaves."""
    pair, wanted = _pair(tensors, settings)
    with _full_precision(upstream):
        found = _loop(pair.student.query).backward(upstream, pair, wanted, Sides(*maps))
    return _or_empty([*found.student, *found.teacher], upstream)


@_backward.register_fake
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
def _settle(
    upstream: Tensor, tensors: Sequence[Any], guess: Sequence[Tensor], *settings: Any
) -> None:
    """Make the guessed gradients right, in place.

    They are right for a weight of 1 in every row. What can be scaled is scaled. If row weights
    differ, the rest of the guess is discarded and computed again.
    """
    pair, wanted = _pair(tensors, settings)
    held = Leaves(*(x if asked else None for x, asked in zip(guess, wanted.student, strict=True)))
    loop = _loop(pair.student.query)
    with _full_precision(upstream):
        wrong = loop.scale_guess(upstream, pair, held)
        if any(wrong):
            loop.backward(upstream, pair, Sides(wrong, NONE_WANTED), into=held)


@_settle.register_fake
def _(*_: Any) -> None:
    return None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 (a Function takes every tensor by itself)
        sq: Tensor, sk: Tensor, sb: Tensor | None, tq: Tensor, tk: Tensor, tb: Tensor | None,
        sm: Tensor | None, tm: Tensor | None, rows: Tensor | None, keys: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return tuple(_forward([sq, sk, sb, tq, tk, tb, sm, tm, rows, keys], *settings))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, settings = inputs
        _, student_map, teacher_map, *guess = output
        ctx.mark_non_differentiable(student_map, teacher_map, *guess)
        ctx.set_materialize_grads(False)  # no zeros of the size of what was kept
        ctx.save_for_backward(*tensors, student_map, teacher_map)
        ctx.settings = settings
        # given away by the first backward, which owns them and may change them in place
        ctx.guess = guess if settings.keep == "guess" else None

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * LEAVES + WITHOUT_GRADIENT
        *tensors, student_map, teacher_map = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:LEAVES])
        settings = ctx.settings._replace(wanted=wanted)
        found: list[Tensor | None]
        if ctx.guess is not None and not torch.is_grad_enabled():
            guess, ctx.guess = ctx.guess, None
            _settle(upstream, tensors, guess, *settings)
            # nobody else holds the aliases, so that autograd need not copy them
            leaves = zip(guess, tensors, strict=False)
            found = [x if like is None else x.detach().to(like.dtype) for x, like in leaves]
            found += [None] * (LEAVES - len(guess))  # no guess is made for a teacher that trains
        else:
            found = _Gradient.apply(upstream, *tensors, student_map, teacher_map, settings)  # type: ignore[no-untyped-call]
        asked = [x if some else None for x, some in zip(found, wanted, strict=True)]
        return (*asked, *WITHOUT_GRADIENT)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, settings = inputs
        settings = settings._replace(keep="")
        found = [
            _Divergence.apply(*_element(tensors, in_dims, i), settings)  # type: ignore[no-untyped-call]
            for i in range(info.batch_size)
        ]
        value = torch.stack([one[0] for one in found])
        rest = found[0][1:]
        return (value, *rest), (0, *[None] * len(rest))


class _Gradient(torch.autograd.Function):
    """Only so that differentiating the gradient is an error, never a silent zero."""

    @staticmethod
    def forward(  # noqa: PLR0913
        upstream: Tensor,
        sq: Tensor, sk: Tensor, sb: Tensor | None, tq: Tensor, tk: Tensor, tb: Tensor | None,
        sm: Tensor | None, tm: Tensor | None, rows: Tensor | None, keys: Tensor | None,
        student_map: Tensor, teacher_map: Tensor, settings: Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        tensors = [sq, sk, sb, tq, tk, tb, sm, tm, rows, keys]
        return tuple(_backward(upstream, tensors, [student_map, teacher_map], *settings))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004 (torch calls it)
        _, query, *_ = inputs
        ctx.message = _loop(query).NO_SECOND_DERIVATIVE

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, settings = inputs
        found = [
            _Gradient.apply(*_element(tensors, in_dims, i), settings)  # type: ignore[no-untyped-call]
            for i in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * LEAVES


def _element(
    tensors: Sequence[Tensor | None], in_dims: Sequence[int | None], i: int
) -> list[Tensor | None]:
    """One element of the mapped axis."""
    dims = in_dims[: len(tensors)]
    return [
        x if x is None or axis is None else x.select(axis, i)
        for x, axis in zip(tensors, dims, strict=True)
    ]
