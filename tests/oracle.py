"""What the losses must give, from the formulas: float64, row by row, in plain Python and numpy."""

from __future__ import annotations

import math

import numpy as np


def log_softmax(scores):
    top = max(scores)
    total = math.log(math.fsum(math.exp(s - top) for s in scores if s > -math.inf))
    return [s - top - total for s in scores]


def forward_kl(student_scores, teacher_scores):
    """KL(teacher || student) of two lists of scores."""
    log_q, log_p = log_softmax(student_scores), log_softmax(teacher_scores)
    terms = [math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True) if math.exp(p) > 0]
    return math.fsum(terms)


def kl_divergence(student, teacher, temperature=1.0, where=None):
    out = np.zeros(student.shape[:-1])
    where = np.ones(student.shape, bool) if where is None else np.broadcast_to(where, student.shape)
    for row in np.ndindex(out.shape):
        kept = [v for v in range(student.shape[-1]) if where[row][v]]
        s = [student[row][v] / temperature for v in kept]
        t = [teacher[row][v] / temperature for v in kept]
        if not kept or max(t) == -math.inf:
            out[row] = 0.0
        elif max(s) == -math.inf:
            out[row] = math.inf
        else:
            out[row] = temperature**2 * forward_kl(s, t)
    return out


def attention_rows(query, key, *, scale=None, keep=None, bias=None):
    """Scores of kept keys for every (b, h, q): {key position: score}."""
    b, h, q, d = query.shape
    group = h // key.shape[1]
    scale = d**-0.5 if scale is None else scale
    shape = (b, h, q, key.shape[2])
    keep = np.ones(shape, bool) if keep is None else np.broadcast_to(keep, shape)
    bias = np.zeros(shape) if bias is None else np.broadcast_to(bias, shape)
    rows = {}
    for i, j, m in np.ndindex(b, h, q):
        rows[i, j, m] = {
            n: scale * float(np.dot(query[i, j, m], key[i, j // group, n])) + bias[i, j, m, n]
            for n in range(key.shape[2])
            if keep[i, j, m, n]
        }
    return rows


def attention_kl(student_rows, teacher_rows, counted, temperature=1.0):
    """Values ``(b, h, q)``; counted rows only, keys that a side lacks have no mass there."""
    out = np.zeros(counted.shape)
    for place in np.ndindex(counted.shape):
        s, t = student_rows[place], teacher_rows[place]
        if not counted[place] or not t:
            continue
        log_p, log_q = (
            dict(zip(x, log_softmax([v / temperature for v in x.values()]), strict=True))
            if x
            else {}
            for x in (t, s)
        )
        total = math.fsum(
            math.exp(mass) * (mass - log_q.get(n, -math.inf))
            for n, mass in log_p.items()
            if math.exp(mass) > 0
        )
        out[place] = temperature**2 * total
    return out


def cosine_distance(student, teacher):
    out = np.zeros(student.shape[:-1])
    for row in np.ndindex(out.shape):
        a, b = np.linalg.norm(student[row]), np.linalg.norm(teacher[row])
        out[row] = (
            1.0 if a == 0 or b == 0 else 1 - float(np.dot(student[row] / a, teacher[row] / b))
        )
    return out


def masked_mean(values, mask):
    mask = np.broadcast_to(mask, values.shape)
    kept = [(values[i], mask[i]) for i in np.ndindex(values.shape) if mask[i]]
    total = math.fsum(v * m for v, m in kept)
    return total / math.fsum(m for _, m in kept) if kept else 0.0
