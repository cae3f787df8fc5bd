"""The blockwise divergences as one differentiable function, in every mode of torch.

The loops sit in opaque operators, of which a compiler and a fake tensor see the shapes alone; an
``autograd.Function`` with ``setup_context`` and ``vmap`` wraps them, because ``torch.func`` refuses
operators that register their own gradient; and a second Function turns the derivative of the
gradient into an error, where ``once_differentiable`` would drop it in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import _blocks
from ._blocks import Pair, Side
from ._blockwise import Kind, Wanted, backward, forward, scale
from ._operators import present, told_apart, transformed

Keep = Literal["", "maps", "guess"]

_TENSORS = (
    "Tensor sq, Tensor sk, Tensor? sm, Tensor? sb, Tensor tq, Tensor tk, Tensor? tm, Tensor? tb, "
    "Tensor? rows"
)
_SETTINGS = "float[] numbers, bool[] flags, str kind, str keep"


class Settings(NamedTuple):
    """All that is no tensor.

    Attributes:
        numbers: scale of student and teacher, temperature, beta.
        flags: causal student, causal teacher, mean over heads; gradient wanted of the student's
            query and key, of the teacher's query and key.
        kind: the divergence.
        keep: what the forward keeps for the backward.
    """

    numbers: tuple[float, float, float, float]
    flags: tuple[bool, bool, bool, bool, bool, bool, bool]
    kind: str
    keep: str


def blockwise(pair: Pair, kind: Kind, keep: Keep) -> Tensor:
    """Values ``(b, h or 1, q)`` of the divergence, not multiplied by the squared temperature."""
    student, teacher = pair.sides
    leaves = student.query, student.key, teacher.query, teacher.key
    some = torch.is_grad_enabled()
    wanted = [some and x.requires_grad for x in leaves]
    if not any(wanted) or torch.compiler.is_compiling():
        keep = ""
    if keep == "guess" and (
        any(wanted[2:]) or not _blocks.may_look(leaves[0].device) or transformed()
    ):
        keep = ""  # looking at the weights would wait for an accelerator
    settings = Settings(
        (student.scale, teacher.scale, student.temperature, kind.beta),
        (student.causal, teacher.causal, pair.mean, *wanted),  # type: ignore[arg-type]
        kind.name,
        keep,
    )
    tensors = told_apart(  # queries may be keys
        [x for side in (student, teacher) for x in (side.query, side.key, side.mask, side.bias)]
    )
    value: Tensor = _Divergence.apply(*tensors, pair.rows, settings)[0]  # type: ignore[no-untyped-call]
    return value


def _read(tensors: Sequence[Any], settings: Sequence[Any]) -> tuple[Pair, Kind, Wanted]:
    sq, sk, sm, sb, tq, tk, tm, tb, rows = tensors
    (s_scale, t_scale, temperature, beta), flags, name, _ = settings
    s_causal, t_causal, mean, *wanted = flags
    student = Side(sq, sk, sm, sb, s_causal, s_scale, temperature)
    teacher = Side(tq, tk, tm, tb, t_causal, t_scale, temperature)
    asked = Wanted((wanted[0], wanted[1]), (wanted[2], wanted[3]))
    return Pair(student, teacher, rows, mean), Kind(name, beta), asked


@torch.library.custom_op(
    "distillkit::attention_divergence",
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    pair, kind, wanted = _read(arguments[:9], arguments[9:])
    keep: Keep = arguments[12]
    with torch.autocast(arguments[0].device.type, enabled=False):
        value, maps, gradients = forward(pair, kind, wanted, keep)
    found = iter(gradients)
    guesses = [next(found) if asked and keep == "guess" else None for asked in wanted.student]
    return (value, *maps, *present(guesses, value))


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    pair, _, wanted = _read(arguments[:9], arguments[9:])
    keep: Keep = arguments[12]
    value = pair.student.query.new_empty(pair.value_shape, dtype=pair.dtype)
    keys = pair.student.key.shape[2]
    maps = [
        value.new_empty(side.query.shape[:3].numel() * keys if any(asked) and keep == "maps" else 0)
        for side, asked in zip(pair.sides, wanted, strict=True)
    ]
    leaves = pair.student.query, pair.student.key
    guesses = [
        value.new_empty(x.shape if asked and keep == "guess" else 0)
        for x, asked in zip(leaves, wanted.student, strict=True)
    ]
    return (value, *maps, *guesses)


@torch.library.custom_op(
    "distillkit::attention_divergence_backward",
    mutates_args=(),
    schema=(
        f"(Tensor upstream, {_TENSORS}, Tensor map_s, Tensor map_t, {_SETTINGS}) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    pair, kind, wanted = _read(arguments[1:10], arguments[12:])
    with torch.autocast(arguments[0].device.type, enabled=False):
        found = backward(arguments[0], pair, kind, wanted, arguments[10:12])
    return present(found, arguments[0])


@_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    pair, _, wanted = _read(arguments[1:10], arguments[12:])
    found = [
        x.new_empty(x.shape) if asked else None
        for side, some in zip(pair.sides, wanted, strict=True)
        for x, asked in zip((side.query, side.key), some, strict=True)
    ]
    return present(found, arguments[0])


@torch.library.custom_op(
    "distillkit::attention_divergence_settle",
    mutates_args=("query", "key"),
    schema=f"(Tensor upstream, {_TENSORS}, Tensor(a!) query, Tensor(b!) key, {_SETTINGS}) -> ()",
)
def _settle(*arguments: Any) -> None:
    """The guessed gradients made right: scaled, or computed again where the guess was wrong."""
    upstream, query, key = arguments[0], *arguments[10:12]
    pair, kind, wanted = _read(arguments[1:10], arguments[12:])
    asked = [x if some else None for x, some in zip((query, key), wanted.student, strict=True)]
    with torch.autocast(upstream.device.type, enabled=False):
        if not scale(upstream, pair, *asked):
            backward(upstream, pair, kind, wanted, into=asked)


@_settle.register_fake
def _(*_: Any) -> None:
    return None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 (a Function takes every tensor by itself)
        sq: Tensor, sk: Tensor, sm: Tensor | None, sb: Tensor | None,
        tq: Tensor, tk: Tensor, tm: Tensor | None, tb: Tensor | None,
        rows: Tensor | None, settings: Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        found: tuple[Tensor, ...] = _forward(sq, sk, sm, sb, tq, tk, tm, tb, rows, *settings)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        sq, sk, sm, sb, tq, tk, tm, tb, rows, settings = inputs  # dynamo wants every name
        _, map_s, map_t, query, key = output
        ctx.mark_non_differentiable(map_s, map_t, query, key)
        ctx.set_materialize_grads(False)  # no zeros of the size of what was kept
        ctx.save_for_backward(sq, sk, sm, sb, tq, tk, tm, tb, rows, map_s, map_t)
        ctx.settings = settings
        # given away by the first backward, which owns them and may change them in place
        ctx.guess = (query, key) if settings.keep == "guess" else None

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 10
        sq, sk, sm, sb, tq, tk, tm, tb, rows, map_s, map_t = ctx.saved_tensors
        needs = ctx.needs_input_grad
        asked = needs[0], needs[1], needs[4], needs[5]
        settings = ctx.settings._replace(flags=(*ctx.settings.flags[:3], *asked))
        if ctx.guess is not None and not torch.is_grad_enabled():
            query, key = ctx.guess
            ctx.guess = None
            _settle(upstream, sq, sk, sm, sb, tq, tk, tm, tb, rows, query, key, *settings)
            # nobody else holds the aliases, so that autograd need not copy them
            found = query.detach().to(sq.dtype), key.detach().to(sk.dtype), None, None
        else:
            found = _Gradient.apply(  # type: ignore[no-untyped-call]
                upstream, sq, sk, sm, sb, tq, tk, tm, tb, rows, map_s, map_t, settings
            )
        q, k, p, r = (x if some else None for x, some in zip(found, asked, strict=True))
        return q, k, None, None, p, r, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, settings = inputs
        folded, b = _folded(info.batch_size, in_dims[:9], tensors)
        value, *rest = _Divergence.apply(*folded, settings._replace(keep=""))  # type: ignore[no-untyped-call]
        return (value.unflatten(0, (info.batch_size, b)), *rest), (0, None, None, None, None)


class _Gradient(torch.autograd.Function):
    """Only so that differentiating the gradient is an error, never a silent zero."""

    @staticmethod
    def forward(  # noqa: PLR0913
        upstream: Tensor,
        sq: Tensor, sk: Tensor, sm: Tensor | None, sb: Tensor | None,
        tq: Tensor, tk: Tensor, tm: Tensor | None, tb: Tensor | None,
        rows: Tensor | None, map_s: Tensor, map_t: Tensor, settings: Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        found: tuple[Tensor, ...] = _backward(
            upstream, sq, sk, sm, sb, tq, tk, tm, tb, rows, map_s, map_t, *settings
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(_: Any, *__: Any) -> Any:
        raise RuntimeError(
            "a blockwise attention loss has no second derivative: its gradient is computed in "
            'closed form; method="dense" can be differentiated as often as you like'
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        upstream, *tensors, map_s, map_t, settings = inputs
        folded, b = _folded(info.batch_size, in_dims[:10], [upstream, *tensors])
        found = _Gradient.apply(*folded, map_s, map_t, settings)  # type: ignore[no-untyped-call]
        asked = settings.flags[3:]
        back = tuple(
            x.unflatten(0, (info.batch_size, b)) if some else x
            for x, some in zip(found, asked, strict=True)
        )
        return back, tuple(0 if some else None for some in asked)


def _folded(
    batch: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]
) -> tuple[list[Tensor | None], int]:
    """The mapped axis of every tensor folded into its examples, and their number before."""
    moved = [
        x if x is None else x.expand(batch, *x.shape) if axis is None else x.movedim(axis, 0)
        for x, axis in zip(tensors, in_dims, strict=True)
    ]
    b = next(x.shape[1] for x in moved if x is not None)
    return [None if x is None else x.expand(batch, b, *x.shape[2:]).flatten(0, 1) for x in moved], b
