"""Run by torchrun: five whole steps under DDP, FSDP2 and FSDP1, each rank on its part.

A step is two accumulated batches, without synchronisation in between, clipping, and an optimizer
with a state. Every scenario saves losses and weights, or the error that it met.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn import functional as F

import distillkit as dk
from tests.distributed import wrapping
from tests.support import tiny
from tests.support.students import CHANGES, TookEffect

EXAMPLES, STEPS, LIMIT, INTERRUPTED = 8, 5, 0.2, 3
TERMS = [
    {"loss": "attention_kl", "on": "attention.text_to_image", "per": "row"},
    {"loss": "attention_kl", "on": "attention.image_to_text", "weight": {"start": 1.0, "stop": 0.0}},
    {
        "loss": "mse", "on": "logits",
        "align": [{"name": "projector", "student_width": 3, "teacher_width": 3}],
    },
    {"loss": "task"},
]  # fmt: skip
EVERY_EXAMPLE = [{k: v for k, v in term.items() if k != "per"} for term in TERMS]
Batch = dict[str, Tensor]


class Trained(NamedTuple):
    """What five steps lead to."""

    losses: list[float]
    weights: dict[str, Tensor]


def task_loss(output: tiny.Output, batch: Batch) -> Tensor:
    return F.cross_entropy(output.logits, batch["labels"])


def distiller_of(*, teacher: bool = True, terms: list[dict] = TERMS) -> dk.Distiller:
    torch.manual_seed(0)
    student, taught = tiny.Dual(), tiny.Fusion()
    return dk.Distiller(
        student, taught if teacher else None, dk.Recipe(name="four terms", terms=terms),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES), task_loss=task_loss,
        ignore=["labels"],
    )  # fmt: skip


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def batches_of(step: int, rank: int | None) -> list[Batch]:
    """The joined batch of a step, or the two unequal ones of a rank: 1 and 3 examples, 2 and 2."""
    cuts = {None: [(0, 8)], 0: [(0, 1), (1, 4)], 1: [(4, 6), (6, 8)]}[rank]
    joined = tiny.batch(EXAMPLES, seed=step)
    return [{name: x[start:stop] for name, x in joined.items()} for start, stop in cuts]


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Accumulate on each rank, without traffic."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    else:
        with model.no_sync():
            yield


def clip(model: nn.Module) -> None:
    if isinstance(model, FullyShardedDataParallel):
        norm = model.clip_grad_norm_(LIMIT)
    else:
        norm = nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
    assert norm > LIMIT  # it is really clipped


def train(
    distiller: dk.Distiller,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rank: int | None,
    steps: Iterable[int] = range(STEPS),
    teacher: dk.Distiller | None = None,
) -> list[float]:
    """The loss of each step; ``teacher`` brings the teacher's signals from elsewhere."""
    losses = []
    for step in steps:
        batches = batches_of(step, rank)
        progress, given = step / STEPS, {}
        normalizer = (teacher or distiller).normalizer(batches, progress=progress)
        total = torch.zeros(())
        for i, batch in enumerate(batches):
            if teacher is not None:
                given = {"teacher_signals": teacher.run_teacher(batch)}
            is_last = i == len(batches) - 1
            with nullcontext() if is_last else unsynchronised(model):
                loss = model(batch, progress=progress, normalizer=normalizer, **given).loss
                assert loss.dtype == torch.float32  # under autocast too
                loss.backward()
            total += loss.detach()
        clip(model)
        optimizer.step()
        optimizer.zero_grad()
        if rank is not None:
            dist.all_reduce(total)
            total /= dist.get_world_size()
        losses.append(total.item())
    return losses


def weights_of(distiller: dk.Distiller) -> dict[str, Tensor]:
    """Weights in one piece, by the names that they have without a wrapper."""
    found = {}
    for name, parameter in distiller.named_parameters():
        plain = name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "")
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found[plain] = whole.detach().clone()
    return found


def alone(steps: Iterable[int] = range(STEPS), terms: list[dict] = TERMS) -> Trained:
    """One process on the joined batch."""
    distiller = distiller_of(terms=terms)
    losses = train(distiller, distiller, optimizer_of(distiller), rank=None, steps=steps)
    return Trained(losses, weights_of(distiller))


def changed(
    distiller: dk.Distiller,
    change: Callable[[dk.Distiller], TookEffect],
    wrap: Callable[[dk.Distiller], nn.Module] = lambda distiller: distiller,
    rank: int | None = None,
) -> Trained:
    """With a student that something was done to."""
    took_effect = change(distiller)
    model = wrap(distiller)
    losses = train(distiller, model, optimizer_of(model), rank=rank)
    assert took_effect()
    return Trained(losses, weights_of(distiller))


def evaluated(distiller: dk.Distiller, rank: int) -> Tensor:
    """The logits of both ranks, in the order of the examples."""
    mine = torch.zeros(EXAMPLES, 3)
    part = slice(4 * rank, 4 * rank + 4)
    batch = {name: x[part] for name, x in tiny.batch(EXAMPLES, seed=99).items()}
    with torch.no_grad():
        mine[part] = distiller.eval().run_student(batch)[0].logits
    dist.all_reduce(mine)
    return mine


