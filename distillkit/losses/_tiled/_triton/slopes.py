"""The gradients of queries and keys: slopes of the scores, computed again and summed at once."""

from __future__ import annotations

import triton
import triton.language as tl

from .scores import (
    JSD,
    KL,
    LN2,
    counted_rows,
    keys_in_use,
    load_vectors,
    score_tile,
    slope_product,
)
from .values import log_mixture


@triton.jit
def slope_tile(
    s, t, row, beta, KIND: tl.constexpr, OF_TEACHER: tl.constexpr
):  # fmt: skip
    """The derivatives of the rows' values by the scores of one side."""
    high_s, inverse_s, high_t, inverse_t, constant = row
    s = s - high_s[:, None]
    t = t - high_t[:, None]
    q = tl.exp2(s) * inverse_s[:, None]
    p = tl.exp2(t) * inverse_t[:, None]
    if KIND == JSD:
        log_m = log_mixture(q, p, beta)
        if OF_TEACHER:
            log_p = t + tl.log2(inverse_t)[:, None]
            return beta * p * ((log_p - log_m) * LN2 - constant[:, None])
        log_q = s + tl.log2(inverse_s)[:, None]
        return (1 - beta) * q * ((log_q - log_m) * LN2 - constant[:, None])
    # forward for the student and reverse for the teacher: the side that is not averaged over
    if OF_TEACHER != (KIND == KL):
        if OF_TEACHER:
            return p - q
        return q - p
    log_q = s + tl.log2(inverse_s)[:, None]
    log_p = t + tl.log2(inverse_t)[:, None]
    if OF_TEACHER:
        return p * ((log_p - log_q) * LN2 - constant[:, None])
    return q * ((log_q - log_p) * LN2 - constant[:, None])


@triton.jit
def load_rows(statistics, upstream, head, rows, N, size, OF_TEACHER: tl.constexpr):
    """What the forward left of some rows, which of them have a gradient, and their weights."""
    place = head * N + rows
    inside = rows < N
    high_s = tl.load(statistics + place, mask=inside, other=0.0)
    inverse_s = tl.load(statistics + size + place, mask=inside, other=0.0)
    high_t = tl.load(statistics + 2 * size + place, mask=inside, other=0.0)
    inverse_t = tl.load(statistics + 3 * size + place, mask=inside, other=0.0)
    slot = 5 if OF_TEACHER else 4
    constant = tl.load(statistics + slot * size + place, mask=inside, other=0.0)
    weight = tl.load(upstream + place, mask=inside, other=0.0)
    live = (inverse_s != 0) & inside
    return (high_s, inverse_s, high_t, inverse_t, constant), live, weight


