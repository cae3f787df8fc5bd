"""Divergences between two categorical distributions, from their logits."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..errors import ShapeError
from ._signature import check_between, check_positive, checked_pair, checked_where

__all__ = [
    "jensen_shannon_divergence",
    "kl_divergence",
    "reverse_kl_divergence",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "total_variation",
    "universal_logit_distance",
]

Temperature = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(gt=0, lt=1)]


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Forward Kullback-Leibler divergence of softened logits, KL(teacher || student).

    .. math:: T^2 \sum_v p_v (\log p_v - \log q_v), \quad
              p = \mathrm{softmax}(t / T),\; q = \mathrm{softmax}(s / T)

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape; detach it to train the student alone.
        temperature: T > 0, softens both sides.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value >= 0 for each row, in float32 at least; exactly 0 for equal logits. A class that
        is -inf on both sides contributes 0; one that is -inf for the student alone, where the
        teacher has mass, makes the value +inf.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point or of one class, a ``where``
            that does not fit.
        OptionError: a temperature that is not positive.

    Examples:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]])
        >>> kl_divergence(student, teacher)
        tensor([0.1308])

    Source: Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015,
    https://arxiv.org/abs/1503.02531, section 2 (the factor T squared: its last paragraph).
    """
    log_q, log_p = _softened("kl_divergence", student, teacher, temperature, where)
    return temperature**2 * forward_kl(log_q, log_p)


def reverse_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Reverse Kullback-Leibler divergence of softened logits, KL(student || teacher).

    .. math:: T^2 \sum_v q_v (\log q_v - \log p_v)

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape; detach it to train the student alone.
        temperature: T > 0, softens both sides.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value >= 0 for each row, exactly 0 for equal logits; +inf where the student has mass on
        a class that is -inf for the teacher.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point or of one class, a ``where``
            that does not fit.
        OptionError: a temperature that is not positive.

    Examples:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]])
        >>> reverse_kl_divergence(student, teacher)
        tensor([0.1438])

    Source: Gu et al., *MiniLLM*, 2024, https://arxiv.org/abs/2306.08543, "Knowledge Distillation
    with Reverse KLD".
    """
    log_q, log_p = _softened("reverse_kl_divergence", student, teacher, temperature, where)
    return temperature**2 * forward_kl(log_p, log_q)


def jensen_shannon_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: Beta = 0.5,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence of softened logits.

    .. math:: T^2 [\beta\, KL(p \| m) + (1 - \beta)\, KL(q \| m)], \quad m = \beta p + (1-\beta) q

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape.
        beta: the teacher's weight in the mixture, in (0, 1). At the ends the divergence vanishes:
            use ``kl_divergence`` or ``reverse_kl_divergence``.
        temperature: T > 0.
        where: boolean, the classes that exist.

    Returns:
        One value >= 0 for each row, finite always; at most T^2 log 2 for beta = 0.5.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point or of one class, a ``where``
            that does not fit.
        OptionError: a temperature that is not positive, a beta outside (0, 1).

    Examples:
        >>> student, teacher = torch.tensor([[-50.0, 50.0]]), torch.tensor([[50.0, -50.0]])
        >>> jensen_shannon_divergence(student, teacher)
        tensor([0.6931])

    Source: Agarwal et al., *On-Policy Distillation of Language Models* (GKD), 2024,
    https://arxiv.org/abs/2306.13649, equation 1.
    """
    name = "jensen_shannon_divergence"
    check_beta(beta)
    log_q, log_p = _softened(name, student, teacher, temperature, where)
    return temperature**2 * mixture_divergence(log_q, log_p, beta)


