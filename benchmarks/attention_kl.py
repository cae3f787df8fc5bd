"""Attention distillation: the textbook version, a well-written one, compiled, and ours.

    python benchmarks/attention_kl.py --json attention_kl.json
    python benchmarks/attention_kl.py --device cuda --json attention_kl-cuda.json

Every implementation takes queries and keys and returns the mean over the rows that count, of which
the backward is part of the step. One value for each row is reduced by ``masked_mean``. On a GPU
"ours, triton" is the kernels, and a table says how much of the machine they use; "FlexAttention" is
what can be had of a kernel that others wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from measure import arguments, compare, in_kept_pages, report, table
from torch import Tensor
from torch.nn import functional as F

from distillkit import Attention, losses


class Case(NamedTuple):
    """Batch, heads, queries, keys, width; which side is padded; how many rounds; what must be."""

    name: str
    shape: tuple[int, int, int, int, int]
    padded: str
    rounds: int
    time: tuple[float, float | None]  # at most this part of naive's; with kept pages
    memory: float


CASES = [
    Case("DiDE text-to-image, 40x145", (16, 12, 40, 145, 64), "queries", 41, (0.62, None), 0.42),
    Case("DiDE image-to-text, 145x40", (16, 12, 145, 40, 64), "keys", 41, (0.75, None), 0.42),
    Case("ViT-B/16 at 384, 40x577", (8, 12, 40, 577, 64), "queries", 31, (0.56, None), 0.42),
    Case("self, 577x577", (4, 12, 577, 577, 64), "", 9, (0.33, 0.80), 0.05),
    Case("self, 4096x4096, 4 heads", (1, 4, 4096, 4096, 128), "", 5, (0.30, 1.15), 0.02),
]

# what fills a GPU
ON_GPU = [
    Case("self, 4096x4096, batch 4, 16 heads", (4, 16, 4096, 4096, 64), "", 21, (0.05, None), 0.02),
    Case("self, 16384x16384, 4 heads", (1, 4, 16384, 16384, 128), "", 11, (0.05, None), 0.02),
]


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    teacher_query: Tensor
    teacher_key: Tensor
    keys: Tensor | None  # (b, 1, 1, k)
    rows: Tensor | None  # (b, 1, q)


def inputs(case: Case, dtype: torch.dtype, device: str) -> Inputs:
    b, h, q, k, d = case.shape
    generator = torch.Generator().manual_seed(0)

    def normal(n: int) -> Tensor:
        return torch.randn(b, h, n, d, generator=generator)

    teacher = normal(q), normal(k)
    student = [x + 0.3 * normal(x.shape[2]) for x in teacher]
    n = q if case.padded == "queries" else k
    lengths = torch.randint(n // 4, n + 1, (b, 1), generator=generator)
    kept = (torch.arange(n) < lengths).to(device)
    query, key = (x.to(device, dtype).requires_grad_() for x in student)
    teacher_query, teacher_key = (x.to(device, dtype) for x in teacher)
    keys = kept[:, None, None] if case.padded == "keys" else None
    rows = kept[:, None] if case.padded == "queries" else None
    return Inputs(query, key, teacher_query, teacher_key, keys, rows)


def naive(x: Inputs) -> Tensor:
    """What people write: two softmaxes and ``F.kl_div``."""
    scale = x.query.shape[-1] ** -0.5
    teacher = x.teacher_query @ x.teacher_key.mT * scale
    student = x.query @ x.key.mT * scale
    if x.query.dtype != torch.float32:  # as autocast does
        teacher, student = teacher.float(), student.float()
    if x.keys is not None:
        lowest = torch.finfo(teacher.dtype).min
        teacher, student = (one.masked_fill(~x.keys, lowest) for one in (teacher, student))
    rows = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
    return row_mean(rows, x.rows)


def good(x: Inputs) -> Tensor:
    """Written well: logarithms on both sides, the scale at the queries."""
    scale = x.query.shape[-1] ** -0.5
    teacher = ((x.teacher_query * scale) @ x.teacher_key.mT).float()
    student = ((x.query * scale) @ x.key.mT).float()
    if x.keys is not None:
        teacher, student = (one.masked_fill(~x.keys, -1e30) for one in (teacher, student))
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return row_mean((log_p.exp() * (log_p - log_q)).sum(-1), x.rows)


def row_mean(rows: Tensor, counted: Tensor | None) -> Tensor:
    if counted is None:
        return rows.mean()
    return torch.where(counted, rows, 0).sum() / (counted.sum() * rows.shape[1])


def ours(x: Inputs, method: str = "auto") -> Tensor:
    student = Attention(x.query, x.key, mask=x.keys, rows=x.rows)
    teacher = Attention(x.teacher_query, x.teacher_key, mask=x.keys, rows=x.rows)
    rows = losses.attention_kl(student, teacher, method=method)
    return losses.masked_mean(rows, losses.shared_rows(student, teacher))


def weighted(x: Inputs) -> Tensor:
    """Ours where every row has a weight of its own, which no guess foresees."""
    student = Attention(x.query, x.key, mask=x.keys, rows=x.rows)
    teacher = Attention(x.teacher_query, x.teacher_key, mask=x.keys, rows=x.rows)
    rows = losses.attention_kl(student, teacher)
    return (rows * torch.linspace(0.5, 1.5, rows.shape[-1], device=rows.device)).mean()


def by_flex_attention(x: Inputs) -> Tensor:
    """Three flash attentions instead of a map, for FlexAttention has no backward on a CPU.

    With the student's keys as values, the teacher's attention gives the sum over keys of
    ``p_j k_j``, whose product with a query is the mean score; the rest are logarithms of sums.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    kept = None if x.keys is None else x.keys[:, 0, 0]

    def keep(score: Tensor, b: Tensor, _: Tensor, __: Tensor, key: Tensor) -> Tensor:
        return torch.where(kept[b, key], score, -torch.inf)

    attend = partial(
        _compiled_flex_attention(),
        score_mod=None if kept is None else keep,
        return_aux=AuxRequest(lse=True),
    )
    of_student, teacher = attend(x.teacher_query, x.teacher_key, x.key)
    of_teacher, _ = attend(x.teacher_query, x.teacher_key, x.teacher_key)
    _, student = attend(x.query, x.key, x.key)
    own, others = x.teacher_query * of_teacher, x.query * of_student
    means = (own.float().sum(-1) - others.float().sum(-1)) * x.query.shape[-1] ** -0.5
    return row_mean(means + student.lse - teacher.lse, x.rows)


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def products(x: Inputs) -> None:
    """The four matrix products alone: the floor of every version that computes them once."""
    with torch.no_grad():
        scores = x.query.flatten(0, 1) @ x.key.flatten(0, 1).mT
        scores = torch.bmm(
            x.teacher_query.flatten(0, 1), x.teacher_key.flatten(0, 1).mT, out=scores
        )
        scores @ x.key.flatten(0, 1), scores.mT @ x.query.flatten(0, 1)


