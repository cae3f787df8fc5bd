"""Divergences of logits from hidden states and output projections, without the logits."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from .._attention import widen
from .._transfer import trackable
from ..errors import OptionError, ShapeError
from ._divergence import Beta, Temperature, check_beta, one_class
from ._signature import check_positive, refuse_learned
from ._tiled._triton.support import why_not
from ._tiled.autograd import compare_in_tiles
from ._tiled.comparison import Engine, Kind, Pair, Side

__all__ = ["linear_jensen_shannon_divergence", "linear_kl_divergence"]

Method = Literal["auto", "blocked", "triton"]
METHODS = get_args(Method)

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
    method: Method = "auto",
) -> Tensor:
    r"""Forward KL of softened logits through the output projections, a few tokens at a time.

    .. math:: T^2\, KL(\mathrm{softmax}((h_t W_t^\top + b_t) / T) \,\|\,
                       \mathrm{softmax}((h_s W_s^\top + b_s) / T))

    The value of :func:`kl_divergence` on logits that never exist all at once: neither logits nor
    probabilities of tokens x vocabulary are held, forward or backward.

    Shape: ``(..., d), (v, d), (..., e), (v, e) -> (...)``; or, with projections of their own for
    every group of tokens, ``(n,d),(v,d),(n,e),(v,e)->(n)`` over equal leading axes.

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
        method: the way to compute; all give the same value and gradient. ``"blocked"`` has torch
            compute a chunk of tokens at a time. ``"triton"`` has one kernel of a GPU turn a
            chunk's logits into its values and slopes, which takes no float64. ``"auto"`` is
            ``"blocked"`` until the kernel has been measured.

    Returns:
        One value >= 0 for each token, in float32 at least. Gradients reach hidden states, weights
        and biases of both sides; on a CPU they are computed along with the value for equal token
        weights, and again only if the weights of the reduction turn out to differ.

    Raises:
        ShapeError: sizes that do not fit, with both printed; one class.
        OptionError: a temperature or soft cap that is not positive, an unknown method or one that
            these tensors do not allow.

    Examples:
        >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0986, 0.0]])
        >>> linear_kl_divergence(torch.zeros(1, 2), weight, hidden, weight)
        tensor([0.1308])

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2; in chunks
    as Hsu et al., *Liger Kernel*, 2024, https://arxiv.org/abs/2410.10989, do, here one value for
    each token.
    """
    student = _side(
        "student", student_hidden, student_weight, student_bias, student_softcap, temperature
    )
    teacher = _side(
        "teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap, temperature
    )
    name = "linear_kl_divergence"
    engine = _engine(name, method, [student, teacher])
    return _divergence(name, Kind("kl"), student, teacher, where, mask, engine)


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
    method: Method = "auto",
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence through the output projections.

    .. math:: T^2 [\beta\, KL(p \| m) + (1 - \beta)\, KL(q \| m)], \quad m = \beta p + (1-\beta) q

    with p and q the softened distributions of teacher and student. The value of
    :func:`jensen_shannon_divergence`, computed as :func:`linear_kl_divergence` does.

    Shape: ``(..., d), (v, d), (..., e), (v, e) -> (...)``, or ``(n,d),(v,d),(n,e),(v,e)->(n)``.
    Errors are those of :func:`linear_kl_divergence`.

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
        method: the way to compute.

    Returns:
        One value in [0, T^2 log 2] (at beta 0.5) for each token.

    Examples:
        >>> hidden, weight = torch.tensor([[9.0]]), torch.tensor([[-9.0], [9.0]])
        >>> linear_jensen_shannon_divergence(hidden, weight, -hidden, weight)
        tensor([0.6931])

    Source: Agarwal et al. 2024 (GKD), https://arxiv.org/abs/2306.13649, equation 1.
    """
    check_beta(beta)
    student = _side(
        "student", student_hidden, student_weight, student_bias, student_softcap, temperature
    )
    teacher = _side(
        "teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap, temperature
    )
    name = "linear_jensen_shannon_divergence"
    engine = _engine(name, method, [student, teacher])
    return _divergence(name, Kind("jsd", beta), student, teacher, where, mask, engine)


