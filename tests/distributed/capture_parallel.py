"""Run by torchrun: gradients of captured attention under DDP and FSDP2, each rank on its part.

Every scenario saves the gradients of the student's parameters after two steps, or the error that
it met.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import distillkit as dk
from tests.distributed.leave import save_and_leave
from tests.support import tiny
from tests.support.students import blocks_of, checkpoint_blocks

EXAMPLES, STEPS = 4, 2
KINDS = {"fused": tiny.FusedAttention, "eager": tiny.EagerAttention}
Gradients = dict[str, Tensor]


def batch_of(step: int, part: slice) -> dict[str, Tensor]:
    return {name: value[part] for name, value in tiny.batch(EXAMPLES, seed=step).items()}


def student_of(kind: str) -> tiny.Dual:
    torch.manual_seed(0)
    return tiny.Dual(KINDS[kind])


def distiller_of(kind: str, *, task: bool = False) -> dk.Distiller:
    torch.manual_seed(1)
    teacher = tiny.Fusion(KINDS[kind])
    terms = [
        {"loss": "attention_kl", "on": f"attention.{direction}"}
        for direction in ("text_to_image", "image_to_text")
    ]
    if task:
        terms.append({"loss": "kl_divergence", "on": "logits"})
    return dk.Distiller(
        student_of(kind), teacher, dk.Recipe(name="attention", terms=terms),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES), ignore=["labels"],
    )  # fmt: skip


def full(gradient: Tensor) -> Tensor:
    """A gradient in one piece, wherever its parts lie."""
    whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole.detach().clone()


def gradients(model: nn.Module) -> Gradients:
    """Of all parameters that have one other than zero."""
    found = {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.any()}


def attention_loss(record: object) -> Tensor:
    """The mean over examples of a function of each captured map."""
    total = torch.zeros(())
    for name in record.names:
        probabilities = record[name].probabilities()
        total = total + probabilities.square().sum((1, 2, 3)).mean()
    return total


def distilled(
    kind: str, wrap: Callable[[dk.Distiller], nn.Module], part: slice, *, task: bool
) -> Gradients:
    """Two steps of a distiller; the gradients of the second."""
    distiller = distiller_of(kind, task=task)
    wrapped = wrap(distiller)
    for step in range(STEPS):
        distiller.zero_grad()
        wrapped(batch_of(step, part)).loss.backward()
    return gradients(distiller.student)


def bare(
    kind: str,
    wrap: Callable[[nn.Module], nn.Module],
    part: slice,
    *,
    before: bool,
    anchored: bool = False,
) -> Gradients:
    """The caller's own loop, captured before or after wrapping: task and attention.

    Anchored, it is attention alone.
    """
    student = student_of(kind)
    wrapped = student if before else wrap(student)
    with dk.capture(wrapped, "text.blocks.*", "image.blocks.*") as record:
        if before:
            wrapped = wrap(student)
        for step in range(STEPS):
            student.zero_grad()
            batch = batch_of(step, part)
            output = wrapped(**{name: batch[name] for name in tiny.INPUTS})
            loss = attention_loss(record)
            task = output.logits.square().mean()
            (dk.attach_to_outputs(loss, output) if anchored else task + loss).backward()
    return gradients(student)


def ddp(**options: bool) -> Callable[[nn.Module], nn.Module]:
    return lambda model: DistributedDataParallel(model, **options)


def fsdp(*, again: bool = True, ckpt: bool = False) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        student = getattr(model, "student", model)
        if ckpt:
            checkpoint_blocks(blocks_of(student))
        for tower in (student.text, student.image):
            for block in tower.blocks:
                fully_shard(block, reshard_after_forward=again)
        return fully_shard(model, reshard_after_forward=again)

    return wrap


def scenarios(part: slice) -> dict[str, Callable[[], Gradients]]:
    """What is tried; the end of each name says which loss, and so what it must equal."""
    found: dict[str, Callable[[], Gradients]] = {}
    for kind in KINDS:
        for way, wrap in {
            "ddp": ddp(),
            "ddp find_unused": ddp(find_unused_parameters=True),
            "ddp static_graph": ddp(static_graph=True),
            "fsdp": fsdp(),
            "fsdp kept whole": fsdp(again=False),
            "fsdp checkpointed": fsdp(ckpt=True),
        }.items():
            for task in (False, True):
                loss = "attention and logits" if task else "attention alone"
                found[f"{kind}, {way}, distiller: {loss}"] = (
                    lambda kind=kind, wrap=wrap, task=task: distilled(kind, wrap, part, task=task)
                )
            found[f"{kind}, {way}, captured and anchored: bare attention"] = (
                lambda kind=kind, wrap=wrap: bare(kind, wrap, part, before=False, anchored=True)
            )
            if "checkpointed" not in way:
                for before in (True, False):
                    order = "before" if before else "after"
                    found[f"{kind}, {way}, captured {order} wrapping: bare"] = (
                        lambda kind=kind, wrap=wrap, before=before: bare(
                            kind, wrap, part, before=before
                        )
                    )
    return found


def alone(name: str) -> Gradients:
    """What one process computes on the joined batch."""
    kind, loss = name.split(",")[0], name.rpartition(": ")[2]
    everything = slice(0, EXAMPLES)
    if loss.startswith("bare"):
        anchored = loss != "bare"
        return bare(kind, lambda model: model, everything, before=True, anchored=anchored)
    return distilled(kind, lambda model: model, everything, task=loss != "attention alone")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    results: dict[str, Gradients | str] = {}
    for name, run in scenarios(slice(2 * rank, 2 * rank + 2)).items():
        try:
            results[name] = run()
        except Exception as error:  # the test reads it; the other scenarios still run
            results[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    save_and_leave(results, sys.argv[1], rank)
