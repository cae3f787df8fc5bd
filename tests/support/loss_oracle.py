"""What the losses must give, from the specification: float64 numpy, one row at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Row = dict[int, float]  # key (or class) -> number; what is not kept is not in it


@dataclass(frozen=True)
class Attention:
    """What one attention consumed: query (b, h, q, d), key (b, g, k, d), and what was kept."""

    query: Any
    key: Any
    scale: float | None = None
    mask: Any = None
    bias: Any = None
    causal: bool = False
    rows: Any = None


# one row


def _log_softmax(scores: Row) -> Row:
    """Logarithms of the softmax; -inf scores stay -inf; nothing with mass gives all -inf."""
    if any(math.isnan(s) or s == math.inf for s in scores.values()):
        return dict.fromkeys(scores, math.nan)
    top = max(scores.values(), default=-math.inf)
    if top == -math.inf:
        return dict.fromkeys(scores, -math.inf)
    total = math.log(math.fsum(math.exp(s - top) for s in scores.values()))
    return {n: s - top - total for n, s in scores.items()}


def _kl(log_q: Row, log_p: Row) -> float:
    """Sum of p (log p - log q) over what p has mass on; +inf where q has none there."""
    terms = []
    for n, lp in log_p.items():
        if lp == -math.inf:
            continue  # no mass: 0, whatever q says
        lq = log_q.get(n, -math.inf)
        if lq == -math.inf:
            return math.inf
        terms.append(math.exp(lp) * (lp - lq))
    return math.fsum(terms)


def _tempered(scores: Row, temperature: float) -> Row:
    return {n: s / temperature for n, s in scores.items()}


# divergences and features


def kl_divergence(
    student: Any, teacher: Any, *, temperature: float = 1.0, where: Any = None
) -> Floats:
    """T^2 KL(teacher || student) of logits (..., v); `where` keeps classes."""
    student, teacher = _same_shape(student, teacher)
    where = np.broadcast_to(True if where is None else np.asarray(where, bool), student.shape)
    out = np.zeros(student.shape[:-1])
    for at in np.ndindex(out.shape):
        kept = [v for v in range(student.shape[-1]) if where[at][v]]
        s = _tempered({v: float(student[at][v]) for v in kept}, temperature)
        t = _tempered({v: float(teacher[at][v]) for v in kept}, temperature)
        out[at] = temperature**2 * _kl(_log_softmax(s), _log_softmax(t))
    return out


def mse(student: Any, teacher: Any) -> Floats:
    """Mean over d of (s - t)^2; a width of 0 gives 0."""
    student, teacher = _same_shape(student, teacher)
    out = np.zeros(student.shape[:-1])
    for at in np.ndindex(out.shape):
        pairs = zip(student[at].tolist(), teacher[at].tolist(), strict=True)
        squares = [(s - t) ** 2 for s, t in pairs]
        out[at] = math.fsum(squares) / len(squares) if squares else 0.0
    return out


def cosine_distance(student: Any, teacher: Any) -> Floats:
    """1 - cosine, at least 0; a zero vector on either side gives 1."""
    student, teacher = _same_shape(student, teacher)
    out = np.zeros(student.shape[:-1])
    for at in np.ndindex(out.shape):
        s, t = _direction(student[at].tolist()), _direction(teacher[at].tolist())
        if not s or not t:
            out[at] = 1.0
        else:
            out[at] = max(0.0, 1.0 - math.fsum(a * b for a, b in zip(s, t, strict=True)))
    return out


def _direction(vector: list[float]) -> list[float]:
    """The vector over its length; nothing for a zero vector. Divided first by its largest entry."""
    largest = max((abs(x) for x in vector), default=0.0)
    if largest == 0:
        return []
    scaled = [x / largest for x in vector]
    length = math.sqrt(math.fsum(x * x for x in scaled))
    return [x / length for x in scaled]


# reductions


def masked_mean(values: Any, mask: Any = None, *, normalizer: float | None = None) -> float:
    """Weighted sum of kept entries over the sum of their weights, or over `normalizer`."""
    values, mask = np.broadcast_arrays(
        np.asarray(values, float), True if mask is None else np.asarray(mask)
    )
    total, weights = [], []
    for at in np.ndindex(values.shape):
        weight = float(mask[at])
        if weight == 0:
            continue  # dropped: may hold anything
        total.append(weight * float(values[at]))
        weights.append(weight)
    if not weights:
        return 0.0
    return math.fsum(total) / (math.fsum(weights) if normalizer is None else normalizer)


def mean_per_row(values: Any, mask: Any = None) -> float:
    """Mean over all kept entries: every row weighs the same."""
    return masked_mean(values, mask)


def mean_per_example(values: Any, mask: Any = None) -> float:
    """Mean over examples of each one's masked mean; an example with nothing kept is a 0."""
    values = np.asarray(values, float)
    mask = np.broadcast_to(True if mask is None else np.asarray(mask), values.shape)
    means = [masked_mean(values[i], mask[i]) for i in range(values.shape[0])]
    return math.fsum(means) / len(means) if means else 0.0