def _engine(loss: str, method: str, sides: list[Side]) -> Engine:
    """What computes, as asked."""
    if method not in METHODS:
        known = ", ".join(f'"{x}"' for x in METHODS)
        raise OptionError(f"{loss}: method is one of {known}; got {method!r}")
    if method != "triton":
        return ""
    reason = why_not([x for side in sides for x in side.leaves if x is not None])
    if reason:
        raise OptionError(
            f'{loss}: method="triton" cannot be, because {reason}; "auto" computes the same with '
            "the operations of torch"
        )
    return "triton"


def _side(
    name: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
) -> Side:
    """One model's head, once its tensors fit each other."""
    fits = hidden.ndim >= 1 and weight.ndim >= 2 and hidden.shape[-1] == weight.shape[-1]
    fits = fits and weight.shape[:-2] in (hidden.shape[:-2], ())
    fits = fits and (bias is None or bias.shape == weight.shape[:-1])
    given = [x for x in (hidden, weight, bias) if x is not None]
    if not fits or not all(x.is_floating_point() for x in given):
        raise ShapeError(
            f"{name}: hidden states (..., d), weight (v, d) and bias (v,), floating point; got "
            + ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in given)
        )
    if softcap is not None:
        check_positive(f"{name}_softcap", softcap)
    bias = None if bias is None else trackable(bias)
    query, key = trackable(hidden), trackable(weight)
    return Side(query, key, bias, None, temperature, softcap=softcap or 0.0)


def _divergence(
    loss: str,
    kind: Kind,
    student: Side,
    teacher: Side,
    where: Tensor | None,
    mask: Tensor | None,
    engine: Engine,
) -> Tensor:
    """A divergence through two heads, once they are over the same tokens and classes."""
    check_positive("temperature", student.temperature)
    refuse_learned(loss, temperature=student.temperature, beta=kind.beta)
    lead, v = student.query.shape[:-1], student.key.shape[-2]
    if teacher.query.shape[:-1] != lead or teacher.key.shape[:-1] != student.key.shape[:-1]:
        raise ShapeError(
            f"{loss} pairs token with token and class with class; got hidden states "
            f"{tuple(student.query.shape)} and {tuple(teacher.query.shape)}, weights "
            f"{tuple(student.key.shape)} and {tuple(teacher.key.shape)}"
        )
    if v < 2:
        raise one_class(loss, f"projections (v, d) {tuple(student.key.shape)}")
    for name, given, shape in (("where", where, (v,)), ("mask", mask, tuple(lead))):
        if given is not None and (given.dtype != torch.bool or tuple(given.shape) != shape):
            raise ShapeError(
                f"{loss}: {name} is boolean {shape}, True = keep; got {given.dtype} "
                f"{tuple(given.shape)}"
            )
    where = None if where is None else trackable(where)
    mask = None if mask is None else trackable(mask)
    if student.key.ndim == 2:
        rows = None if mask is None else mask.reshape(-1)
        pair = Pair(_with_tokens(student), _with_tokens(teacher), rows, kind, keys=where)
        return student.temperature**2 * compare_in_tiles(pair, "guess", engine).view(lead)
    # projections of their own: group by group
    masks = None if mask is None else mask.flatten(0, -2)
    groups = []
    for i in range(lead[:-1].numel()):
        group_mask = None if masks is None else masks[i]
        group = _of_group(student, i), _of_group(teacher, i)
        groups.append(_divergence(loss, kind, *group, where, group_mask, engine))
    if groups:
        return torch.stack(groups).view(lead)
    # without a group there is no value; the gradient, of nothing, is there all the same
    return widen(student.query).sum(-1) + widen(teacher.query).sum(-1)


def _with_tokens(side: Side) -> Side:
    """The side with one axis of tokens, whatever its hidden states have."""
    hidden = side.query
    if hidden.ndim == 1:
        return side._replace(query=hidden[None])
    return side if hidden.ndim == 2 else side._replace(query=hidden.flatten(0, -2))


def _of_group(side: Side, i: int) -> Side:
    bias = None if side.bias is None else side.bias.flatten(0, -2)[i]
    hidden, weight = (x.flatten(0, -3)[i] for x in (side.query, side.key))
    return side._replace(query=hidden, key=weight, bias=bias)