# whose gradient is compared with float64
EXACT = ("naive", "good", "ours", "ours, triton", "FlexAttention")


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    compiled = torch.compile(good, dynamic=False)
    implementations = {
        "naive": naive,
        "good": good,
        "compiled": compiled,
        "ours": ours,
        "ours, saved": lambda x: ours(x, "saved"),
        "ours, recompute": lambda x: ours(x, "recompute"),
        "ours, row weights": weighted,
    }
    cases = CASES
    if options.device == "cuda":
        implementations["ours, triton"] = lambda x: ours(x, "triton")
        implementations["FlexAttention"] = by_flex_attention
        cases = CASES + ON_GPU
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for case in cases:
            name = f"{case.name}, {'fp32' if dtype == torch.float32 else 'bf16'}"
            if options.only in name:
                figures[name] = measured(case, dtype, implementations, options)
    kept = in_kept_pages(options)
    report(
        options,
        "attention_kl",
        tables(figures, kept),
        figures | {f"{k}, kept pages": v for k, v in kept.items()},
    )


def measured(case: Case, dtype: torch.dtype, implementations: dict, options) -> dict:
    x = inputs(case, dtype, options.device)

    def before() -> None:
        x.query.grad = x.key.grad = None

    exact = (
        gradients(
            naive,
            inputs(case, torch.float32, options.device)._replace(
                **{
                    k: v.double()
                    for k, v in x._asdict().items()
                    if v is not None and v.is_floating_point()
                }
            ),
        )
        if x.query.numel() < 1e7
        else None
    )
    steps = {
        name: lambda function=function: function(x).backward()
        for name, function in implementations.items()
    }
    steps["products"] = lambda: products(x)
    rounds = options.rounds or (max(3, case.rounds // 5) if options.quick else case.rounds)
    found = compare(steps, rounds, options.device, before)
    scores = torch.tensor(case.shape[:4]).prod().item()
    for name, one in found.items():
        one["ns_per_score"] = 1e9 * one["cpu"] / scores
        one["to_products"] = one["cpu"] / found["products"]["cpu"]
        one |= rates(case, dtype, one["wall"])
        if exact is not None and name in EXACT:
            got = gradients(implementations[name], x)
            one["gradient_error"] = max(
                float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)
            )
    return found


def rates(case: Case, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """Operations of the eight products that the kernels need, and bytes that they must move."""
    from roofline import Shape, kernel_counts, tiles_for

    shape = Shape(*case.shape)
    counts = kernel_counts(shape, dtype.itemsize, tiles_for(shape, dtype.itemsize)).values()
    operations = 16 * shape.b * shape.h * shape.n * shape.m * shape.d
    moved = sum(x.memory for x in counts)
    return {"tflops": operations / seconds / 1e12, "gbs": moved / seconds / 1e9}


def gradients(function, x: Inputs) -> tuple[Tensor, ...]:
    leaves = [one.detach().requires_grad_() for one in (x.query, x.key)]
    return torch.autograd.grad(function(x._replace(query=leaves[0], key=leaves[1])), leaves)


def tables(figures: dict, kept: dict) -> dict[str, str]:
    found = {}
    for kind, title in (("fp32", "float32"), ("bf16", "bfloat16")):
        names = [name for name in figures if name.endswith(kind)]
        if not names:
            continue
        columns = [c for c in figures[names[0]] if c not in ("naive", "products")]
        for key, what in (
            ("cpu_ratio", "time (CPU)"),
            ("wall_ratio", "time (clock)"),
            ("peak_ratio", "peak memory"),
        ):
            rows = [
                [n.rpartition(",")[0], *(f"{figures[n][c][key]:.3f}" for c in columns)]
                for n in names
            ]
            found[f"{title}, {what} as a part of naive's"] = table(["shape", *columns], rows)
        if all(name in kept for name in names):
            rows = [
                [n.rpartition(",")[0], *(f"{kept[n][c]['cpu_ratio']:.3f}" for c in columns)]
                for n in names
            ]
            found[f"{title}, time (CPU) as a part of naive's, allocator keeps its pages"] = table(
                ["shape", *columns], rows
            )
        all_columns = list(figures[names[0]])
        rows = [
            [n.rpartition(",")[0], *(f"{figures[n][c]['ns_per_score']:.1f}" for c in all_columns)]
            for n in names
        ]
        found[f"{title}, nanoseconds per score (products: the four matrix products alone)"] = table(
            ["shape", *all_columns], rows
        )
        exact = [c for c in EXACT if c in all_columns]
        rows = [
            [
                n.rpartition(",")[0],
                *(f"{figures[n][c].get('gradient_error', float('nan')):.1e}" for c in exact),
            ]
            for n in names
        ]
        found[f"{title}, relative error of the gradient against float64"] = table(
            ["shape", *exact], rows
        )
    fused = [name for name in figures if "ours, triton" in figures[name]]
    if fused:
        rows = []
        for name in fused:
            one, naive_one = figures[name]["ours, triton"], figures[name]["naive"]
            rows.append([
                name, f"{1e3 * one['wall']:.3f}", f"{one['wall_ratio']:.3f}", f"{one['tflops']:.1f}",
                f"{one['gbs']:.0f}", f"{one['peak'] / 2**20:.1f}", f"{naive_one['peak'] / 2**20:.1f}",
            ])  # fmt: skip
        header = [
            "shape",
            "ms",
            "of naive's time",
            "TFLOP/s",
            "GB/s",
            "peak, MiB",
            "naive's peak, MiB",
        ]
        found["the kernels, forward and backward"] = table(header, rows)
    targets = []
    for case in CASES:
        name = f"{case.name}, fp32"
        if name in figures:
            one = figures[name]["ours"]
            warm = kept.get(name, {}).get("ours", {}).get("cpu_ratio")
            must = case.time[1]
            targets.append([
                case.name, f"{case.time[0]:.2f}", f"{one['cpu_ratio']:.3f}", f"{must:.2f}" if must else "",
                f"{warm:.3f}" if warm and must else "", f"{case.memory:.2f}", f"{one['peak_ratio']:.3f}",
            ])  # fmt: skip
    header = [
        "shape",
        "time, goal",
        "time",
        "kept pages, goal",
        "kept pages",
        "memory, goal",
        "memory",
    ]
    return {"Ours against the goals, float32, parts of naive's": table(header, targets), **found}


if __name__ == "__main__":
    main()
