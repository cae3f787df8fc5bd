"""Private names of torch, one hidden at a time, and what must work without it.

``python -m tests.support.hidden_names`` writes a JSON object, case -> traceback, empty where all is
well. Most names are looked up once, when the library is imported: each case is a fork of a process
that has torch and not yet the library. torch itself sees all of its names.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable

import torch
import torch.overrides
import torch.utils._pytree
from torch import nn
from torch.utils.checkpoint import checkpoint


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 8)

    def forward(self, x):
        q, k = self.project(x).chunk(2, -1)
        return (q @ k.mT).softmax(-1) @ x


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant):
        super().__init__()
        self.layer = Layer()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=self.reentrant)


def heads():
    return torch.randn(1, 2, 3, 4)


def divergence(student, teacher):
    import distillkit as dk

    kl = dk.losses.attention_kl
    return kl(dk.Attention(student, teacher), dk.Attention(teacher, teacher)).sum()


def transforms():
    import distillkit as dk

    q, x = heads(), heads()
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(divergence(leaf, q), leaf)[0]
    found = torch.func.grad(lambda one: divergence(one, q))(x)
    torch.testing.assert_close(found, expected)
    several = torch.randn(3, *x.shape)
    values = torch.func.vmap(lambda one: divergence(one, q))(several)
    torch.testing.assert_close(values, torch.stack([divergence(one, q) for one in several]))
    leaf = x.clone().requires_grad_()  # and outside of every transform
    divergence(leaf, q).backward()
    torch.testing.assert_close(leaf.grad, expected)
    model = nn.Sequential(Layer())
    said = ""
    try:
        with dk.capture(model, "0") as record:
            torch.func.vmap(model)(several)
            record["0"]
    except dk.errors.CaptureError as error:
        said = str(error)
    assert "vmap" in said, said


def batched_gradients():
    import distillkit as dk

    teacher, x = heads(), heads().requires_grad_()

    def values():
        return dk.losses.attention_kl(dk.Attention(x, x), dk.Attention(teacher, teacher))

    value = values()
    basis = torch.eye(value.numel()).view(-1, *value.shape)
    (rows,) = torch.autograd.grad(value, x, basis, is_grads_batched=True)
    for row, one in zip(rows, basis, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(values(), x, one)[0])


def inference_tensors():
    import distillkit as dk

    with torch.inference_mode():
        teacher = torch.randn(2, 3)
    student = torch.randn(2, 3, requires_grad=True)
    dk.losses.mse(student, teacher).mean().backward()
    assert student.grad.isfinite().all()
    mapped = torch.func.vmap(dk.losses.mse)(torch.randn(2, 3), torch.randn(2, 3))
    assert mapped.isfinite().all()


def interrupted():
    import distillkit as dk

    class Stops(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    model = nn.Sequential(Layer(), Stops())
    stopped = False
    try:
        with dk.capture(model, "**"):
            model(heads())
    except KeyboardInterrupt:
        stopped = True
    assert stopped
    assert not torch._C._is_torch_function_mode_enabled()


def library_function():
    import distillkit as dk

    library = sys.modules["acme"] = types.ModuleType("acme")
    exec("def attend(q, k, v):\n    return (q @ k.mT).softmax(-1) @ v\n", library.__dict__)

    def read(q, k, v):
        return dk.Attention(q, k, v, scale=1.0)

    class Calls(nn.Module):
        def forward(self, x):
            return library.attend(x, x, x)

    dk.register(dk.OperationSpec("attend", target=library.attend, read=read))
    model, x = nn.Sequential(Calls()), heads()
    with dk.capture(model, "0") as record:
        model(x)
        found = record["0"].probabilities()
        assert library.attend(x, x, x).shape == x.shape  # nobody captures this one
    torch.testing.assert_close(found, (x @ x.mT).softmax(-1))


def checkpointed():
    import distillkit as dk

    model, x = Checkpointed(reentrant=False), heads()
    with dk.capture(model, "layer") as record:
        model(x)
        record["layer"].scores().sum().backward()
        assert len(record._recorder.seen) == 1, "the backward was recorded as a second forward"


def says_whether_a_backward_runs():
    from distillkit import _torch_private as private

    said = []

    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            said.append(private.in_backward())
            return x * 1

        @staticmethod
        def backward(ctx, upstream):
            said.append(private.in_backward())
            return upstream

    x = torch.ones(1, requires_grad=True)
    Asks.apply(x).backward()
    torch.autograd.grad(Asks.apply(x), x)
    worker = threading.Thread(target=lambda: said.append(private.in_backward()))
    worker.start()
    worker.join()
    assert said == [False, True, False, True, False], said


def reentrant():
    import distillkit as dk
    from distillkit._objective.weighting.gradients import refuse_reentrant

    model, x = Checkpointed(reentrant=True), heads().requires_grad_()
    said = ""
    try:
        with dk.capture(model, "layer") as record:
            model(x)
            record["layer"]
    except dk.errors.CaptureError as error:
        said = str(error)
    assert "without gradient" in said, said
    refused = False
    try:
        refuse_reentrant([model(x).sum()])
    except dk.errors.RecipeError:
        refused = True
    assert refused
    refuse_reentrant([Layer()(x).sum()])


def containers():
    import distillkit as dk
    from distillkit import _torch_private as private

    class Returns(nn.Module):
        def forward(self, x):
            return {"hidden": (x, [x + 1])}

    model = nn.Sequential(Returns())
    with dk.capture(model, outputs=["0"]) as record:
        model(heads())
    assert set(record.output("0")) == {"hidden"}
    assert private.leaves_of({"a": (1, [2]), "b": 3}) == [1, 2, 3]


_FUNCTORCH = "torch._C._functorch"
HIDDEN: dict[str, tuple[str, tuple[str, ...], tuple[Callable[[], None], ...]]] = {
    "is_functorch_wrapped_tensor": (
        _FUNCTORCH, ("is_functorch_wrapped_tensor",), (transforms, inference_tensors)
    ),
    "get_unwrapped": (_FUNCTORCH, ("get_unwrapped",), (transforms, inference_tensors)),
    "is_legacy_batchedtensor": (
        _FUNCTORCH, ("is_legacy_batchedtensor",), (transforms, batched_gradients)
    ),
    "_are_functorch_transforms_active": (
        "torch._C", ("_are_functorch_transforms_active",), (transforms, batched_gradients)
    ),
    "_is_torch_function_mode_enabled": (
        "torch._C", ("_is_torch_function_mode_enabled",), (library_function, interrupted)
    ),
    "_current_graph_task_id": (
        "torch._C", ("_current_graph_task_id",), (checkpointed, says_whether_a_backward_runs)
    ),
    "_get_current_function_mode_stack": (
        "torch.overrides", ("_get_current_function_mode_stack",), (interrupted,)
    ),
    "_pop_mode": ("torch.overrides", ("_pop_mode", "_push_mode"), (interrupted,)),
    "CheckpointFunction": ("torch.utils.checkpoint", ("CheckpointFunction",), (reentrant,)),
    "tree_leaves": ("torch.utils._pytree", ("tree_leaves",), (containers,)),
    "nothing": (
        "torch._C",
        (),
        (
            transforms, batched_gradients, inference_tensors, interrupted, library_function,
            checkpointed, says_whether_a_backward_runs, reentrant, containers,
        ),
    ),
}  # fmt: skip


def hide(module: str, names: tuple[str, ...]) -> None:
    """Import the library's module of private names while torch seems to lack some."""
    real = importlib.import_module(module)
    missing = [name for name in names if not hasattr(real, name)]
    assert not missing, f"{module} has no {missing} to hide"
    part = types.ModuleType(module)
    part.__dict__.update({k: v for k, v in vars(real).items() if k not in names})
    sys.modules[module] = part
    importlib.import_module("distillkit._torch_private")
    sys.modules[module] = real


def run(case: str) -> str:
    """The traceback of a case in a fork of this process; empty: it works."""
    module, names, checks = HIDDEN[case]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            torch.manual_seed(0)
            hide(module, names)
            for check in checks:
                check()
        except BaseException:
            said = traceback.format_exc()
        with os.fdopen(writing, "w") as out:
            out.write(said)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said or (f"ended with status {status}" if status else "")


if __name__ == "__main__":
    assert not any(name.startswith("distillkit") for name in sys.modules)
    torch.set_num_threads(1)
    json.dump({case: run(case) for case in HIDDEN}, sys.stdout)
