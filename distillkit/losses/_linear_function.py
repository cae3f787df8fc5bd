"""The divergences through output projections as one differentiable function.

Made as ``_blockwise_function`` is, and for the same reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _blocks
from ._blockwise import Kind
from ._linear_chunks import Head, Task, run, scale
from ._operators import present, told_apart, transformed


class _Settings(NamedTuple):
    """All that is no tensor, as the operators take it."""

    numbers: tuple[float, float, float, float]  # both soft caps, temperature, beta
    wanted: tuple[bool, ...]  # gradients of both sides' hidden states, weight and bias
    kind: str
    guess: bool  # compute them at once, for equal weights


def linear_divergence(task: Task) -> Tensor:
    """Values ``(n,)`` of the divergence, not multiplied by the squared temperature."""
    tensors: Sequence[Tensor | None] = [x for head in task.heads for x in head.tensors]
    asked = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in tensors]
    plain = _blocks.may_look(task.student.hidden.device) and not torch.compiler.is_compiling()
    plain = plain and not transformed()
    settings = _Settings(
        (task.student.softcap, task.teacher.softcap, task.temperature, task.kind.beta),
        tuple(asked),
        task.kind.name,
        plain and any(asked) and not any(asked[3:]),
    )
    tensors = told_apart(tensors)  # weights may be tied
    value: Tensor = _Linear.apply(*tensors, task.where, task.mask, settings)[0]  # type: ignore[no-untyped-call]
    return value


def _read(tensors: Sequence[Any], settings: Sequence[Any]) -> tuple[Task, list[bool]]:
    sh, sw, sb, th, tw, tb, where, mask = tensors
    (s_cap, t_cap, temperature, beta), wanted, name, _ = settings
    heads = Head(sh, sw, sb, s_cap), Head(th, tw, tb, t_cap)
    return Task(*heads, where, mask, temperature, Kind(name, beta)), list(wanted)


_TENSORS = (
    "Tensor sh, Tensor sw, Tensor? sb, Tensor th, Tensor tw, Tensor? tb, Tensor? where, "
    "Tensor? mask"
)
_SETTINGS = "float[] numbers, bool[] wanted, str kind, bool guess"


@torch.library.custom_op(
    "distillkit::linear_divergence",
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    task, wanted = _read(arguments[:8], arguments[8:])
    with torch.autocast(arguments[0].device.type, enabled=False):
        value, found = run(task, wanted, slopes=arguments[11])
    return (value, *present(found[:3], value))


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    task, wanted = _read(arguments[:8], arguments[8:])
    value = task.student.hidden.new_empty(task.student.hidden.shape[:1], dtype=task.dtype)
    some = [asked and arguments[11] for asked in wanted[:3]]
    guesses = [
        value.new_empty(x.shape) if asked and x is not None else None
        for x, asked in zip(task.student.tensors, some, strict=True)
    ]
    return (value, *present(guesses, value))


@torch.library.custom_op(
    "distillkit::linear_divergence_backward",
    mutates_args=(),
    schema=(
        f"(Tensor upstream, {_TENSORS}, {_SETTINGS}) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    task, wanted = _read(arguments[1:9], arguments[9:])
    with torch.autocast(arguments[0].device.type, enabled=False):
        _, found = run(task, wanted, arguments[0], slopes=True)
    return present(found, arguments[0])


@_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    task, wanted = _read(arguments[1:9], arguments[9:])
    tensors = [x for head in task.heads for x in head.tensors]
    found = [
        x.new_empty(x.shape) if some and x is not None else None
        for x, some in zip(tensors, wanted, strict=True)
    ]
    return present(found, arguments[0])


@torch.library.custom_op(
    "distillkit::linear_divergence_settle",
    mutates_args=("hidden", "weight", "bias"),
    schema=(
        f"(Tensor upstream, {_TENSORS}, Tensor(a!) hidden, Tensor(b!) weight, Tensor(c!) bias, "
        f"{_SETTINGS}) -> ()"
    ),
)
def _settle(*arguments: Any) -> None:
    """The guessed gradients made right: scaled, or computed again where the guess was wrong."""
    upstream, guesses = arguments[0], arguments[9:12]
    task, wanted = _read(arguments[1:9], arguments[12:])
    held = [x if some else None for x, some in zip(guesses, wanted, strict=False)]
    with torch.autocast(upstream.device.type, enabled=False):
        if not scale(upstream.to(task.dtype), task.mask, held):
            _, found = run(task, [False, *wanted[1:]], upstream, slopes=True)
            for guess, right in zip(held, found, strict=False):
                if guess is not None and right is not None:
                    guess.copy_(right)


@_settle.register_fake
def _(*_: Any) -> None:
    return None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913
        sh: Tensor, sw: Tensor, sb: Tensor | None, th: Tensor, tw: Tensor, tb: Tensor | None,
        where: Tensor | None, mask: Tensor | None, settings: _Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        found: tuple[Tensor, ...] = _forward(sh, sw, sb, th, tw, tb, where, mask, *settings)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        sh, sw, sb, th, tw, tb, where, mask, settings = inputs
        _, hidden, weight, bias = output
        ctx.mark_non_differentiable(hidden, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(sh, sw, sb, th, tw, tb, where, mask)
        ctx.settings = settings
        ctx.guess = (hidden, weight, bias) if settings.guess else None

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 9
        sh, sw, sb, th, tw, tb, where, mask = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:6])
        settings = ctx.settings._replace(wanted=wanted)
        if ctx.guess is not None and not torch.is_grad_enabled():
            hidden, weight, bias = ctx.guess
            ctx.guess = None  # given away: autograd owns them from here
            _settle(upstream, sh, sw, sb, th, tw, tb, where, mask, hidden, weight, bias, *settings)
            found: Any = [x.detach() for x in (hidden, weight, bias)] + [None] * 3
            likes = sh, sw, sb
            found[:3] = [
                x if like is None else x.to(like.dtype)
                for x, like in zip(found[:3], likes, strict=True)
            ]
        else:
            found = _Gradient.apply(  # type: ignore[no-untyped-call]
                upstream, sh, sw, sb, th, tw, tb, where, mask, settings
            )
        a, b, c, d, e, f = (x if some else None for x, some in zip(found, wanted, strict=True))
        return a, b, c, d, e, f, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        settings = inputs[8]._replace(guess=False)
        found = [
            _Linear.apply(*_slice(inputs[:8], in_dims, i), settings)  # type: ignore[no-untyped-call]
            for i in range(info.batch_size)
        ]
        value = torch.stack([one[0] for one in found])
        return (value, *found[0][1:]), (0, None, None, None)


class _Gradient(torch.autograd.Function):
    """Only so that differentiating the gradient is an error, never a silent zero."""

    @staticmethod
    def forward(  # noqa: PLR0913
        upstream: Tensor,
        sh: Tensor, sw: Tensor, sb: Tensor | None, th: Tensor, tw: Tensor, tb: Tensor | None,
        where: Tensor | None, mask: Tensor | None, settings: _Settings,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        found: tuple[Tensor, ...] = _backward(
            upstream, sh, sw, sb, th, tw, tb, where, mask, *settings
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(_: Any, *__: Any) -> Any:
        raise RuntimeError(
            "a divergence through the output projection has no second derivative: its gradient is "
            "computed in closed form; kl_divergence of logits can be differentiated as often as "
            "you like"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        found = [
            _Gradient.apply(*_slice(inputs[:9], in_dims, i), inputs[9])  # type: ignore[no-untyped-call]
            for i in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * 6


def _slice(tensors: Sequence[Tensor | None], in_dims: Sequence[int | None], i: int) -> list[Any]:
    """One element of the mapped axis."""
    return [
        x if x is None or axis is None else x.select(axis, i)
        for x, axis in zip(tensors, in_dims, strict=False)
    ]