def evaluated_alone() -> Tensor:
    """The logits of the joined batch, after the training of one process."""
    distiller = distiller_of()
    train(distiller, distiller, optimizer_of(distiller), rank=None)
    with torch.no_grad():
        return distiller.eval().run_student(tiny.batch(EXAMPLES, seed=99))[0].logits


def with_teacher(
    wrap: Callable[[dk.Distiller], nn.Module], place: Callable[[dk.Distiller], None]
) -> Trained:
    distiller = distiller_of()
    place(distiller)
    model = wrap(distiller)
    losses = train(distiller, model, optimizer_of(model), rank=dist.get_rank())
    return Trained(losses, weights_of(distiller))


def trained_and_evaluated(wrap: Callable[[dk.Distiller], nn.Module]) -> Trained:
    """Checked before the first step and evaluated after the last, beside the module's forward."""
    distiller, rank = distiller_of(), dist.get_rank()
    model = wrap(distiller)
    assert distiller.check(batches_of(0, rank)[0]).passed
    evaluated(distiller, rank)
    distiller.train()
    losses = train(distiller, model, optimizer_of(model), rank=rank)
    return Trained(losses, {"logits": evaluated(distiller, rank)})


def with_signals(wrap: Callable[[dk.Distiller], nn.Module]) -> Trained:
    """The teacher's signals come from another distiller, which is not trained."""
    distiller, other = distiller_of(teacher=False), distiller_of()
    model = wrap(distiller)
    losses = train(distiller, model, optimizer_of(model), rank=dist.get_rank(), teacher=other)
    return Trained(losses, weights_of(distiller))


def under_fsdp1() -> Trained:
    """Without rows: counting them runs the models, which FSDP1 gathers in its own forward alone."""
    distiller = distiller_of(terms=EVERY_EXAMPLE)
    model = wrapping.as_fsdp1(distiller)
    losses = train(distiller, model, optimizer_of(model), rank=dist.get_rank())
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return Trained(losses, weights_of(distiller))


def save(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state, moments = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id=folder)


def load(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state, moments = get_state_dict(model, optimizer)
    held = {"model": state, "optimizer": moments}
    dcp.load(held, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"]
    )


def interrupted(wrap: Callable[[dk.Distiller], nn.Module], folder: str) -> Trained:
    """The first steps, saved for another number of processes."""
    distiller = distiller_of()
    model = wrap(distiller)
    optimizer = optimizer_of(model)
    losses = train(distiller, model, optimizer, rank=dist.get_rank(), steps=range(INTERRUPTED))
    save(folder, model, optimizer)
    return Trained(losses, weights_of(distiller))


def resumed(wrap: Callable[[dk.Distiller], nn.Module], folder: str) -> Trained:
    """The last steps, from what one process saved."""
    distiller = distiller_of()
    with torch.no_grad():
        for parameter in distiller.parameters():
            parameter.add_(1.0)  # what is not loaded is seen
    model = wrap(distiller)
    optimizer = optimizer_of(model)
    load(folder, model, optimizer)
    steps = range(INTERRUPTED, STEPS)
    losses = train(distiller, model, optimizer, rank=dist.get_rank(), steps=steps)
    return Trained(losses, weights_of(distiller))


def scenarios(folder: str) -> dict[str, Callable[[], Trained]]:
    found: dict[str, Callable[[], Trained]] = {}
    for way, wrap in wrapping.WAYS.items():
        for where, place in wrapping.TEACHERS.items():
            found[f"{way}, teacher {where}"] = lambda w=wrap, p=place: with_teacher(w, p)
        if "meta" not in way:
            found[f"{way}, evaluated"] = lambda w=wrap: trained_and_evaluated(w)
            found[f"{way}, signals computed before"] = lambda w=wrap: with_signals(w)
            for name, change in CHANGES.items():
                found[f"{way}, {name}"] = lambda w=wrap, c=change: changed(
                    distiller_of(), c, w, dist.get_rank()
                )
            found[f"{way}, interrupted"] = lambda w=wrap, n=way: interrupted(w, f"{folder}/{n} two")
            found[f"{way}, resumed"] = lambda w=wrap: resumed(w, f"{folder}/one")
    found["fsdp2, bf16 by its policy"] = lambda: with_teacher(
        wrapping.as_fsdp2_in_bf16, wrapping.halve_teacher
    )
    found["fsdp1"] = under_fsdp1
    return found


if __name__ == "__main__":
    from tests.distributed.leave import save_and_leave

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results: dict[str, Trained | str] = {}
    for name, run in scenarios(sys.argv[1]).items():
        try:
            results[name] = tuple(run())
        except Exception as error:  # the test reads it; the other scenarios still run
            results[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    save_and_leave(results, sys.argv[1], dist.get_rank())
