"""What people do to a student before it is distilled, for the small models of these tests.

Each change is made in place, and gives a function that says whether it took effect.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import distillkit as dk
from tests.support import tiny

TookEffect = Callable[[], bool]


class AsPeftDoes(nn.Module):
    """Holds a model as PEFT does: a low-rank update of frozen weights, everything passed on."""

    def __init__(self, model: tiny.Dual) -> None:
        super().__init__()
        self.base_model = model.requires_grad_(requires_grad=False)
        for block in (*model.text.blocks, *model.image.blocks):
            block.qkv = LowRank(block.qkv)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tiny.Output:
        return self.base_model(*args, **kwargs)


class LowRank(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


def blocks_of(student: nn.Module) -> list[nn.Module]:
    """The attention blocks, also of a student that something holds."""
    bare = getattr(student, "base_model", student)
    return [*bare.text.blocks, *bare.image.blocks]


def checkpoint_blocks(blocks: list[nn.Module]) -> TookEffect:
    calls = {"forward": 0, "computed": 0}
    for block in blocks:
        attend = block.forward

        def compute(x: Tensor, mask: Tensor, attend: Callable[..., Tensor] = attend) -> Tensor:
            calls["computed"] += 1
            return attend(x, mask)

        def forward(x: Tensor, mask: Tensor, compute: Callable[..., Tensor] = compute) -> Tensor:
            calls["forward"] += torch.is_grad_enabled()
            return checkpoint(compute, x, mask, use_reentrant=False)

        block.forward = forward
    return lambda: calls["computed"] > calls["forward"] > 0


def checkpointing(distiller: dk.Distiller) -> TookEffect:
    return checkpoint_blocks(blocks_of(distiller.student))


def compiling(distiller: dk.Distiller) -> TookEffect:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    distiller.student = torch.compile(distiller.student, backend=backend)
    return lambda: len(graphs) > 0


def bf16(distiller: dk.Distiller) -> TookEffect:
    """Autocast around the distiller's forward, as accelerate and Lightning put it."""
    distiller.forward = torch.autocast("cpu", torch.bfloat16)(distiller.forward)
    return computes_in_bf16(distiller.student)


def computes_in_bf16(student: nn.Module) -> TookEffect:
    dtypes = set()
    student.head.register_forward_hook(lambda *call: dtypes.add(call[-1].dtype))
    return lambda: torch.bfloat16 in dtypes


def adapters(distiller: dk.Distiller) -> TookEffect:
    """Low-rank updates, which alone are learned."""
    torch.manual_seed(2)
    distiller.student = AsPeftDoes(distiller.student)
    return only_moves(distiller, {"down", "up"})


def only_moves(distiller: dk.Distiller, layers: set[str]) -> TookEffect:
    """Whether training moves the weights of layers of these names, and no other weights."""
    start = {name: x.detach().clone() for name, x in distiller.student.named_parameters()}

    def took_effect() -> bool:
        moved = []
        for name, parameter in distiller.student.named_parameters():
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            if not torch.equal(whole, start[name]):
                moved.append(name.split("."))
        found = {layer for path in moved for layer in layers if layer in path}
        return found == layers and all(layers & set(path) for path in moved)

    return took_effect


CHANGES: dict[str, Callable[[dk.Distiller], TookEffect]] = {
    "bf16": bf16, "checkpointing": checkpointing, "compile": compiling, "PEFT": adapters,
}  # fmt: skip
