"""Losses between two attentions, one value for each query row."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .._attention import Attention, both_rows
from .._attention.keep import rows_for
from ..errors import OptionError
from ._divergence import Beta, Temperature, check_beta, log_softmax
from ._feature import unit
from ._signature import check_positive, checked_attentions, refuse_learned
from ._tiled._triton.support import why_not_attention
from ._tiled.autograd import compare_in_tiles
from ._tiled.comparison import Engine, ForBackward, Kind, Pair, Side, Sides
from ._tiled.divergences import divergence, mean_over_heads
from ._tiled.tiling import can_sync

__all__ = [
    "attention_cosine_distance",
    "attention_jsd",
    "attention_kl",
    "attention_mse",
    "attention_reverse_kl",
    "shared_rows",
]

Heads = Literal["mean"] | None
Method = Literal["auto", "dense", "blocked", "saved", "recompute", "triton"]
METHODS = get_args(Method)

# measured: below, a handful of large operations beats many small ones
DENSE_SCORES = 50_000
# one float32 map: up to here keeping it costs less than computing it twice
SAVED_BYTES = 16 << 20


def attention_kl(
    student: Attention,
    teacher: Attention,
    *,
    temperature: Temperature = 1.0,
    heads: Literal["mean"] | None = None,
    method: Method = "auto",
) -> Tensor:
    r"""Forward KL of attention probabilities, KL(teacher || student), row by row.

    .. math:: T^2 \sum_k P_k (\log P_k - \log Q_k)

    with P the teacher's and Q the student's softmax of scores / T over the keys that each keeps.

    Shape: ``Attention`` (b, h, q, k) twice -> ``(b, h, q)``, or ``(b, 1, q)`` for
    ``heads="mean"``.

    Args:
        student: the student's attention; gradient reaches its queries and keys.
        teacher: the teacher's, over the same tokens.
        temperature: T > 0, divides the scores of both sides.
        heads: ``"mean"`` compares probabilities averaged over the heads of each side, whose
            numbers may then differ; None compares head with head.
        method: the way to compute; all give the same value and gradient. ``"dense"`` holds both
            maps of queries x keys and can be differentiated twice; ``"saved"`` holds the map of
            the gradient between forward and backward; ``"recompute"`` holds none and computes the
            scores twice. ``"blocked"`` takes the better of these two for the size, and on a CPU
            computes the gradients for equal row weights along with the value, again only if the
            weights turn out to differ. ``"auto"`` is ``"blocked"``, or ``"dense"`` for a small map
            and for what the others cannot do: scores replayed from a model, and a bias that asks
            for a gradient. ``"triton"`` computes in kernels for a GPU, which no other method
            chooses: they sum in float32, take heads of width 256 at most, and know no
            ``heads="mean"``.

    Returns:
        One value >= 0 for each row, in float32 at least. A row that does not count (see
        :func:`shared_rows`) has value 0 and no gradient. A key that the student dropped and the
        teacher uses makes its row +inf.

    Raises:
        ShapeError: unequal batches, heads or tokens, with both printed.
        OptionError: a temperature that is not positive, an unknown ``heads`` or ``method``, a
            method that these attentions do not allow.

    Examples:
        >>> student = Attention.from_probabilities(torch.tensor([[[[0.5, 0.5]]]]))
        >>> teacher = Attention.from_probabilities(torch.tensor([[[[1.0, 0.0]]]]))
        >>> attention_kl(student, teacher)
        tensor([[[0.6931]]])

    Source: Wang et al., *Distilled Dual-Encoder Model for Vision-Language Understanding*, EMNLP
    2022, https://arxiv.org/abs/2112.08723, "Cross-Modal Attention Distillation".
    """
    kind = Kind("kl")
    return _divergence("attention_kl", kind, student, teacher, temperature, heads, method)


def attention_reverse_kl(
    student: Attention,
    teacher: Attention,
    *,
    temperature: Temperature = 1.0,
    heads: Literal["mean"] | None = None,
    method: Method = "auto",
) -> Tensor:
    r"""Reverse KL of attention probabilities, KL(student || teacher), row by row.

    .. math:: T^2 \sum_k Q_k (\log Q_k - \log P_k)

    Shape, arguments and errors are those of :func:`attention_kl`.

    Returns:
        One value >= 0 for each row; +inf where the student uses a key that the teacher dropped.

    Examples:
        >>> student = Attention.from_probabilities(torch.tensor([[[[1.0, 0.0]]]]))
        >>> teacher = Attention.from_probabilities(torch.tensor([[[[0.5, 0.5]]]]))
        >>> attention_reverse_kl(student, teacher)
        tensor([[[0.6931]]])

    Source: the reverse of :func:`attention_kl`, as Gu et al. 2024 (MiniLLM) do for logits.
    """
    kind = Kind("reverse")
    return _divergence("attention_reverse_kl", kind, student, teacher, temperature, heads, method)


def attention_jsd(
    student: Attention,
    teacher: Attention,
    *,
    beta: Beta = 0.5,
    temperature: Temperature = 1.0,
    heads: Literal["mean"] | None = None,
    method: Method = "auto",
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence of attention probabilities, row by row.

    .. math:: T^2 [\beta\, KL(P \| M) + (1 - \beta)\, KL(Q \| M)], \quad M = \beta P + (1-\beta) Q

    Shape, further arguments and errors are those of :func:`attention_kl`.

    Args:
        student: the student's attention.
        teacher: the teacher's, over the same tokens.
        beta: the teacher's weight in the mixture, in (0, 1).
        temperature: T > 0.
        heads: ``"mean"`` compares probabilities averaged over heads.
        method: the way to compute.

    Returns:
        One value >= 0 for each row, finite whatever either side dropped.

    Examples:
        >>> student = Attention.from_probabilities(torch.tensor([[[[1.0, 0.0]]]]))
        >>> teacher = Attention.from_probabilities(torch.tensor([[[[0.0, 1.0]]]]))
        >>> attention_jsd(student, teacher)
        tensor([[[0.6931]]])

    Source: Agarwal et al. 2024 (GKD), https://arxiv.org/abs/2306.13649, equation 1, on attention.
    """
    check_beta(beta)
    kind = Kind("jsd", beta)
    return _divergence("attention_jsd", kind, student, teacher, temperature, heads, method)


