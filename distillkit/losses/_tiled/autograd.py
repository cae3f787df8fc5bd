"""The divergence of two sides as one differentiable function, in every mode of torch.

Attention and logits share all three layers. They differ in the loop that an operator runs.

- The operators, whose loops are opaque (:mod:`operators`).
- ``_Divergence``, a Function around them with ``setup_context`` and ``vmap``, because
  ``torch.func`` refuses operators that register their own gradient.
- ``_Gradient``, a Function around the backward, which turns the derivative of the gradient into an
  error. ``once_differentiable`` would drop it in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._torch_private import are_transforms_active, is_legacy_batched_tensor
from . import tiling
from .comparison import Engine, ForBackward, Pair, Wanted
from .operators import (
    LEAVES,
    TENSORS,
    Settings,
    by_side,
    loop_for,
    pack_settings,
    pack_tensors,
    run_backward,
    run_forward,
    settle_guess,
)

WITHOUT_GRADIENT = (None,) * (TENSORS - LEAVES + 1)  # the settings are the last


def compare_in_tiles(pair: Pair, keep: ForBackward, engine: Engine = "") -> Tensor:
    """The divergence of every row, not multiplied by the squared temperature.

    Args:
        pair: what is compared.
        keep: what the backward should find. ``"guess"`` becomes nothing where it cannot be: for a
            teacher that trains, on an accelerator, under a compiler or a transform.
        engine: what computes.
    """
    tensors = pack_tensors(pair)
    grad = torch.is_grad_enabled()
    wanted = [grad and x is not None and x.requires_grad for x in tensors[:LEAVES]]
    if not _may_keep(keep, by_side(wanted), pair.student.query.device):
        keep = ""
    settings = pack_settings(pair, wanted, keep, engine)
    value: Tensor = _Divergence.apply(*_without_aliases(tensors), settings)[0]  # type: ignore[no-untyped-call]
    return value


def _may_keep(keep: ForBackward, wanted: Wanted, device: torch.device) -> bool:
    """Whether the forward may keep something for a backward that is sure to come."""
    student, teacher = any(wanted.student), any(wanted.teacher)
    if not (student or teacher) or torch.compiler.is_compiling():
        return False
    if keep == "maps":
        return True
    # settling a guess reads the weights of the rows and changes gradients in place, which no
    # tensor of a transform allows
    return not teacher and tiling.can_sync(device) and not are_transforms_active()


def _can_settle(upstream: Tensor) -> bool:
    """Whether the guess may be made right in place: for one backward that is not differentiated."""
    return not torch.is_grad_enabled() and not is_legacy_batched_tensor(upstream)


def _without_aliases(tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Replace aliased tensors by views while compiling: dynamo refuses one argument twice.

    Queries may be keys, and a teacher's projection may be the student's.
    """
    if not torch.compiler.is_compiling():
        return tensors
    return [None if x is None else x.view_as(x) for x in tensors]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 (a Function takes every tensor by itself)
        sq: Tensor, sk: Tensor, sb: Tensor | None, tq: Tensor, tk: Tensor, tb: Tensor | None,
        sm: Tensor | None, tm: Tensor | None, rows: Tensor | None, keys: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        found: tuple[Tensor, ...] = run_forward(
            sq, sk, sb, tq, tk, tb, sm, tm, rows, keys, *settings
        )
        return found

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
        # not _replace(): it is traced, which a compiler before torch 2.13 cannot
        given = ctx.settings
        settings = Settings(
            given.numbers, given.flags, wanted, given.kind, given.keep, given.engine
        )
        found: list[Tensor | None]
        if ctx.guess is not None and _can_settle(upstream):
            guess = ctx.guess
            ctx.guess = None
            settle_guess(upstream, *guess, *tensors, *settings)
            # nobody else holds the aliases, so that autograd need not copy them
            leaves = zip(guess, tensors, strict=False)
            found = [x if like is None else x.detach().to(like.dtype) for x, like in leaves]
            found += [None] * (LEAVES - len(guess))  # no guess is made for a teacher that trains
        else:
            found = _Gradient.apply(upstream, student_map, teacher_map, *tensors, settings)  # type: ignore[no-untyped-call]
        asked = [x if some else None for x, some in zip(found, wanted, strict=True)]
        return (*asked, *WITHOUT_GRADIENT)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, settings = inputs
        settings = settings._replace(keep="")
        elements = _elements(tensors, in_dims, info.batch_size)
        found = [_Divergence.apply(*element, settings) for element in elements]  # type: ignore[no-untyped-call]
        made = [_stack(x, info.batch_size) for x in zip(*found, strict=True)]
        return tuple(made), (0,) * len(made)


class _Gradient(torch.autograd.Function):
    """Only so that differentiating the gradient is an error, never a silent zero."""

    @staticmethod
    def forward(  # noqa: PLR0913
        upstream: Tensor, student_map: Tensor, teacher_map: Tensor,
        sq: Tensor, sk: Tensor, sb: Tensor | None, tq: Tensor, tk: Tensor, tb: Tensor | None,
        sm: Tensor | None, tm: Tensor | None, rows: Tensor | None, keys: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        found: tuple[Tensor, ...] = run_backward(
            upstream, student_map, teacher_map,
            sq, sk, sb, tq, tk, tb, sm, tm, rows, keys, *settings,
        )  # fmt: skip
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004 (torch calls it)
        _, _, _, query, *_, settings = inputs
        ctx.message = loop_for(query, settings.engine).NO_SECOND_DERIVATIVE

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, settings = inputs
        elements = _elements(tensors, in_dims, info.batch_size)
        found = [_Gradient.apply(*element, settings) for element in elements]  # type: ignore[no-untyped-call]
        back = [_stack(x, info.batch_size) for x in zip(*found, strict=True)]
        return tuple(back), (0,) * len(back)


def _elements(
    tensors: Sequence[Tensor | None], in_dims: Sequence[int | None], size: int
) -> list[list[Tensor | None]]:
    """The tensors for each element of the mapped axis, and once if it is empty, for the shapes."""
    dims = in_dims[: len(tensors)]
    pairs = list(zip(tensors, dims, strict=True))
    return [
        [x if x is None or axis is None else _element(x, axis, i) for x, axis in pairs]
        for i in range(max(1, size))
    ]


def _element(x: Tensor, axis: int, i: int) -> Tensor:
    if x.shape[axis]:
        return x.select(axis, i)
    return x.new_zeros(x.movedim(axis, 0).shape[1:])


def _stack(elements: Sequence[Tensor], size: int) -> Tensor:
    return torch.stack(list(elements))[:size]