# attention


def attention_probabilities(
    query: Any,
    key: Any,
    *,
    scale: float | None = None,
    mask: Any = None,
    bias: Any = None,
    causal: bool = False,
) -> Floats:
    """Softmax over kept keys, (b, h, q, k); a row with no key left is all 0."""
    attention = _of(Attention(query, key, scale, mask, bias, causal))
    b, h, q, k = _shape(attention)
    out = np.zeros((b, h, q, k))
    for i, j, m in np.ndindex(b, h, q):
        for n, lp in _log_softmax(_scores(attention, i, j, m)).items():
            out[i, j, m, n] = math.exp(lp)
    return out


def attention_kl(
    student: Attention | Mapping[str, Any],
    teacher: Attention | Mapping[str, Any],
    *,
    temperature: float = 1.0,
    heads: Literal["mean"] | None = None,
) -> tuple[Floats, Bools]:
    """T^2 KL(teacher || student) per row and the rows that count, both (b, h, q).

    heads="mean" compares head-averaged probabilities; the head axis then has size 1.
    """
    student, teacher = _of(student), _of(teacher)
    (b, h, q, k), (tb, th, tq, tk) = _shape(student), _shape(teacher)
    if (b, q, k) != (tb, tq, tk):
        raise ValueError(f"batch, queries, keys differ: {(b, q, k)} and {(tb, tq, tk)}")
    if heads is None and h != th:
        raise ValueError(f"heads differ: {h} and {th}")
    groups = [range(h)] if heads == "mean" else [range(j, j + 1) for j in range(h)]
    teacher_groups = [range(th)] if heads == "mean" else groups
    values = np.zeros((b, len(groups), q))
    counted = np.zeros((b, len(groups), q), bool)
    for i, j, m in np.ndindex(values.shape):
        s_heads = [n for n in groups[j] if _row_kept(student, i, n, m)]
        t_heads = [n for n in teacher_groups[j] if _row_kept(teacher, i, n, m)]
        if not s_heads or not t_heads:
            continue
        log_p = _average(teacher, i, t_heads, m, temperature)
        if not log_p:
            continue  # the teacher has no key left
        log_q = _average(student, i, s_heads, m, temperature)
        counted[i, j, m] = True
        values[i, j, m] = temperature**2 * _kl(log_q, log_p)
    return values, counted


def between(
    attention: Attention | Mapping[str, Any],
    query_positions: Sequence[Sequence[int]],
    key_positions: Sequence[Sequence[int]],
) -> list[Floats]:
    """Per example, (h, queries, keys): the softmax of the block's own scores.

    Positions are of the whole sequence, and so are the mask, the bias and the causal order.
    """
    attention = _of(attention)
    blocks = []
    for i, (queries, keys) in enumerate(zip(query_positions, key_positions, strict=True)):
        block = np.zeros((_shape(attention)[1], len(queries), len(keys)))
        for j, a in np.ndindex(block.shape[:2]):
            log_p = _log_softmax(_scores(attention, i, j, queries[a], keys))
            for c, n in enumerate(keys):
                block[j, a, c] = math.exp(log_p[n]) if n in log_p else 0.0
        blocks.append(block)
    return blocks


def cross_attention(
    query_of: Attention | Mapping[str, Any],
    key_of: Attention | Mapping[str, Any],
    rows: Any = None,
    keys: Any = None,
) -> Attention:
    """Queries of one tower over keys of the other: its own masks, biases, causal order dropped.

    `rows` (b, q) and `keys` (b, k) say what is not padding; the scale is the query's tower's.
    """
    query_of, key_of = _of(query_of), _of(key_of)
    query, key = query_of.query, key_of.key
    for axis, what in ((0, "batch"), (1, "heads"), (3, "widths")):
        if query.shape[axis] != key.shape[axis]:
            raise ValueError(f"{what} differ: {query.shape[axis]} and {key.shape[axis]}")
    return _of(
        Attention(
            query,
            key,
            scale=query_of.scale,
            mask=None if keys is None else np.asarray(keys, bool)[:, None, None, :],
            rows=None if rows is None else np.asarray(rows, bool)[:, None, :],
        )
    )


def cross(
    query_of: Attention | Mapping[str, Any],
    key_of: Attention | Mapping[str, Any],
    rows: Any = None,
    keys: Any = None,
) -> Floats:
    """Probabilities (b, h, q, k) of `cross_attention`; padded keys 0, rows dropped are all 0."""
    attention = cross_attention(query_of, key_of, rows, keys)
    out = np.zeros(_shape(attention))
    for i, j, m in np.ndindex(out.shape[:3]):
        if _row_kept(attention, i, j, m):
            for n, lp in _log_softmax(_scores(attention, i, j, m)).items():
                out[i, j, m, n] = math.exp(lp)
    return out


