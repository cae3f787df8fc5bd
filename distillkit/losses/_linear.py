"""Divergences of logits from hidden states and output projections, without the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..errors import ShapeError
from ._blockwise import Kind
from ._divergence import Beta, Temperature, check_beta
from ._linear_chunks import Head, Task, run, scale
from ._signature import check_positive

Softcap = Annotated[float, Field(gt=0)] | None


def linear_kl_divergence(  # noqa: PLR0913 (two models' heads; everything after is by keyword)
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_softcap: Softcap = None,
    teacher_softcap: Softcap = None,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Forward KL of softened logits through the output projections, a few tokens at a time.

    .. math:: T^2\, KL(\mathrm{softmax}((h_t W_t^\top + b_t) / T) \,\|\,
                       \mathrm{softmax}((h_s W_s^\top + b_s) / T))

    The value of :func:`kl_divergence` on logits that never exist all at once: neither logits nor
    probabilities of tokens x vocabulary are held, forward or backward.

    Shape: ``(..., d), (v, d), (..., e), (v, e) -> (...)``.

    Args:
        student_hidden: hidden states before the student's output projection.
        student_weight: that projection, one row for each class.
        teacher_hidden: the teacher's hidden states, of any width e.
        teacher_weight: the teacher's projection onto the same v classes.
        student_bias: ``(v,)``; -inf bans a class, under a soft cap too.
        teacher_bias: ``(v,)``.
        student_softcap: c > 0 for a head that ends in ``c * tanh(logits / c)``.
        teacher_softcap: the same for the teacher's.
        temperature: T > 0, softens both sides.
        where: boolean ``(v,)``: the classes that exist (no padding of the vocabulary).
        mask: boolean, the leading axes of the hidden states: the tokens that count. The others
            have value 0 and cost nothing.

    Returns:
        One value >= 0 for each token, in float32 at least. Gradients reach hidden states, weights
        and biases of both sides; on a CPU they are computed along with the value for equal token
        weights, and again only if the weights of the reduction turn out to differ.

    Raises:
        ShapeError: sizes that do not fit, with both printed.
        OptionError: a temperature or soft cap that is not positive.

    Examples:
        >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0986, 0.0]])
        >>> linear_kl_divergence(torch.zeros(1, 2), weight, hidden, weight)
        tensor([0.1308])

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531; in chunks as Hsu et al., *Liger
    Kernel*, 2024, https://arxiv.org/abs/2410.10989, do, here one value for each token.
    """
    student = _head("student", student_hidden, student_weight, student_bias, student_softcap)
    teacher = _head("teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
    name = "linear_kl_divergence"
    return _chunked(name, Kind("kl"), student, teacher, temperature, where, mask)


def linear_jensen_shannon_divergence(  # noqa: PLR0913
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_softcap: Softcap = None,
    teacher_softcap: Softcap = None,
    beta: Beta = 0.5,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence through the output projections.

    The value of :func:`jensen_shannon_divergence`, computed as :func:`linear_kl_divergence` does.

    Shape: ``(..., d), (v, d), (..., e), (v, e) -> (...)``. Further arguments and errors are those
    of :func:`linear_kl_divergence`.

    Args:
        student_hidden: hidden states before the student's output projection.
        student_weight: that projection.
        teacher_hidden: the teacher's hidden states.
        teacher_weight: the teacher's projection onto the same classes.
        student_bias: ``(v,)``.
        teacher_bias: ``(v,)``.
        student_softcap: c > 0, or None.
        teacher_softcap: c > 0, or None.
        beta: the teacher's weight in the mixture, in (0, 1).
        temperature: T > 0.
        where: boolean ``(v,)``: the classes that exist.
        mask: boolean: the tokens that count.

    Returns:
        One value in [0, T^2 log 2] (at beta 0.5) for each token.

    Examples:
        >>> hidden, weight = torch.tensor([[9.0]]), torch.tensor([[-9.0], [9.0]])
        >>> linear_jensen_shannon_divergence(hidden, weight, -hidden, weight)
        tensor([0.6931])

    Source: Agarwal et al. 2024 (GKD), https://arxiv.org/abs/2306.13649, equation 1.
    """
    check_beta(beta)
    student = _head("student", student_hidden, student_weight, student_bias, student_softcap)
    teacher = _head("teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
    name = "linear_jensen_shannon_divergence"
    return _chunked(name, Kind("jsd", beta), student, teacher, temperature, where, mask)


class _Settings(NamedTuple):
    """All that is no tensor, as the operators take it."""

    numbers: tuple[float, float, float, float]  # both soft caps, temperature, beta
    wanted: tuple[bool, ...]  # gradients of both sides' hidden states, weight and bias
    kind: str
    guess: bool  # compute them at once, for equal weights


def _head(
    side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None
) -> Head:
    fits = hidden.ndim >= 1 and weight.ndim == 2 and hidden.shape[-1] == weight.shape[1]
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    given = [x for x in (hidden, weight, bias) if x is not None]
    if not fits or not all(x.is_floating_point() for x in given):
        raise ShapeError(
            f"{side}: hidden states (..., d), weight (v, d) and bias (v,), floating point; got "
            + ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in given)
        )
    if softcap is not None:
        check_positive(f"{side}_softcap", softcap)
    return Head(hidden, weight, bias, softcap or 0.0)


def _chunked(
    loss: str,
    kind: Kind,
    student: Head,
    teacher: Head,
    temperature: float,
    where: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    check_positive("temperature", temperature)
    lead, v = student.hidden.shape[:-1], student.weight.shape[0]
    if teacher.hidden.shape[:-1] != lead or teacher.weight.shape[0] != v:
        raise ShapeError(
            f"{loss} pairs token with token and class with class; got hidden states "
            f"{tuple(student.hidden.shape)} and {tuple(teacher.hidden.shape)}, weights "
            f"{tuple(student.weight.shape)} and {tuple(teacher.weight.shape)}"
        )
    for name, given, shape in (("where", where, (v,)), ("mask", mask, tuple(lead))):
        if given is not None and (given.dtype != torch.bool or tuple(given.shape) != shape):
            raise ShapeError(
                f"{loss}: {name} is boolean {shape}, True = keep; got {given.dtype} "
                f"{tuple(given.shape)}"
            )
    heads = [head._replace(hidden=head.hidden.flatten(0, -2)) if len(lead) != 1 else head
             for head in (student, teacher)]  # fmt: skip
    if not lead:
        heads = [head._replace(hidden=head.hidden[None]) for head in (student, teacher)]
    tensors = [x for head in heads for x in head.tensors]
    flat = None if mask is None else mask.reshape(-1)
    asked = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in tensors]
    plain = tensors[0].device.type == "cpu" and not torch.compiler.is_compiling()  # type: ignore[union-attr]
    plain = plain and not torch._C._are_functorch_transforms_active()  # noqa: SLF001
    settings = _Settings(
        (student.softcap, teacher.softcap, temperature, kind.beta),
        tuple(asked),
        kind.name,
        plain and any(asked) and not any(asked[3:]),
    )
    if torch.compiler.is_compiling():  # dynamo wants no tensor twice: tied weights
        tensors = [None if x is None else x.view_as(x) for x in tensors]
    value: Tensor = _Linear.apply(*tensors, where, flat, settings)[0]  # type: ignore[no-untyped-call]
    return temperature**2 * value.view(lead)


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


def _present(found: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """An operator returns tensors only."""
    return tuple(like.new_empty(0) if x is None else x for x in found)


@torch.library.custom_op(
    "distillkit::linear_divergence",
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    task, wanted = _read(arguments[:8], arguments[8:])
    with torch.autocast(arguments[0].device.type, enabled=False):
        value, found = run(task, wanted, slopes=arguments[11])
    return (value, *_present(found[:3], value))


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    task, wanted = _read(arguments[:8], arguments[8:])
    value = task.student.hidden.new_empty(task.student.hidden.shape[:1], dtype=task.dtype)
    some = [asked and arguments[11] for asked in wanted[:3]]
    guesses = [
        value.new_empty(x.shape) if asked and x is not None else None
        for x, asked in zip(task.student.tensors, some, strict=True)
    ]
    return (value, *_present(guesses, value))


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
    return _present(found, arguments[0])


@_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    task, wanted = _read(arguments[1:9], arguments[9:])
    tensors = [x for head in task.heads for x in head.tensors]
    found = [
        x.new_empty(x.shape) if some and x is not None else None
        for x, some in zip(tensors, wanted, strict=True)
    ]
    return _present(found, arguments[0])


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
            _, found = run(task, wanted, upstream, slopes=True)
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
