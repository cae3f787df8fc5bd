"""torch keeps its private names as long as it likes: each has a fallback, and one module knows them."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import distillkit as dk
from distillkit import _torch_private as private
from distillkit._capture import wrappers
from distillkit._capture.shared import run_padded
from distillkit.errors import SpecError
from tests.support.hidden_names import HIDDEN, Layer

capture_room = importlib.import_module("distillkit._capture.capture")

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "distillkit" / "_torch_private.py"
PACKAGES = (
    "distillkit",
    *(
        f"plugins/{p}"
        for p in (
            "distillkit-transformers/distillkit_transformers",
            "distillkit-lightning/distillkit_lightning",
        )
    ),
)
# of torch's objects, whatever holds them
ATTRIBUTES = {
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_compiled_call_impl",
    "_forward_hooks", "_forward_pre_hooks", "_opoverload", "use_nested_tensor",
}  # fmt: skip


def private_names(source: str) -> Iterator[str]:
    """The private names of torch in a file: dotted, imported, and attributes known to be torch's."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if is_private(a.name))
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names = [f"{node.module}.{a.name}" for a in node.names]
            yield from filter(is_private, names)
        elif isinstance(node, ast.Attribute):
            if node.attr in ATTRIBUTES:
                yield node.attr
            elif is_private(name := ast.unparse(node)):
                yield name
        elif isinstance(node, ast.Constant) and node.value in ATTRIBUTES:
            yield node.value


def is_private(name: str) -> bool:
    first, *rest = name.split(".")
    return first == "torch" and any(one.startswith("_") and one != "__version__" for one in rest)


def test_one_module_alone_names_what_torch_keeps_private():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    found = {
        str(file.relative_to(ROOT)): names
        for file in files
        if file != HOME and (names := sorted(set(private_names(file.read_text("utf-8")))))
    }
    assert not found, (
        f"move these into distillkit/_torch_private.py, with what is done without: {found}"
    )


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch._C._functorch import get_unwrapped",
        "from torch.overrides import _pop_mode",
        "torch._C._nn._parse_to(x)",
        "module._orig_mod",
        'getattr(module, "_fsdp_wrapped_module")',
    ],
)
def test_the_test_above_finds(line):
    assert list(private_names(line))
    assert not list(private_names("import torch\ntorch.__version__\ntorch.nn.functional.relu\n"))


@pytest.fixture(scope="module")
def cases() -> dict[str, str]:
    """Every case of ``hidden_names``, run by one fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hidden_names"],
        capture_output=True, text=True, timeout=600, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork")
@pytest.mark.parametrize("case", HIDDEN)
def test_without_a_name_the_eager_path_works(cases, case):
    assert not cases[case], f"without {case}: {cases[case]}"


def compiled(module):
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper])
def test_torchs_wrappers_are_seen_through_by_attribute_and_by_class(wrap, monkeypatch):
    inner = nn.Sequential(nn.Linear(2, 2))
    wrapped = wrap(inner)
    slot = private.slot_of(wrapped)
    assert private.slot_of(inner) is None
    assert wrappers.inner_of(wrapped) == (slot, inner)

    moved = dict.fromkeys(private._SLOTS, f"_moved{slot}")  # torch keeps the module elsewhere
    monkeypatch.setattr(private, "_SLOTS", moved)
    assert wrappers.inner_of(wrapped) == (slot, inner)
    assert private.is_compiled(wrapped) == (wrap is compiled)

    monkeypatch.undo()  # torch calls the class something else
    monkeypatch.setattr(private, "_is_of_torch", lambda *_: False)
    assert wrappers.inner_of(wrapped) == (slot, inner)
    assert private.is_compiled(wrapped) == (wrap is compiled)


def test_an_encoder_without_its_switch_is_kept_off_the_fast_path():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, batch_first=True), 1).eval()
    assert private.may_nest(encoder)
    with run_padded(encoder):
        assert not encoder.use_nested_tensor
        assert torch.backends.mha.get_fastpath_enabled()
    assert encoder.use_nested_tensor

    del encoder.use_nested_tensor
    assert private.may_nest(encoder)
    with run_padded(encoder):
        with run_padded(encoder):
            assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_hooks_that_torch_does_not_list_are_put_on_again(monkeypatch):
    model, x = nn.Sequential(Layer()), torch.randn(1, 2, 3, 4)
    monkeypatch.setattr(capture_room, "hooks_before", lambda _: ())
    for _ in range(2):
        with dk.capture(model, "0") as record:
            model(x)
        assert record["0"].shape == (1, 2, 3, 3)
    bare = nn.Linear(1, 1)
    del bare._forward_pre_hooks, bare._forward_hooks
    assert private.hooks_before(bare) == private.hooks_after(bare) == ()


def test_a_custom_operator_without_its_overload_is_named_by_a_string(monkeypatch):
    @torch.library.custom_op("distillkit_test::attend", mutates_args=())
    def attend(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    operator = torch.ops.distillkit_test.attend
    assert private.operator_of(attend) is operator
    assert private.operator_of(operator.default) is private.operator_of(operator) is operator
    assert private.operator_of(len) is len
    del attend._opoverload
    with pytest.raises(SpecError, match=r"attend.*target=.torch\.ops\.<namespace>"):
        private.operator_of(attend)