def total_variation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Total variation distance of softened logits.

    .. math:: T^2\, \tfrac12 \sum_v |p_v - q_v|

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape; detach it to train the student alone.
        temperature: T > 0, softens both sides.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value in [0, T^2] for each row, exactly 0 for equal logits.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point or of one class, a ``where``
            that does not fit.
        OptionError: a temperature that is not positive.

    Examples:
        >>> total_variation(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))
        tensor([0.2500])

    Source: Wen et al., *f-Divergence Minimization for Sequence-Level Knowledge Distillation*,
    2023, https://arxiv.org/abs/2307.15190, "Total Variation Distance".
    """
    log_q, log_p = _softened("total_variation", student, teacher, temperature, where)
    return temperature**2 * 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy with the teacher's softened distribution as the label.

    .. math:: -T^2 \sum_v p_v \log q_v

    Its gradient to the student is that of :func:`kl_divergence`.

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape; detach it to train the student alone.
        temperature: T > 0, softens both sides.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value >= 0 for each row: the teacher's entropy where both agree, not 0.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point or of one class, a ``where``
            that does not fit.
        OptionError: a temperature that is not positive.

    Examples:
        >>> soft_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))
        tensor([0.6931])

    Source: Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531, section 2.
    """
    log_q, log_p = _softened("soft_cross_entropy", student, teacher, temperature, where)
    return temperature**2 * cross_entropy(log_q, log_p)


def soft_binary_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Binary cross-entropy of each class with the teacher's softened sigmoid as the label.

    .. math:: -T^2 \sum_v [\sigma(t_v/T) \log \sigma(s_v/T) + \sigma(-t_v/T) \log \sigma(-s_v/T)]

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape; detach it to train the student alone.
        temperature: T > 0, softens both sides.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value >= 0 for each row: the sum over classes, as the head of DiDE's visual question
        answering needs, where an answer is scored class by class.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point, a ``where`` that does not
            fit.
        OptionError: a temperature that is not positive.

    Examples:
        >>> soft_binary_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([1.3863])

    Source: Wang et al. 2022 (DiDE), https://arxiv.org/abs/2112.08723, "Soft Label
    Distillation", of its VQA head.
    """
    student, teacher = checked_pair("soft_binary_cross_entropy", "(v),(v)->()", student, teacher)
    where = checked_where(where, student)
    check_positive("temperature", temperature)
    if where is not None:
        student, teacher = torch.where(where, student, 0), torch.where(where, teacher, 0)
    total = torch.zeros_like(student)
    for sign in (1, -1):
        label, log_q = (sign * teacher / temperature).sigmoid(), sign * student / temperature
        # sigmoid(-inf) is no label for a class whose logarithm is -inf: 0 * inf stays out
        total = total - torch.where(label != 0, label, 0) * torch.where(
            label != 0, F.logsigmoid(log_q), 0
        )
    total = total if where is None else torch.where(where, total, 0)
    return temperature**2 * total.sum(-1)


def universal_logit_distance(
    student: Tensor, teacher: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    r"""Distance of sorted probabilities: for vocabularies that have nothing in common.

    .. math:: T^2 \sum_i |p_{(i)} - q_{(i)}|, \quad p_{(1)} \ge p_{(2)} \ge \dots

    where the shorter side is padded with probability 0.

    Shape: ``(v),(w)->()``.

    Args:
        student: logits.
        teacher: logits over another vocabulary; -inf bans a class exactly.
        temperature: T > 0, softens both sides.

    Returns:
        One value in [0, 2 T^2] for each row, exactly 0 for equal logits.

    Raises:
        ShapeError: unequal leading axes, logits that are not floating point or of one class.
        OptionError: a temperature that is not positive.

    Examples:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -torch.inf, 0.0]])
        >>> universal_logit_distance(student, teacher)
        tensor([0.])

    Source: Boizard et al., *Towards Cross-Tokenizer Distillation*, 2024,
    https://arxiv.org/abs/2402.12030, "Universal Logit Distillation".
    """
    student, teacher = checked_pair("universal_logit_distance", "(v),(w)->()", student, teacher)
    check_classes("universal_logit_distance", student, teacher)
    check_positive("temperature", temperature)
    q, p = (
        log_softmax(x, None, temperature).exp().sort(-1, descending=True).values
        for x in (student, teacher)
    )
    longest = max(q.shape[-1], p.shape[-1])
    q, p = (F.pad(x, (0, longest - x.shape[-1])) for x in (q, p))
    return temperature**2 * (p - q).abs().sum(-1)


def log_softmax(scores: Tensor, where: Tensor | None, temperature: float) -> Tensor:
    """Log-probabilities of the kept entries, -inf for the others.

    Shape: ``(v)->(v)``. Entries that are -inf count as dropped; a row without kept entries is
    -inf throughout and has no gradient. What a dropped entry held reaches nothing.
    """
    # NaN is no -inf: a model that diverged must be seen
    kept = scores != -torch.inf if where is None else where & (scores != -torch.inf)
    some = kept.any(-1, keepdim=True)
    # all -inf has no softmax: such a row is computed from zeros and dropped afterwards
    if isinstance(temperature, Tensor):  # -inf / T would give its gradient NaN
        scores = torch.where(kept, scores, 0)
    filled = torch.where(kept, scores / temperature, torch.where(some, -torch.inf, 0.0))
    return torch.where(kept, filled.log_softmax(-1), -torch.inf)


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities.

    An entry without mass in p contributes 0; one that only q lacks makes the value +inf.
    """
    has_mass = log_p != -torch.inf
    lacking = has_mass & (log_q == -torch.inf)
    # a difference of two infinities is NaN, and so is 0 * inf where p underflows: both stay out
    difference = torch.where(has_mass & ~lacking, log_p - log_q, 0)
    return torch.where(lacking.any(-1), torch.inf, (log_p.exp() * difference).sum(-1))