def attention_mse(
    student: Attention,
    teacher: Attention,
    *,
    temperature: Temperature = 1.0,
    heads: Literal["mean"] | None = None,
) -> Tensor:
    r"""Mean squared difference of attention probabilities over the keys that either side keeps.

    .. math:: \frac{T^2}{k} \sum_k (P_k - Q_k)^2

    Shape, arguments and errors are those of :func:`attention_kl`.

    Returns:
        One value >= 0 for each row; exactly 0 for equal attentions.

    Examples:
        >>> student = Attention.from_scores(torch.tensor([[[[0.0, 0.0]]]]))
        >>> teacher = Attention.from_scores(torch.tensor([[[[50.0, 0.0]]]]))
        >>> attention_mse(student, teacher)
        tensor([[[0.2500]]])

    Source: Jiao et al., *TinyBERT*, 2020, https://arxiv.org/abs/1909.10351, equation 7 (there of
    the scores; probabilities are what is comparable between models).
    """
    student, teacher = _checked("attention_mse", student, teacher, temperature, heads)
    log_q, log_p = _compared(student, teacher, temperature, heads)
    kept = (log_q != -torch.inf) | (log_p != -torch.inf)
    squares = (log_p.exp() - log_q.exp()).square().sum(-1)
    return temperature**2 * squares / kept.sum(-1).clamp_min(1)


def attention_cosine_distance(
    student: Attention,
    teacher: Attention,
    *,
    temperature: Temperature = 1.0,
    heads: Literal["mean"] | None = None,
) -> Tensor:
    r"""One minus the cosine of two rows of attention probabilities.

    .. math:: T^2 \left(1 - \frac{\langle P, Q \rangle}{\|P\| \|Q\|}\right)

    Shape, arguments and errors are those of :func:`attention_kl`.

    Returns:
        One value in [0, T^2] for each row; a row that does not count has value 0.

    Examples:
        >>> student = Attention.from_probabilities(torch.tensor([[[[1.0, 0.0]]]]))
        >>> teacher = Attention.from_probabilities(torch.tensor([[[[0.0, 1.0]]]]))
        >>> attention_cosine_distance(student, teacher)
        tensor([[[1.]]])

    Source: the cosine of :func:`cosine_distance`, of probabilities.
    """
    student, teacher = _checked("attention_cosine_distance", student, teacher, temperature, heads)
    log_q, log_p = _compared(student, teacher, temperature, heads)
    counted = (log_p != -torch.inf).any(-1)  # NaN counts: a model that diverged must be seen
    cosine = (unit(log_q.exp()) * unit(log_p.exp())).sum(-1)
    return torch.where(counted, temperature**2 * (1 - cosine).clamp(0, 1), 0)


def shared_rows(
    student: Attention, teacher: Attention, *, heads: Literal["mean"] | None = None
) -> Tensor:
    """The rows that count for a loss: the mask of its mean.

    A row counts where the teacher has a key left for it and both sides' ``rows`` keep it.

    Args:
        student: the student's attention.
        teacher: the teacher's, over the same tokens.
        heads: what the loss was given: ``"mean"``, of averaged heads, has one value for all heads,
            and a row counts where it counts for each of them.

    Returns:
        Boolean, in the shape of the loss's value: ``(b, h, q)``, or ``(b, 1, q)`` for
        ``heads="mean"`` and where the numbers of heads differ, which only an average can compare.

    Raises:
        OptionError: an unknown ``heads``.

    Examples:
        >>> scores = torch.zeros(1, 1, 2, 3)
        >>> student = Attention.from_scores(scores, rows=torch.tensor([[True, False]]))
        >>> shared_rows(student, Attention.from_scores(scores))
        tensor([[[ True, False]]])
    """
    _check_heads("shared_rows", heads)
    rows = both_rows(teacher.valid_rows(), student.rows)
    assert rows is not None
    averaged = heads == "mean" or student.shape[1] != teacher.shape[1]
    return rows.all(1, keepdim=True) if averaged else rows