def dide_loss(
    student_text: tuple[Any, Any],
    student_image: tuple[Any, Any],
    teacher_text: tuple[Any, Any],
    teacher_image: tuple[Any, Any],
    text_keep: Any,
) -> float:
    """The paper's loss of one layer: text rows over image keys plus image rows over text keys.

    Each modality is (query, key), each (b, h, n, d); text_keep (b, n_text), True = not padding.
    Padded text keys are left out; the mean is over batch, heads and all rows, padded text too.
    """
    keep = np.asarray(text_keep, bool)
    to_image = _kl_of_all_rows(
        (student_text[0], student_image[1]), (teacher_text[0], teacher_image[1]), None
    )
    to_text = _kl_of_all_rows(
        (student_image[0], student_text[1]), (teacher_image[0], teacher_text[1]), keep
    )
    return to_image + to_text


def _kl_of_all_rows(
    student: tuple[Any, Any], teacher: tuple[Any, Any], keep: Bools | None
) -> float:
    """KL(teacher || student) averaged over every row; a row with no key left is a 0."""
    mask = None if keep is None else keep[:, None, None, :]
    s, t = _of(Attention(*student, mask=mask)), _of(Attention(*teacher, mask=mask))
    rows = [
        _kl(_log_softmax(_scores(s, *at)), _log_softmax(_scores(t, *at)))
        for at in np.ndindex(_shape(t)[:3])
    ]
    return math.fsum(rows) / len(rows) if rows else 0.0


def _of(attention: Attention | Mapping[str, Any]) -> Attention:
    """The same in float64, everything optional broadcast to its full shape."""
    a = Attention(**attention) if isinstance(attention, Mapping) else attention
    query, key = np.asarray(a.query, float), np.asarray(a.key, float)
    (b, h, q, d), (kb, g, k, kd) = query.shape, key.shape
    if b != kb or d != kd or h % g:
        raise ValueError(f"queries {query.shape} do not fit keys {key.shape}")
    return Attention(
        query,
        key,
        d**-0.5 if a.scale is None else float(a.scale),
        np.broadcast_to(True if a.mask is None else np.asarray(a.mask, bool), (b, h, q, k)),
        np.broadcast_to(0.0 if a.bias is None else np.asarray(a.bias, float), (b, h, q, k)),
        a.causal,
        np.broadcast_to(True if a.rows is None else np.asarray(a.rows, bool), (b, h, q)),
    )


def _shape(a: Attention) -> tuple[int, int, int, int]:
    b, h, q, _ = a.query.shape
    return b, h, q, a.key.shape[2]


def _row_kept(a: Attention, i: int, j: int, m: int) -> bool:
    return bool(a.rows[i, j, m])


def _scores(a: Attention, i: int, j: int, m: int, among: Iterable[int] | None = None) -> Row:
    """Scores of one row at its kept keys; a bias of -inf drops the key, as the mask does."""
    assert a.scale is not None  # _of has set it
    heads_per_key_head = a.query.shape[1] // a.key.shape[1]
    scores = {}
    for n in range(a.key.shape[2]) if among is None else among:
        if not a.mask[i, j, m, n] or (a.causal and n > m) or a.bias[i, j, m, n] == -math.inf:
            continue
        products = zip(
            a.query[i, j, m].tolist(), a.key[i, j // heads_per_key_head, n].tolist(), strict=True
        )
        scores[n] = a.scale * math.fsum(x * y for x, y in products) + float(a.bias[i, j, m, n])
    return scores


def _average(a: Attention, i: int, heads: Sequence[int], m: int, temperature: float) -> Row:
    """Logarithm of the mean of the heads' rows, over heads with a key left; {} if there is none."""
    rows = [_log_softmax(_tempered(_scores(a, i, j, m), temperature)) for j in heads]
    rows = [row for row in rows if any(lp != -math.inf for lp in row.values())]
    if len(rows) < 2:
        return rows[0] if rows else {}
    mean = {}
    for n in sorted({n for row in rows for n in row}):
        logs = [row.get(n, -math.inf) for row in rows]
        top = max(logs)
        if top == -math.inf:
            mean[n] = -math.inf
        else:
            mean[n] = top + math.log(math.fsum(math.exp(lp - top) for lp in logs) / len(rows))
    return mean


def _same_shape(student: Any, teacher: Any) -> tuple[Floats, Floats]:
    student, teacher = np.asarray(student, float), np.asarray(teacher, float)
    if student.shape != teacher.shape:
        raise ValueError(f"student {student.shape}, teacher {teacher.shape}")
    return student, teacher