def cross_entropy(log_q: Tensor, log_p: Tensor) -> Tensor:
    """-sum p log q from log-probabilities, by the rules of :func:`forward_kl`."""
    has_mass = log_p != -torch.inf
    lacking = has_mass & (log_q == -torch.inf)
    safe = torch.where(has_mass & ~lacking, log_q, 0)
    return torch.where(lacking.any(-1), torch.inf, -(log_p.exp() * safe).sum(-1))


def mixture_divergence(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence from log-probabilities, beta on p's side."""
    some = (log_p != -torch.inf) | (log_q != -torch.inf)
    if isinstance(beta, Tensor):
        shares = beta.log(), torch.log1p(-beta)
        weighted = torch.stack([log_p + shares[0], log_q + shares[1]])
    else:
        weighted = torch.stack([log_p + math.log(beta), log_q + math.log1p(-beta)])
    log_m = torch.where(some, torch.where(some, weighted, 0).logsumexp(0), -torch.inf)
    parts = beta * forward_kl(log_m, log_p) + (1 - beta) * forward_kl(log_m, log_q)
    return parts.clamp_min(0)  # rounding alone is below


def check_classes(loss: str, *logits: Tensor) -> None:
    """Refuse logits of one class: their softmax is 1 whatever they are, and teaches nothing.

    Raises:
        ShapeError: fewer than two classes on any side.
    """
    if any(x.shape[-1] < 2 for x in logits):
        raise one_class(
            loss, "logits (..., v) " + " and ".join(str(tuple(x.shape)) for x in logits)
        )


def one_class(loss: str, found: str) -> ShapeError:
    """The error for logits of fewer than two classes."""
    return ShapeError(
        f"{loss}: one class has no distribution, its softmax is 1 whatever the logit is; got "
        f"{found}. For yes/no or matching scores use soft_binary_cross_entropy; for retrieval "
        "arrange the scores as (b, candidates)"
    )


def check_beta(beta: float) -> None:
    """Refuse a mixture that is no mixture."""
    fix = "at 0 and 1 the divergence vanishes: use the reverse or the forward KL"
    check_between("beta", beta, 0, 1, fix)


def _softened(
    name: str, student: Tensor, teacher: Tensor, temperature: float, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Checked and softened: log-probabilities of student and teacher."""
    student, teacher = checked_pair(name, "(v),(v)->()", student, teacher)
    check_classes(name, student, teacher)
    where = checked_where(where, student)
    check_positive("temperature", temperature)
    return log_softmax(student, where, temperature), log_softmax(teacher, where, temperature)
