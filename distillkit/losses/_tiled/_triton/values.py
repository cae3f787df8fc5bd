"""The value of each row, and what its slopes are computed from again."""

from __future__ import annotations

import triton
import triton.language as tl

from .scores import (
    DROPPED,
    JSD,
    LN2,
    REVERSE,
    counted_rows,
    keys_in_use,
    load_vectors,
    score_tile,
)


@triton.jit
def compute_values(
    student,
    teacher,
    rows_mask,
    spans,
    value,
    statistics,
    H,
    N,
    row_blocks,
    beta,
    KIND: tl.constexpr,
    STUDENT_WIDTH: tl.constexpr,
    TEACHER_WIDTH: tl.constexpr,
    STUDENT_BLOCK: tl.constexpr,
    TEACHER_BLOCK: tl.constexpr,
    STUDENT_CAUSAL: tl.constexpr,
    TEACHER_CAUSAL: tl.constexpr,
    STUDENT_BIAS_OF_KEYS: tl.constexpr,
    TEACHER_BIAS_OF_KEYS: tl.constexpr,
    KEEP_THE_SAME: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of rows of one head: values (b, h, n) and six statistics (6, b, h, n).

    The statistics are: maximum and reciprocal sum of the student's powers, of the teacher's, and
    the constants of the student's and the teacher's slopes. A reciprocal of 0 marks a row without
    a gradient.
    """
    program = tl.program_id(0)
    head = (program // row_blocks).to(tl.int64)
    b, h = head // H, head % H
    first_row = (program % row_blocks) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    counted = counted_rows(rows_mask, b, h, rows, N)

    first = 0
    last = tl.maximum(student.keys, teacher.keys)
    if STUDENT_CAUSAL and TEACHER_CAUSAL:
        last = tl.minimum(last, first_row + ROWS)
    if spans is not None:
        first = tl.load(spans + head * 4 + 2) // KEYS * KEYS
        last = tl.minimum(last, tl.load(spans + head * 4 + 3))
        any_row = tl.max(counted.to(tl.int32), 0)
        last = tl.where(any_row > 0, last, first)

    query = load_vectors(
        student.query, student.query_strides, b, h, rows, counted, STUDENT_WIDTH, STUDENT_BLOCK
    )
    teacher_query = load_vectors(
        teacher.query, teacher.query_strides, b, h, rows, counted, TEACHER_WIDTH, TEACHER_BLOCK
    )

    high_s = tl.full((ROWS,), DROPPED, tl.float32)
    high_t = tl.full((ROWS,), DROPPED, tl.float32)
    sum_s = tl.zeros((ROWS,), tl.float32)
    sum_t = tl.zeros((ROWS,), tl.float32)
    x = tl.zeros((ROWS,), tl.float32)
    lacking = tl.zeros((ROWS,), tl.int32)
    for start in range(first, last, KEYS):
        columns = start + tl.arange(0, KEYS)
        seen_s = keys_in_use(student, b, h, columns)
        key = load_vectors(
            student.key, student.key_strides, b, h // student.sharing, columns, seen_s,
            STUDENT_WIDTH, STUDENT_BLOCK,
        )  # fmt: skip
        s, keep_s = score_tile(
            query, key, student, b, h, rows, first_row, columns, seen_s, N,
            STUDENT_CAUSAL, STUDENT_BIAS_OF_KEYS, PRECISION,
        )  # fmt: skip
        seen_t = keys_in_use(teacher, b, h, columns)
        key = load_vectors(
            teacher.key, teacher.key_strides, b, h // teacher.sharing, columns, seen_t,
            TEACHER_WIDTH, TEACHER_BLOCK,
        )  # fmt: skip
        t, keep_t = score_tile(
            teacher_query, key, teacher, b, h, rows, first_row, columns, seen_t, N,
            TEACHER_CAUSAL, TEACHER_BIAS_OF_KEYS, PRECISION,
        )  # fmt: skip

        new_s = tl.maximum(high_s, tl.max(s, 1))
        new_t = tl.maximum(high_t, tl.max(t, 1))
        s = s - new_s[:, None]
        t = t - new_t[:, None]
        # before its first kept key a row's maximum is that of a dropped one, whose power is 1
        power_s = tl.where(keep_s, tl.exp2(s), 0.0)
        power_t = tl.where(keep_t, tl.exp2(t), 0.0)
        down_s = high_s - new_s
        down_t = high_t - new_t
        if KIND != JSD:
            if KIND == REVERSE:
                shift = tl.where(sum_s > 0, down_s - down_t, 0.0)
                x = tl.exp2(down_s) * (x + sum_s * shift) + tl.sum(power_s * (s - t), 1)
                if not KEEP_THE_SAME:
                    lacking = lacking | tl.max((keep_s & (keep_t == 0)).to(tl.int32), 1)
            else:
                shift = tl.where(sum_t > 0, down_t - down_s, 0.0)
                x = tl.exp2(down_t) * (x + sum_t * shift) + tl.sum(power_t * (t - s), 1)
                if not KEEP_THE_SAME:
                    lacking = lacking | tl.max((keep_t & (keep_s == 0)).to(tl.int32), 1)
        sum_s = sum_s * tl.exp2(down_s) + tl.sum(power_s, 1)
        sum_t = sum_t * tl.exp2(down_t) + tl.sum(power_t, 1)
        high_s = new_s
        high_t = new_t

    some_s = sum_s != 0  # NaN is some: a model that diverged must be seen
    some_t = sum_t != 0
    live = counted & some_s & some_t & (lacking == 0)
    inverse_s = 1.0 / tl.where(some_s, sum_s, 1.0)
    inverse_t = 1.0 / tl.where(some_t, sum_t, 1.0)
    log_s = -tl.log2(inverse_s)
    log_t = -tl.log2(inverse_t)
    if KIND == JSD:
        of_s = tl.zeros((ROWS,), tl.float32)
        of_t = tl.zeros((ROWS,), tl.float32)
        for start in range(first, last, KEYS):
            columns = start + tl.arange(0, KEYS)
            seen_s = keys_in_use(student, b, h, columns)
            key = load_vectors(
                student.key, student.key_strides, b, h // student.sharing, columns, seen_s,
                STUDENT_WIDTH, STUDENT_BLOCK,
            )  # fmt: skip
            s, keep_s = score_tile(
                query, key, student, b, h, rows, first_row, columns, seen_s, N,
                STUDENT_CAUSAL, STUDENT_BIAS_OF_KEYS, PRECISION,
            )  # fmt: skip
            seen_t = keys_in_use(teacher, b, h, columns)
            key = load_vectors(
                teacher.key, teacher.key_strides, b, h // teacher.sharing, columns, seen_t,
                TEACHER_WIDTH, TEACHER_BLOCK,
            )  # fmt: skip
            t, keep_t = score_tile(
                teacher_query, key, teacher, b, h, rows, first_row, columns, seen_t, N,
                TEACHER_CAUSAL, TEACHER_BIAS_OF_KEYS, PRECISION,
            )  # fmt: skip
            s = s - high_s[:, None]
            t = t - high_t[:, None]
            q = tl.where(keep_s, tl.exp2(s) * inverse_s[:, None], 0.0)
            p = tl.where(keep_t, tl.exp2(t) * inverse_t[:, None], 0.0)
            log_m = log_mixture(q, p, beta)
            of_s += tl.sum(tl.where(keep_s, q * ((s - log_s[:, None]) - log_m), 0.0), 1)
            of_t += tl.sum(tl.where(keep_t, p * ((t - log_t[:, None]) - log_m), 0.0), 1)
        of_s = of_s * LN2
        of_t = of_t * LN2
        found = beta * of_t + (1 - beta) * of_s
        # a student without a key is no distribution: what is left is the teacher's half
        found = tl.where(some_s, found, -beta * tl.log2(beta) * LN2)
        found = tl.where(some_t, found, 0.0)
    elif KIND == REVERSE:
        found = tl.where(some_s, (x * inverse_s + (log_t - log_s)) * LN2, 0.0)
        of_s = found
        of_t = found
    else:
        found = tl.where(some_t, (x * inverse_t + (log_s - log_t)) * LN2, 0.0)
        of_s = found
        of_t = found
    found = tl.where(found < 0, 0.0, found)  # rounding alone is below
    found = tl.where(lacking > 0, float("inf"), found)

    place = head * N + rows
    inside = rows < N
    size = tl.num_programs(0).to(tl.int64) // row_blocks * N
    tl.store(value + place, tl.where(counted, found, 0.0), mask=inside)
    tl.store(statistics + place, high_s, mask=inside)
    tl.store(statistics + size + place, tl.where(live, inverse_s, 0.0), mask=inside)
    tl.store(statistics + 2 * size + place, high_t, mask=inside)
    tl.store(statistics + 3 * size + place, tl.where(live, inverse_t, 0.0), mask=inside)
    tl.store(statistics + 4 * size + place, of_s, mask=inside)
    tl.store(statistics + 5 * size + place, of_t, mask=inside)


@triton.jit
def log_mixture(q, p, beta):
    """The logarithm, in base 2, of a mixture of two probabilities; finite where both vanish."""
    # a constant below the normal numbers of float32 would be a float64
    return tl.log2(tl.maximum(beta * p + (1 - beta) * q, 1.2e-38))
