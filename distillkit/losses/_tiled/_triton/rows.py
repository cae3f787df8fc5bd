"""Value and slopes of rows of logits that are there: each read twice and written once."""

from __future__ import annotations

import triton
import triton.language as tl

from .scores import DROPPED, JSD, LN2
from .values import log_mixture

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_logits(start, keep_mask, columns, V):
    """A block of a row in base 2, and which classes of it count."""
    inside = columns < V
    keep = inside
    if keep_mask is not None:
        keep = keep & (tl.load(keep_mask + columns, mask=inside, other=0) != 0)
    x = tl.load(start + columns, mask=keep, other=0.0) * LOG2_E
    return tl.where(keep, x, DROPPED), keep


@triton.jit
def compare_rows(
    student,
    teacher,
    student_keep,
    teacher_keep,
    value,
    V,
    beta,
    KIND: tl.constexpr,
    OF_STUDENT: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    KEEP_THE_SAME: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of two contiguous (n, v): its value, and its slopes in place of its logits."""
    row = tl.program_id(0).to(tl.int64)
    student = student + row * V
    teacher = teacher + row * V
    high_s = tl.full((), DROPPED, tl.float32)
    high_t = tl.full((), DROPPED, tl.float32)
    sum_s = tl.full((), 0.0, tl.float32)
    sum_t = tl.full((), 0.0, tl.float32)
    x = tl.full((), 0.0, tl.float32)
    lacking = tl.full((), 0, tl.int32)
    for first in range(0, V, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        s, keep_s = load_logits(student, student_keep, columns, V)
        t, keep_t = load_logits(teacher, teacher_keep, columns, V)
        new_s = tl.maximum(high_s, tl.max(s, 0))
        new_t = tl.maximum(high_t, tl.max(t, 0))
        s = s - new_s
        t = t - new_t
        power_s = tl.where(keep_s, tl.exp2(s), 0.0)
        power_t = tl.where(keep_t, tl.exp2(t), 0.0)
        down_s = high_s - new_s
        down_t = high_t - new_t
        if KIND != JSD:
            shift = tl.where(sum_t > 0, down_t - down_s, 0.0)
            x = tl.exp2(down_t) * (x + sum_t * shift) + tl.sum(power_t * (t - s), 0)
            if not KEEP_THE_SAME:
                lacking = lacking | tl.max((keep_t & (keep_s == 0)).to(tl.int32), 0)
        sum_s = sum_s * tl.exp2(down_s) + tl.sum(power_s, 0)
        sum_t = sum_t * tl.exp2(down_t) + tl.sum(power_t, 0)
        high_s = new_s
        high_t = new_t

    some_s = sum_s != 0  # NaN is some: a model that diverged must be seen
    some_t = sum_t != 0
    live = some_s & some_t & (lacking == 0)
    inverse_s = 1.0 / tl.where(some_s, sum_s, 1.0)
    inverse_t = 1.0 / tl.where(some_t, sum_t, 1.0)
    log_s = -tl.log2(inverse_s)
    log_t = -tl.log2(inverse_t)
    of_s = x
    of_t = x
    if KIND == JSD:
        of_s = tl.full((), 0.0, tl.float32)
        of_t = tl.full((), 0.0, tl.float32)
        for first in range(0, V, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            s, keep_s = load_logits(student, student_keep, columns, V)
            t, keep_t = load_logits(teacher, teacher_keep, columns, V)
            s = s - high_s
            t = t - high_t
            q = tl.where(keep_s, tl.exp2(s) * inverse_s, 0.0)
            p = tl.where(keep_t, tl.exp2(t) * inverse_t, 0.0)
            log_m = log_mixture(q, p, beta)
            of_s += tl.sum(tl.where(keep_s, q * ((s - log_s) - log_m), 0.0), 0)
            of_t += tl.sum(tl.where(keep_t, p * ((t - log_t) - log_m), 0.0), 0)
        of_s = of_s * LN2
        of_t = of_t * LN2
        # a side without a class is no distribution: what is left is the other's share
        of_s = tl.where(some_s & (some_t == 0), -tl.log2(1 - beta) * LN2, of_s)
        of_t = tl.where(some_t & (some_s == 0), -tl.log2(beta) * LN2, of_t)
        found = beta * of_t + (1 - beta) * of_s
    else:
        found = tl.where(some_t, (x * inverse_t + (log_s - log_t)) * LN2, 0.0)
        of_t = found
    found = tl.where(found < 0, 0.0, found)  # rounding alone is below
    tl.store(value + row, tl.where(lacking > 0, float("inf"), found))

    if OF_STUDENT or OF_TEACHER:
        for first in range(0, V, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            s, keep_s = load_logits(student, student_keep, columns, V)
            t, keep_t = load_logits(teacher, teacher_keep, columns, V)
            s = s - high_s
            t = t - high_t
            q = tl.where(keep_s, tl.exp2(s) * inverse_s, 0.0)
            p = tl.where(keep_t, tl.exp2(t) * inverse_t, 0.0)
            if KIND == JSD:
                log_m = log_mixture(q, p, beta)
                student_slope = (1 - beta) * q * (((s - log_s) - log_m) * LN2 - of_s)
                teacher_slope = beta * p * (((t - log_t) - log_m) * LN2 - of_t)
            else:
                student_slope = q - p
                teacher_slope = p * (((t - log_t) - (s - log_s)) * LN2 - of_t)
            inside = columns < V
            if OF_STUDENT:
                kept = tl.where(live, tl.where(keep_s, student_slope, 0.0), 0.0)
                tl.store(student + columns, kept, mask=inside)
            if OF_TEACHER:
                kept = tl.where(live, tl.where(keep_t, teacher_slope, 0.0), 0.0)
                tl.store(teacher + columns, kept, mask=inside)
