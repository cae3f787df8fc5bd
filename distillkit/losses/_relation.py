"""Losses between relations: of tokens to each other, and of the examples of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .._attention import Attention, both_rows, inner_products, split_heads
from ..errors import OptionError, ShapeError
from ._attention import Method, attention_kl
from ._divergence import forward_kl
from ._feature import representable, unit
from ._signature import checked_pair, checked_valid

__all__ = [
    "cka_distance",
    "distinct_pairs",
    "distinct_triplets",
    "pkt",
    "relation_cosine_distance",
    "relation_kl",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
]

_LEAST_SIMILARITY = 2.0**-21


def relation_kl(
    student: Attention | Tensor,
    teacher: Attention | Tensor,
    *,
    of: Literal["query", "key", "value"] = "query",
    relation_heads: int,
    where: Tensor | None = None,
    method: Method = "auto",
) -> Tensor:
    r"""Forward KL of the relations between tokens' queries, keys or values (MiniLMv2).

    .. math:: KL(\mathrm{softmax}(A_t A_t^\top / \sqrt{d_t}) \,\|\,
                 \mathrm{softmax}(A_s A_s^\top / \sqrt{d_s}))

    with heads concatenated per token, in order, and split into ``relation_heads`` again, so that
    heads and widths of the two models may differ.

    Shape: ``Attention`` twice, or ``(b, h, n, d)`` twice -> ``(b, relation_heads, n)``.

    Args:
        student: the student's attention, or its queries, keys or values.
        teacher: the teacher's, over the same n tokens.
        of: which vectors of an ``Attention`` are related.
        relation_heads: R; it divides both total widths.
        where: boolean ``(b, n)``: the tokens that are no padding; by default the ``rows`` that
            both attentions keep.
        method: the way to compute, as in :func:`attention_kl`.

    Returns:
        One value >= 0 for each token, 0 for padding; exactly 0 for equal vectors.

    Raises:
        ShapeError: unequal batches or tokens, a width that does not split.
        OptionError: an unknown ``of``.

    Examples:
        >>> student, teacher = torch.zeros(1, 2, 3, 4), torch.zeros(1, 4, 3, 6)
        >>> relation_kl(student, teacher, relation_heads=2).shape
        torch.Size([1, 2, 3])

    Source: Wang et al., *MiniLMv2*, 2021, https://arxiv.org/abs/2012.15828, section 3.1.
    """
    if of not in ("query", "key", "value"):
        raise OptionError(f'relation_kl: of is "query", "key" or "value"; got {of!r}')
    if where is None:
        where = _rows_of_both(student, teacher)
    one, other = (_relations(x, of, relation_heads, where) for x in (student, teacher))
    return attention_kl(one, other, method=method)


def _rows_of_both(student: Attention | Tensor, teacher: Attention | Tensor) -> Tensor | None:
    """The tokens that every head of both sides keeps, ``(b, n)``; None: all."""
    rows = [x.rows if isinstance(x, Attention) else None for x in (student, teacher)]
    kept = both_rows(*rows)
    return None if kept is None else kept.all(1)


def _relations(x: Attention | Tensor, of: str, heads: int, where: Tensor | None) -> Attention:
    vectors = getattr(x, of) if isinstance(x, Attention) else x
    if vectors is None:
        raise ShapeError(f"this Attention holds no {of}: it was not seen when it was captured")
    if vectors.ndim != 4:
        raise ShapeError(f"relation_kl takes (b, h, n, d); got {tuple(vectors.shape)}")
    split = split_heads(vectors, heads)
    mask = None if where is None else where[:, None, None, :]
    return Attention(split, split, mask=mask, rows=where)


def relation_cosine_distance(
    student: Tensor, teacher: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    r"""One minus the cosine of both models' matrices of inner products between tokens.

    .. math:: 1 - \frac{\langle S S^\top, T T^\top \rangle_F}
                       {\|S S^\top\|_F \, \|T T^\top\|_F}

    The vectors themselves are multiplied, not their directions: a long vector weighs more.

    Shape: ``(n,d),(n,e)->()``.

    Args:
        student: one vector for each token of an example.
        teacher: vectors of the same tokens, of any width.
        valid: boolean ``(..., n)``: the tokens that count. A term tells it: no padding, and what
            the term's ``mask`` keeps.

    Returns:
        One value in [0, 1] for each example: 1 where all vectors of a side are 0, and 0 where no
        token counts.

    Raises:
        ShapeError: unequal numbers of tokens, a ``valid`` of another shape.

    Examples:
        >>> tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> relation_cosine_distance(tokens, 3 * tokens.flip(-1))
        tensor(0.)
        >>> relation_cosine_distance(tokens, tokens.flip(0)).round(decimals=3)
        tensor(0.5290)

    Source: Cai et al., *LLaVA-KD*, 2025, https://arxiv.org/abs/2410.16236, "Relation
    Distillation" (there of visual tokens).
    """
    name = "relation_cosine_distance"
    student, teacher = checked_pair(name, "(n,d),(n,e)->()", student, teacher)
    valid = checked_valid(name, valid, student)
    one, other = (_token_relations(x, valid) for x in (student, teacher))
    distance = (1 - (unit(one) * unit(other)).sum(-1)).clamp(0, 1)
    return distance if valid is None else torch.where(valid.any(-1), distance, 0)


def _token_relations(x: Tensor, valid: Tensor | None) -> Tensor:
    """The inner products of all pairs of tokens, one after another, up to a factor."""
    if valid is not None:
        x = torch.where(valid[..., None], x, 0)
    scaled = representable(x.flatten(-2))[0].view(x.shape)  # no product of large numbers overflows
    return inner_products(scaled, scaled).flatten(-2)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Huber loss of the distances between examples, in units of their mean (RKD-D).

    .. math:: \mathrm{huber}(\|s_i - s_j\| / \mu_s - \|t_i - t_j\| / \mu_t), \quad \delta = 1

    Shape: ``(n,d),(n,e)->(n,n)``, zero on the diagonal.

    Args:
        student: one vector for each example.
        teacher: vectors of the same examples, of any width.

    Returns:
        One value >= 0 for each pair; exactly 0 for equal vectors, and for a batch of one. The
        gradient is finite for duplicates. ``distinct_pairs(n)`` masks the diagonal.

    Raises:
        ShapeError: unequal numbers of examples.

    Examples:
        >>> rkd_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [7.0]]))
        tensor([[0., 0.],
                [0., 0.]])

    Source: Park et al., *Relational Knowledge Distillation*, 2019,
    https://arxiv.org/abs/1904.05068, section 3.2.1.
    """
    student, teacher = checked_pair("rkd_distance", "(n,d),(n,e)->(n,n)", student, teacher)
    one, other = _mean_one_distances(student), _mean_one_distances(teacher)
    return F.huber_loss(one, other, reduction="none")