@triton.jit
def sum_over_keys(
    student,
    teacher,
    rows_mask,
    spans,
    statistics,
    upstream,
    gradient,
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
    OF_TEACHER: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF_PRECISION: tl.constexpr,
):
    """The gradient of a block of one head's queries, of one side: contiguous (b, h, n, width)."""
    program = tl.program_id(0)
    head = (program // row_blocks).to(tl.int64)
    b, h = head // H, head % H
    size = tl.num_programs(0).to(tl.int64) // row_blocks * N
    first_row = (program % row_blocks) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    counted = counted_rows(rows_mask, b, h, rows, N)
    row, live, weight = load_rows(statistics, upstream, head, rows, N, size, OF_TEACHER)

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
    WIDTH: tl.constexpr = TEACHER_WIDTH if OF_TEACHER else STUDENT_WIDTH
    BLOCK: tl.constexpr = TEACHER_BLOCK if OF_TEACHER else STUDENT_BLOCK
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(first, last, KEYS):
        columns = start + tl.arange(0, KEYS)
        seen_s = keys_in_use(student, b, h, columns)
        key = load_vectors(
            student.key, student.key_strides, b, h // student.sharing, columns, seen_s,
            STUDENT_WIDTH, STUDENT_BLOCK,
        )  # fmt: skip
        s, _ = score_tile(
            query, key, student, b, h, rows, first_row, columns, seen_s, N,
            STUDENT_CAUSAL, STUDENT_BIAS_OF_KEYS, PRECISION,
        )  # fmt: skip
        seen_t = keys_in_use(teacher, b, h, columns)
        teacher_key = load_vectors(
            teacher.key, teacher.key_strides, b, h // teacher.sharing, columns, seen_t,
            TEACHER_WIDTH, TEACHER_BLOCK,
        )  # fmt: skip
        t, _ = score_tile(
            teacher_query, teacher_key, teacher, b, h, rows, first_row, columns, seen_t, N,
            TEACHER_CAUSAL, TEACHER_BIAS_OF_KEYS, PRECISION,
        )  # fmt: skip
        slope = slope_tile(s, t, row, beta, KIND, OF_TEACHER)
        if OF_TEACHER:
            total += slope_product(slope, teacher_key, PRECISION, HALF_PRECISION)
        else:
            total += slope_product(slope, key, PRECISION, HALF_PRECISION)

    factor = teacher.factor if OF_TEACHER else student.factor
    total = tl.where(live[:, None], total * (weight * (factor * LN2))[:, None], 0.0)
    widths = tl.arange(0, BLOCK)
    places = (head * N + rows)[:, None] * WIDTH + widths[None, :]
    inside = (rows < N)[:, None] & (widths < WIDTH)[None, :]
    tl.store(gradient + places, total.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def sum_over_rows(
    student,
    teacher,
    rows_mask,
    spans,
    statistics,
    upstream,
    gradient,
    H,
    N,
    M,
    size,
    key_blocks,
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
    OF_TEACHER: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF_PRECISION: tl.constexpr,
):
    """The gradient of a block of one head's keys, of one side: contiguous (b, g, m, width).

    The query heads that share the keys are summed in their order by one program: every run adds
    the same numbers in the same order.
    """
    program = tl.program_id(0)
    key_head = (program // key_blocks).to(tl.int64)
    start_key = (program % key_blocks) * KEYS
    columns = start_key + tl.arange(0, KEYS)
    sharing = teacher.sharing if OF_TEACHER else student.sharing
    key_heads = H // sharing
    b = key_head // key_heads
    WIDTH: tl.constexpr = TEACHER_WIDTH if OF_TEACHER else STUDENT_WIDTH
    BLOCK: tl.constexpr = TEACHER_BLOCK if OF_TEACHER else STUDENT_BLOCK
    total = tl.zeros((KEYS, BLOCK), tl.float32)
    for one in range(0, sharing):
        h = (key_head % key_heads) * sharing + one
        head = b * H + h
        first = 0
        last = N
        if spans is not None:
            first = tl.load(spans + head * 4)
            last = tl.load(spans + head * 4 + 1)
            used = start_key < tl.load(spans + head * 4 + 3)
            used = used & (start_key + KEYS > tl.load(spans + head * 4 + 2))
            last = tl.where(used, last, first)
        if STUDENT_CAUSAL and TEACHER_CAUSAL:
            first = tl.maximum(first, start_key)
        first = first // ROWS * ROWS
        seen_s = keys_in_use(student, b, h, columns)
        key = load_vectors(
            student.key, student.key_strides, b, h // student.sharing, columns, seen_s,
            STUDENT_WIDTH, STUDENT_BLOCK,
        )  # fmt: skip
        seen_t = keys_in_use(teacher, b, h, columns)
        teacher_key = load_vectors(
            teacher.key, teacher.key_strides, b, h // teacher.sharing, columns, seen_t,
            TEACHER_WIDTH, TEACHER_BLOCK,
        )  # fmt: skip
        for first_row in range(first, last, ROWS):
            rows = first_row + tl.arange(0, ROWS)
            counted = counted_rows(rows_mask, b, h, rows, N)
            row, live, weight = load_rows(statistics, upstream, head, rows, N, size, OF_TEACHER)
            query = load_vectors(
                student.query, student.query_strides, b, h, rows, counted,
                STUDENT_WIDTH, STUDENT_BLOCK,
            )  # fmt: skip
            s, _ = score_tile(
                query, key, student, b, h, rows, first_row, columns, seen_s, N,
                STUDENT_CAUSAL, STUDENT_BIAS_OF_KEYS, PRECISION,
            )  # fmt: skip
            teacher_query = load_vectors(
                teacher.query, teacher.query_strides, b, h, rows, counted,
                TEACHER_WIDTH, TEACHER_BLOCK,
            )  # fmt: skip
            t, _ = score_tile(
                teacher_query, teacher_key, teacher, b, h, rows, first_row, columns, seen_t, N,
                TEACHER_CAUSAL, TEACHER_BIAS_OF_KEYS, PRECISION,
            )  # fmt: skip
            slope = slope_tile(s, t, row, beta, KIND, OF_TEACHER) * weight[:, None]
            slope = tl.trans(tl.where(live[:, None], slope, 0.0))
            if OF_TEACHER:
                total += slope_product(slope, teacher_query, PRECISION, HALF_PRECISION)
            else:
                total += slope_product(slope, query, PRECISION, HALF_PRECISION)

    factor = teacher.factor if OF_TEACHER else student.factor
    total = total * (factor * LN2)
    widths = tl.arange(0, BLOCK)
    places = (key_head * M + columns)[:, None] * WIDTH + widths[None, :]
    inside = (columns < M)[:, None] & (widths < WIDTH)[None, :]
    tl.store(gradient + places, total.to(gradient.dtype.element_ty), mask=inside)