def _divergence(
    loss: str,
    kind: Kind,
    student: Attention,
    teacher: Attention,
    temperature: float,
    heads: Heads,
    method: str,
) -> Tensor:
    """A divergence of two attentions, in the way that their sizes ask for."""
    student, teacher = _checked(loss, student, teacher, temperature, heads)
    refuse_learned(loss, beta=kind.beta)
    way = _way(loss, student, teacher, _method_for(loss, temperature, method))
    if way == "dense":
        log_q, log_p = _compared(student, teacher, temperature, heads)
        value = divergence(kind, log_q, log_p)  # 0 where neither side counts anything
    else:
        keep: dict[str, ForBackward] = {"saved": "maps", "guess": "guess"}
        sides = Sides(*(_side(x, float(temperature)) for x in (student, teacher)))
        if way == "triton":
            _check_kernels(loss, sides, heads)
        rows = both_rows(student.rows, teacher.rows)
        pair = Pair(*sides, rows, kind, mean=heads == "mean")
        engine: Engine = "triton" if way == "triton" else ""
        value = compare_in_tiles(pair, keep.get(way, ""), engine)
    return temperature**2 * value


def _method_for(loss: str, temperature: float, method: str) -> str:
    """The method; that of a temperature that learns is dense: the tiles have no gradient to it."""
    if method in ("auto", "dense"):
        learned = isinstance(temperature, Tensor) and temperature.requires_grad
        return "dense" if learned and torch.is_grad_enabled() else method
    refuse_learned(f"{loss}, method={method!r}", temperature=temperature)
    return method


def _way(loss: str, student: Attention, teacher: Attention, method: str) -> str:
    """The way to compute: as asked, or as the sizes say."""
    if method not in METHODS:
        known = ", ".join(f'"{x}"' for x in METHODS)
        raise OptionError(f"{loss}: method is one of {known}; got {method!r}")
    if method == "dense":
        return method
    for side in (student, teacher):
        reason = _only_dense(side)
        if reason and method == "auto":
            return "dense"
        if reason:
            raise OptionError(
                f"{loss}: method={method!r} computes scores from queries and keys, block by "
                f'block, but {reason}; "auto" takes the dense way'
            )
    if method not in ("auto", "blocked"):
        return method
    b, h, q, k = student.shape
    scores = b * max(h, teacher.shape[1]) * q * k
    if scores <= DENSE_SCORES and method == "auto":
        return "dense"
    if can_sync(student.query.device) and not _requires_grad(teacher):
        return "guess"
    return "saved" if 4 * scores <= SAVED_BYTES else "recompute"


def _check_kernels(loss: str, sides: Sides[Side], heads: Heads) -> None:
    """Refuse what the kernels cannot compute."""
    reason = why_not_attention(sides, mean=heads == "mean")
    if reason:
        raise OptionError(
            f'{loss}: method="triton" cannot be, because {reason}; "auto" computes the same with '
            "the operations of torch"
        )


def _requires_grad(attention: Attention) -> bool:
    return attention.query.requires_grad or attention.key.requires_grad


def _only_dense(attention: Attention) -> str:
    """Why an attention's scores are not to be had block by block; empty if they are."""
    if attention.is_replayed:
        return "these scores are replayed from the model"
    if attention.bias is not None and attention.bias.requires_grad and torch.is_grad_enabled():
        return "the bias asks for a gradient"
    return ""


def _side(attention: Attention, temperature: float) -> Side:
    return Side(
        attention.query,
        attention.key,
        attention.bias,
        attention.mask,
        temperature,
        scale=attention.scale,
        causal=attention.causal,
    )


def _compared(
    student: Attention, teacher: Attention, temperature: float, heads: Heads
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides, -inf throughout where a row does not count."""
    rows = shared_rows(student, teacher, heads=heads)
    sides = [student] if teacher is student else [student, teacher]
    found = [
        _log_probabilities(side.with_rows(rows_for(rows, side.shape[1])), temperature, heads)
        for side in sides
    ]
    return found[0], found[-1]


def _log_probabilities(attention: Attention, temperature: float, heads: Heads) -> Tensor:
    log_p = log_softmax(attention.scores(), None, temperature)
    return log_p if heads is None else mean_over_heads(log_p)


def _check_heads(loss: str, heads: Heads) -> None:
    """Refuse what is no way to compare heads."""
    if heads not in (None, "mean"):
        raise OptionError(f'{loss}: heads is None or "mean"; got {heads!r}')


def _checked(
    loss: str, student: Attention, teacher: Attention, temperature: float, heads: Heads
) -> tuple[Attention, Attention]:
    """Both sides, once options and tokens fit."""
    check_positive("temperature", temperature)
    return checked_attentions(loss, student, teacher, heads=heads)
