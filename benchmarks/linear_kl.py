"""Logit distillation through the output projection: naive, compiled, Liger's, TRL's and ours.

    python benchmarks/linear_kl.py --json linear_kl.json

All start from hidden states and projections and end in the gradients of the student's. Liger's has
the Jensen-Shannon divergence, as "ours, JSD" does; TRL's is given the forward KL (its beta of 0).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from measure import arguments, compare, in_kept_pages, report, table
from torch import Tensor
from torch.nn import functional as F

from distillkit import losses

TEMPERATURE = 2.0


class Case(NamedTuple):
    """Tokens, classes, widths of student and teacher, rounds."""

    name: str
    tokens: int
    classes: int
    widths: tuple[int, int]
    rounds: int


CASES = [
    Case("1024 tokens, 32k", 1024, 32_000, (384, 768), 5),
    Case("2048 tokens, 32k", 2048, 32_000, (384, 768), 3),
    Case("512 tokens, 128k", 512, 128_256, (384, 768), 3),
    Case("1024 tokens, 128k", 1024, 128_256, (384, 768), 3),
    Case("512 tokens, 256k", 512, 256_000, (384, 768), 3),
]

ON_GPU = [Case("8192 tokens, 128k", 8192, 128_256, (2048, 4096), 11)]


class Inputs(NamedTuple):
    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor


def inputs(case: Case, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    d, e = case.widths

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden, weight = normal(case.tokens, d), normal(case.classes, d) * (2 * d**-0.5)
    teacher = normal(case.tokens, e), normal(case.classes, e) * (2 * e**-0.5)
    student = [x.to(device).requires_grad_() for x in (hidden, weight)]
    return Inputs(*student, *[x.to(device) for x in teacher])


def naive(x: Inputs) -> Tensor:
    with torch.no_grad():
        teacher = (x.teacher_hidden @ x.teacher_weight.mT / TEMPERATURE).softmax(-1)
    student = (x.hidden @ x.weight.mT / TEMPERATURE).log_softmax(-1)
    return F.kl_div(student, teacher, reduction="batchmean") * TEMPERATURE**2


def good(x: Inputs) -> Tensor:
    """One value for each token."""
    with torch.no_grad():
        log_p = (x.teacher_hidden @ x.teacher_weight.mT / TEMPERATURE).log_softmax(-1)
    log_q = (x.hidden @ x.weight.mT / TEMPERATURE).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean() * TEMPERATURE**2


def ours(x: Inputs) -> Tensor:
    return losses.masked_mean(losses.linear_kl_divergence(*x, temperature=TEMPERATURE))


def ours_triton(x: Inputs) -> Tensor:
    values = losses.linear_kl_divergence(*x, temperature=TEMPERATURE, method="triton")
    return losses.masked_mean(values)


def rates(case: Case, seconds: float) -> dict[str, float]:
    """Operations of the six products, and bytes of the projections, the gradient and the logits.

    A chunk's logits are written once, read twice and replaced by their slopes, which are read twice.
    """
    d, e = case.widths
    operations = 2 * case.tokens * case.classes * (4 * d + 2 * e)  # logits twice, two gradients
    moved = 4 * case.classes * (4 * d + 2 * e) + 4 * case.tokens * case.classes * 14
    return {"tflops": operations / seconds / 1e12, "gbs": moved / seconds / 1e9}


def ours_weighted(x: Inputs) -> Tensor:
    """Ours where every token has a weight of its own, which no guess foresees."""
    values = losses.linear_kl_divergence(*x, temperature=TEMPERATURE)
    return (values * torch.linspace(0.5, 1.5, len(values), device=values.device)).mean()


def ours_jsd(x: Inputs) -> Tensor:
    values = losses.linear_jensen_shannon_divergence(*x, temperature=TEMPERATURE)
    return losses.masked_mean(values)


def peers() -> dict[str, Callable[[Inputs], Tensor]]:
    """What is installed of requirements/benchmarks.txt."""
    found: dict[str, Callable[[Inputs], Tensor]] = {}
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        liger = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, temperature=TEMPERATURE,
            compiled=False, chunk_size=256,
        )  # fmt: skip

        def by_liger(x: Inputs) -> Tensor:
            labels = torch.zeros(len(x.hidden), dtype=torch.long, device=x.hidden.device)
            loss = liger(x.hidden, x.weight, x.teacher_hidden, x.teacher_weight, labels)
            return loss[0] if isinstance(loss, tuple) else loss

        found["Liger, JSD"] = by_liger
    except ImportError as error:
        print(f"without Liger: {error}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from trl.trainer.distillation_trainer import _chunked_divergence_loss

        def by_trl(x: Inputs) -> Tensor:
            kept = torch.ones(1, len(x.hidden), device=x.hidden.device)
            loss = _chunked_divergence_loss(
                x.hidden[None], x.teacher_hidden[None], x.weight, x.teacher_weight, kept,
                0.0, temperature=TEMPERATURE,
            )  # fmt: skip
            return loss[0] if isinstance(loss, tuple) else loss

        found["TRL"] = by_trl
    except ImportError as error:
        print(f"without TRL: {error}")
    return found


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    implementations = {
        "naive": naive,
        "compiled": torch.compile(good, dynamic=False),
        "ours": ours,
        "ours, token weights": ours_weighted,
        "ours, JSD": ours_jsd,
        **peers(),
    }
    cases = CASES
    if options.device == "cuda":
        implementations["ours, triton"] = ours_triton
        cases = CASES + ON_GPU
    figures = {}
    for case in cases:
        if options.only not in case.name:
            continue
        x = inputs(case, options.device)

        def before(x: Inputs = x) -> None:
            x.hidden.grad = x.weight.grad = None

        steps = {
            name: lambda function=function, x=x: function(x).backward()
            for name, function in implementations.items()
        }
        rounds = options.rounds or (1 if options.quick else case.rounds)
        found = compare(steps, rounds, options.device, before)
        own = 4 * (x.weight.numel() + x.hidden.numel())  # the gradients themselves
        for one in found.values():
            one["above_gradients"] = (one["peak"] - own) / (found["naive"]["peak"] - own)
            one |= rates(case, one["wall"])
        figures[case.name] = found
    kept = in_kept_pages(options)
    report(
        options,
        "linear_kl",
        tables(figures, kept),
        figures | {f"{k}, kept pages": v for k, v in kept.items()},
    )


def tables(figures: dict, kept: dict) -> dict[str, str]:
    found = {}
    columns = [c for c in next(iter(figures.values())) if c != "naive"]
    for key, title in (
        ("cpu_ratio", "time (CPU) as a part of naive's"),
        ("peak_ratio", "peak memory as a part of naive's"),
        ("above_gradients", "peak memory above the gradients themselves, as a part of naive's"),
    ):
        rows = [[n, *(f"{one[c][key]:.3f}" for c in columns)] for n, one in figures.items()]
        found[f"float32, {title}"] = table(["work", *columns], rows)
    fused = [name for name in figures if "ours, triton" in figures[name]]
    if fused:
        rows = []
        for name in fused:
            one = figures[name]["ours, triton"]
            rows.append([
                name, f"{1e3 * one['wall']:.2f}", f"{one['wall_ratio']:.3f}", f"{one['tflops']:.1f}",
                f"{one['gbs']:.0f}", f"{one['peak'] / 2**20:.0f}",
            ])  # fmt: skip
        header = ["work", "ms", "of naive's time", "TFLOP/s", "GB/s", "peak, MiB"]
        found["float32, with the kernel, forward and backward"] = table(header, rows)
    if kept:
        rows = [[n, *(f"{one[c]['cpu_ratio']:.3f}" for c in columns)] for n, one in kept.items()]
        found["float32, time (CPU) as a part of naive's, allocator keeps its pages"] = table(
            ["work", *columns], rows
        )
    return found


if __name__ == "__main__":
    main()