def _mean_one_distances(x: Tensor) -> Tensor:
    n = x.shape[-2]
    differences = x[..., :, None, :] - x[..., None, :, :]
    squares = differences.square().sum(-1)
    apart = squares != 0
    distances = torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)
    mean = distances.sum((-1, -2), keepdim=True) / max(n * (n - 1), 1)
    return distances / torch.where(mean != 0, mean, 1)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Huber loss of the angles that pairs of examples form at a third (RKD-A).

    .. math:: \mathrm{huber}(\cos \angle s_j s_i s_k - \cos \angle t_j t_i t_k)

    Shape: ``(n,d),(n,e)->(n,n,n)``; the first axis is the vertex i.

    Args:
        student: one vector for each example.
        teacher: vectors of the same examples, of any width.

    Returns:
        One value >= 0 for each triplet; 0 for degenerate ones, whose points coincide.
        ``distinct_triplets(n)`` masks those.

    Raises:
        ShapeError: unequal numbers of examples.

    Examples:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_angle(x, 3 * x).sum()
        tensor(0.)

    Source: Park et al. 2019, https://arxiv.org/abs/1904.05068, section 3.2.2.
    """
    student, teacher = checked_pair("rkd_angle", "(n,d),(n,e)->(n,n,n)", student, teacher)
    return F.huber_loss(_angles(student), _angles(teacher), reduction="none")


def _angles(x: Tensor) -> Tensor:
    directions = unit(x[..., None, :, :] - x[..., :, None, :])
    return inner_products(directions, directions)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared difference of the examples' similarities, each row brought to length 1.

    .. math:: (G^s_{ij} - G^t_{ij})^2, \quad G_i = (X X^\top)_i / \|(X X^\top)_i\|_2

    Shape: ``(n,d),(n,e)->(n,n)``.

    Args:
        student: one vector for each example.
        teacher: vectors of the same examples, of any width.

    Returns:
        One value >= 0 for each pair; exactly 0 for equal vectors. Its mean is the paper's loss.

    Raises:
        ShapeError: unequal numbers of examples.

    Examples:
        >>> similarity_preserving(torch.eye(2), torch.ones(2, 1)).sum()
        tensor(1.1716)

    Source: Tung and Mori, *Similarity-Preserving Knowledge Distillation*, 2019,
    https://arxiv.org/abs/1907.09682, section 3.
    """
    student, teacher = checked_pair("similarity_preserving", "(n,d),(n,e)->(n,n)", student, teacher)
    one, other = (unit(inner_products(x, x)) for x in (student, teacher))
    return (one - other).square()


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Forward KL of each example's similarities to the batch, read as probabilities (PKT).

    .. math:: \sum_j p_{ij} (\log p_{ij} - \log q_{ij}), \quad
              p_{ij} = k_{ij} / \textstyle\sum_j k_{ij}, \; k = (\cos + 1) / 2

    with the example itself among the j. A cosine is known to float32's rounding: k is at least
    2 ** -21, where the authors' code adds 1e-7, so that opposite vectors have a finite value.

    Shape: ``(n,d),(n,e)->(n)``.

    Args:
        student: one vector for each example.
        teacher: vectors of the same examples, of any width.

    Returns:
        One value >= 0 for each example; exactly 0 for equal vectors.

    Raises:
        ShapeError: unequal numbers of examples.

    Examples:
        >>> pkt(torch.eye(2), torch.ones(2, 1))
        tensor([0.0589, 0.0589])

    Source: Passalis and Tefas, *Learning Deep Representations with Probabilistic Knowledge
    Transfer*, 2018, https://arxiv.org/abs/1803.10837, "Probabilistic Knowledge Transfer".
    """
    student, teacher = checked_pair("pkt", "(n,d),(n,e)->(n)", student, teacher)
    return forward_kl(*(_log_similarities(x) for x in (student, teacher)))


def _log_similarities(x: Tensor) -> Tensor:
    directions = unit(x)
    kernel = (inner_products(directions, directions) + 1) / 2
    logs = kernel.clamp_min(_LEAST_SIMILARITY).log()
    return logs - logs.logsumexp(-1, keepdim=True)


def cka_distance(student: Tensor, teacher: Tensor, *, unbiased: bool = False) -> Tensor:
    r"""One minus linear centred kernel alignment of the batch.

    .. math:: 1 - \frac{HSIC(S S^\top, T T^\top)}
                       {\sqrt{HSIC(S S^\top, S S^\top)\, HSIC(T T^\top, T T^\top)}}

    Shape: ``(n,d),(n,e)->()``.

    Args:
        student: one vector for each example.
        teacher: vectors of the same examples, of any width.
        unbiased: the estimator of HSIC whose mean does not depend on n: for small batches, of at
            least 4 examples.

    Returns:
        One value in [0, 1] (unbiased: in [0, 2]); 1 where a side does not vary.

    Raises:
        ShapeError: unequal numbers of examples, fewer than 4 for ``unbiased``.

    Examples:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
        >>> cka_distance(x, -3 * x).round(decimals=3)
        tensor(0.)

    Source: Kornblith et al., *Similarity of Neural Network Representations Revisited*, 2019,
    https://arxiv.org/abs/1905.00414, section 3; unbiased: Song et al. 2012, equation 5.
    """
    student, teacher = checked_pair("cka_distance", "(n,d),(n,e)->()", student, teacher)
    n = student.shape[-2]
    if unbiased and n < 4:
        raise ShapeError(f"unbiased CKA needs at least 4 examples; got {n}")
    kernels = [inner_products(x, x) for x in map(_centered_examples, (student, teacher))]
    hsic = _unbiased_hsic if unbiased else _hsic
    cross, own, others = hsic(*kernels), hsic(kernels[0], kernels[0]), hsic(kernels[1], kernels[1])
    product = own * others
    varies = ~(product <= 0)  # NaN varies
    alignment = torch.where(varies, cross * torch.where(varies, product, 1).rsqrt(), 0)
    return (1 - alignment).clamp(0, 2 if unbiased else 1)


def _centered_examples(x: Tensor) -> Tensor:
    """Minus the mean example, in units of the largest entry; 0 where only rounding varies."""
    centered = x - x.mean(-2, keepdim=True)
    if not x.numel():
        return centered
    rounding = 4 * torch.finfo(x.dtype).eps * x.detach().abs().amax((-1, -2), keepdim=True)
    size = centered.detach().abs().amax((-1, -2), keepdim=True)
    varies = ~(size <= rounding)  # NaN varies
    return torch.where(varies, centered / torch.where(varies, size, 1), 0)


def _hsic(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((-1, -2))


def _unbiased_hsic(one: Tensor, other: Tensor) -> Tensor:
    n = one.shape[-1]
    off = 1 - torch.eye(n, dtype=one.dtype, device=one.device)
    one, other = one * off, other * off
    trace = (one * other).sum((-1, -2))
    sums = one.sum((-1, -2)) * other.sum((-1, -2)) / ((n - 1) * (n - 2))
    rows = (one.sum(-1) * other.sum(-1)).sum(-1) * 2 / (n - 2)
    return (trace + sums - rows) / (n * (n - 3))


def distinct_pairs(n: int) -> Tensor:
    """The mask of pairs (i, j) of different examples, boolean ``(n, n)``.

    Examples:
        >>> distinct_pairs(2)
        tensor([[False,  True],
                [ True, False]])
    """
    return ~torch.eye(n, dtype=torch.bool)


def distinct_triplets(n: int) -> Tensor:
    """The mask of triplets (i, j, k) of three different examples, boolean ``(n, n, n)``.

    Examples:
        >>> int(distinct_triplets(3).sum())
        6
    """
    apart = distinct_pairs(n)
    return apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
