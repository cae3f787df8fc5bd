"""Divergences of logits from hidden states and output projections, without the logits."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .._attention import widen
from .._transfer import trackable
from ..errors import ShapeError
from ._blockwise import Kind
from ._divergence import Beta, Temperature, check_beta, one_class
from ._linear_chunks import Head, Task
from ._linear_function import linear_divergence
from ._signature import check_positive

__all__ = ["linear_jensen_shannon_divergence", "linear_kl_divergence"]

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

    Returns:
        One value >= 0 for each token, in float32 at least. Gradients reach hidden states, weights
        and biases of both sides; on a CPU they are computed along with the value for equal token
        weights, and again only if the weights of the reduction turn out to differ.

    Raises:
        ShapeError: sizes that do not fit, with both printed; one class.
        OptionError: a temperature or soft cap that is not positive.

    Examples:
        >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0986, 0.0]])
        >>> linear_kl_divergence(torch.zeros(1, 2), weight, hidden, weight)
        tensor([0.1308])

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2; in chunks
    as Hsu et al., *Liger Kernel*, 2024, https://arxiv.org/abs/2410.10989, do, here one value for
    each token.
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


def _head(
    side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None
) -> Head:
    fits = hidden.ndim >= 1 and weight.ndim >= 2 and hidden.shape[-1] == weight.shape[-1]
    fits = fits and weight.shape[:-2] in (hidden.shape[:-2], ())
    fits = fits and (bias is None or bias.shape == weight.shape[:-1])
    given = [x for x in (hidden, weight, bias) if x is not None]
    if not fits or not all(x.is_floating_point() for x in given):
        raise ShapeError(
            f"{side}: hidden states (..., d), weight (v, d) and bias (v,), floating point; got "
            + ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in given)
        )
    if softcap is not None:
        check_positive(f"{side}_softcap", softcap)
    bias = None if bias is None else trackable(bias)
    return Head(trackable(hidden), trackable(weight), bias, softcap or 0.0)


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
    lead, v = student.hidden.shape[:-1], student.weight.shape[-2]
    if teacher.hidden.shape[:-1] != lead or teacher.weight.shape[:-1] != student.weight.shape[:-1]:
        raise ShapeError(
            f"{loss} pairs token with token and class with class; got hidden states "
            f"{tuple(student.hidden.shape)} and {tuple(teacher.hidden.shape)}, weights "
            f"{tuple(student.weight.shape)} and {tuple(teacher.weight.shape)}"
        )
    if v < 2:
        raise one_class(loss, f"projections (v, d) {tuple(student.weight.shape)}")
    for name, given, shape in (("where", where, (v,)), ("mask", mask, tuple(lead))):
        if given is not None and (given.dtype != torch.bool or tuple(given.shape) != shape):
            raise ShapeError(
                f"{loss}: {name} is boolean {shape}, True = keep; got {given.dtype} "
                f"{tuple(given.shape)}"
            )
    where = None if where is None else trackable(where)
    mask = None if mask is None else trackable(mask)
    if student.weight.ndim > 2:  # projections of their own: group by group
        masks = None if mask is None else mask.flatten(0, -2)
        groups = [
            _chunked(
                loss, kind, _of_group(student, i), _of_group(teacher, i), temperature, where,
                None if masks is None else masks[i],
            )
            for i in range(lead[:-1].numel())
        ]  # fmt: skip
        if groups:
            return torch.stack(groups).view(lead)
        # without a group there is no value; the gradient, of nothing, is there all the same
        return widen(student.hidden).sum(-1) + widen(teacher.hidden).sum(-1)
    heads = [head._replace(hidden=head.hidden.flatten(0, -2)) if len(lead) != 1 else head
             for head in (student, teacher)]  # fmt: skip
    if not lead:
        heads = [head._replace(hidden=head.hidden[None]) for head in (student, teacher)]
    flat = None if mask is None else mask.reshape(-1)
    value = linear_divergence(Task(heads[0], heads[1], where, flat, temperature, kind))
    return temperature**2 * value.view(lead)


def _of_group(head: Head, i: int) -> Head:
    bias = None if head.bias is None else head.bias.flatten(0, -2)[i]
    hidden, weight = (x.flatten(0, -3)[i] for x in (head.hidden, head.weight))
    return Head(hidden, weight, bias, head.softcap)
