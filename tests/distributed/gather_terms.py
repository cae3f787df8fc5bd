"""Run by torchrun: terms that gather, on unequal parts of a batch in two processes.

Every scenario saves the loss of the whole batch and its gradient to a weight that both processes
have, averaged over them as DDP does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import distillkit as dk
from tests.distributed.leave import save_and_leave
from tests.support import tiny

EXAMPLES, WIDTH = 5, 3
CUTS = {"unequal": 2, "an empty rank": 0, "an empty second rank": EXAMPLES}
PAIRS = {
    "info_nce": 1, "rkd_distance": 1, "rkd_angle": 1, "similarity_preserving": 1, "pkt": 1,
    "cka_distance": 1, "intra_class_pearson_distance": 1,
    "contrastive_relational": 2, "interactive_contrastive": 2,
}  # fmt: skip


def distances(student: Tensor, teacher: Tensor, *, scale: Tensor, labels: Tensor) -> Tensor:
    """Of tokens ``(b, n, d)``, each to all of the batch that have a label."""
    rows, others = (x.flatten(0, 1) for x in (student, teacher))
    found = torch.where(labels.flatten() != -100, torch.cdist(rows, others), 0)
    return (found.sum(1) * scale).unflatten(0, student.shape[:2])


def inputs(seed: int = 0) -> Tensor:
    """Student and teacher, of each two signals or layers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, EXAMPLES, 4, WIDTH, generator=generator, dtype=torch.float64)


class Scenario(NamedTuple):
    """A term, and the signals of some examples that it compares."""

    term: dict[str, Any]
    sides: Callable[[Tensor, slice], tuple[dk.Signals, dk.Signals]]
    batch: Callable[[slice], dict[str, Tensor]] = lambda part: {}


def vectors(weight: Tensor, part: slice) -> tuple[dk.Signals, dk.Signals]:
    student, teacher = inputs(int(weight.detach()[0, 0].abs() * 1000))  # others for each weight
    own, other = student[:, part, 0] @ weight, teacher[:, part, 0]
    return (
        dk.Signals({"x": own[0], "y": own[1], "z": list(own)}),
        dk.Signals({"x": other[0], "y": other[1], "z": list(other)}),
    )


SCENARIOS: dict[str, Scenario] = {
    **{
        f"{loss}, per {per}": Scenario(
            {"loss": loss, "on": ["x", "y"][:count], "gather": True, "per": per}, vectors
        )
        for loss, count in PAIRS.items()
        for per in ("example", "row")
    },
    "two layers": Scenario({"loss": "info_nce", "on": "z", "layers": "all", "gather": True}, vectors),
    "the best layer": Scenario(
        {
            "loss": "info_nce", "on": "z", "gather": True,
            "layers": {"pairs": [[0, [0, 1]]], "match": "best"},
        },
        vectors,
    ),
    "a mask": Scenario(
        {"loss": "rkd_distance", "on": "x", "gather": True, "mask": "counts", "per": "row"},
        vectors,
        lambda part: {"counts": torch.tensor([True, False, True, True, False])[part]},
    ),
}  # fmt: skip


def objective_of(scenario: Scenario) -> dk.Objective:
    return dk.Objective([dk.Term(**scenario.term)])


def normalizer_of(scenario: Scenario, part: slice) -> dict[str, Tensor]:
    """As a distiller counts: over all processes, divided by their number."""
    objective = objective_of(scenario)
    weight = torch.eye(WIDTH, dtype=torch.float64, requires_grad=True)
    counts = objective(*scenario.sides(weight, part), batch=scenario.batch(part)).counts
    (count,) = (count.double() for count in counts.values())
    if dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return {objective.each()[0].name: count}


def value(
    scenario: Scenario,
    part: slice,
    *,
    seed: int = 1,
    normalized: bool = False,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its gradient, and what counted."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    objective: Any = objective_of(scenario)
    if compiled:
        objective = torch.compile(objective, backend="eager")
    normalizer = normalizer_of(scenario, part) if normalized else None
    result = objective(
        *scenario.sides(weight, part), batch=scenario.batch(part), normalizer=normalizer
    )
    result.loss.backward()
    (count,) = result.counts.values()
    return result.loss.detach(), weight.grad, count.double()


def averaged(found: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Each process's own loss, the gradient as DDP has it, and all that counted."""
    loss, gradient, count = found
    dist.all_reduce(gradient)
    dist.all_reduce(count)
    return loss, gradient / dist.get_world_size(), count


def texts(lengths: list[int]) -> Scenario:
    """Of texts: both processes pad to their own longest, and one process to the longest of all."""

    def real(part: slice) -> Tensor:
        own = torch.tensor(lengths)[part]
        return torch.arange(int(own.max())) < own[:, None]

    def sides(weight: Tensor, part: slice) -> tuple[dk.Signals, dk.Signals]:
        kept = real(part)
        masks = {} if kept.all() else {"x": kept}  # a batch without padding has no mask
        student, teacher = (x[0, part, : kept.shape[1]] for x in inputs())
        return dk.Signals({"x": student @ weight}, masks), dk.Signals({"x": teacher}, masks)

    def batch(part: slice) -> dict[str, Tensor]:
        scale = torch.tensor(2.0, dtype=torch.float64)
        return {"scale": scale, "labels": torch.where(real(part), 1, -100)}

    inputs_of = {"scale": "scale", "labels": "labels"}
    term = {"loss": distances, "on": "x", "gather": True, "per": "row", "inputs": inputs_of}
    return Scenario(term, sides, batch)


TEXTS = {"one pads": texts([3, 3, 4, 1, 4]), "neither pads": texts([3, 3, 4, 4, 4])}


def drawn() -> Iterator[tuple[Scenario, int, int]]:
    """A scenario, a seed, and how many examples the first process has of all."""
    generator = torch.Generator().manual_seed(0)
    names = list(SCENARIOS)
    for seed in range(40):
        which, cut = (int(torch.randint(n, (), generator=generator)) for n in (len(names), 6))
        yield SCENARIOS[names[which]], seed, cut


def counted(part: slice) -> dict[str, Tensor]:
    """What counts of terms of which the batch alone tells it."""
    term = {"loss": "info_nce", "on": "logits", "gather": True}
    batch = {name: x[part] for name, x in tiny.batch(EXAMPLES).items()}
    return distiller_of([term]).normalizer([batch])


TERMS = [
    {"loss": "info_nce", "on": "logits", "gather": True, "options": {"temperature": 1.0}},
    {"loss": "rkd_distance", "on": "logits", "gather": True, "per": "row"},
    {"loss": "kl_divergence", "on": "logits"},
    {"loss": "task"},
]


def distiller_of(terms: list[dict[str, Any]] = TERMS) -> dk.Distiller:
    torch.manual_seed(0)
    return dk.Distiller(
        tiny.Dual(), tiny.Fusion(), dk.Recipe(name="gathered", terms=terms),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        task_loss=lambda output, batch: F.cross_entropy(output.logits, batch["labels"]),
        ignore=["labels"],
    )  # fmt: skip


def trained(distiller: dk.Distiller, model: torch.nn.Module, part: slice) -> dict[str, Tensor]:
    """Three steps of two accumulated batches each, and what a look and an evaluation say."""
    optimizer = torch.optim.SGD(distiller.student.parameters(), lr=0.1)
    for step in range(3):
        batches = [
            {name: x[part] for name, x in tiny.batch(EXAMPLES, seed=2 * step + i).items()}
            for i in (0, 1)
        ]
        normalizer = distiller.normalizer(batches)
        optimizer.zero_grad()
        for batch in batches:
            model(batch, normalizer=normalizer).loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        evaluated = model(batches[0]).parts["info_nce/logits"]
    return {**distiller.student.state_dict(), "evaluated": evaluated}


def refusals(rank: int) -> list[str]:
    """Errors that every process meets, so that none waits for the other."""
    found = []
    for own in ([torch.ones(2, 3), torch.ones(2, 4)], [torch.ones(2, 3), torch.ones(2)]):
        try:
            dk.losses.gather(own[rank])
        except dk.errors.ShapeError as error:
            found.append(str(error))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    results: dict[str, Any] = {}
    for how, cut in CUTS.items():
        part = slice(0, cut) if rank == 0 else slice(cut, EXAMPLES)
        for name, scenario in SCENARIOS.items():
            results[f"{name}: {how}"] = averaged(value(scenario, part))
            results[f"{name}: {how}, normalized"] = averaged(value(scenario, part, normalized=True))
    part = slice(0, 2) if rank == 0 else slice(2, EXAMPLES)
    results["drawn"] = [
        averaged(value(scenario, slice(0, cut) if rank == 0 else slice(cut, EXAMPLES), seed=seed))
        for scenario, seed, cut in drawn()
    ]
    results["counted"] = counted(part)
    for name, scenario in TEXTS.items():
        results[name] = averaged(value(scenario, part))
    results["compiled"] = averaged(value(SCENARIOS["two layers"], part, compiled=True))
    distiller = distiller_of()
    wrapped = DistributedDataParallel(distiller, find_unused_parameters=True)
    results["trained"] = trained(distiller, wrapped, part)
    if rank == 0:  # the other does not wait for a look of this one
        batch = {name: x[part] for name, x in tiny.batch(EXAMPLES).items()}
        results["check"] = [one.counts for one in distiller.check(batch).terms]
    results["refusals"] = refusals(rank)
    save_and_leave(results, sys.argv[1], rank)
