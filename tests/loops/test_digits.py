"""The demo's student learns the same in every loop, step for step: ``make loops``."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for library in ("accelerate", "lightning", "sklearn", "rich"):
    pytest.importorskip(library)

SCRIPT = Path(__file__).parents[2] / "examples" / "loops" / "digits.py"
LOOPS = ("raw", "accelerate", "trainer", "lightning")
TERMS = (
    "kl_divergence/logits",
    "attention_kl/attention.text_to_image",
    "attention_kl/attention.image_to_text",
)
SMALL = {"steps": 10, "teacher-steps": 5, "train-scenes": 160, "test-scenes": 20}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What is printed, every run, and the folder with the weights."""
    folder = tmp_path_factory.mktemp("digits")
    sizes = [x for name, value in SMALL.items() for x in (f"--{name}", str(value))]
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", str(SCRIPT), "--seeds", "1", "--teacher", str(folder),
            "--save", str(folder), "--json", str(folder / "runs.json"), *sizes,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    return done.stdout, {run["loop"]: run for run in runs}, folder


def weights_of(folder, loop):
    """Without the biases of keys: a softmax ignores them, so their gradient is rounding alone.

    Adam makes steps of the learning rate out of rounding, and lightning sums the norm that it
    clips by in another order.
    """
    state = torch.load(folder / f"{loop}-0.pt")
    for name in [name for name in state if name.endswith("qkv.bias")]:
        query, _, value = state.pop(name).chunk(3)
        state.update({f"{name} of queries": query, f"{name} of values": value})
    return state


def test_the_table_has_a_row_for_each_loop(table):
    printed, runs, _ = table
    assert tuple(runs) == LOOPS
    for loop, run in runs.items():
        (row,) = [line for line in printed.splitlines() if f" {loop} " in line]
        assert f"{100 * run['accuracy']:.1f}" in row


@pytest.mark.parametrize("loop", LOOPS[1:])
def test_the_same_batches_give_the_same_weights_and_losses(table, loop):
    _, runs, folder = table
    expected, found = weights_of(folder, "raw"), weights_of(folder, loop)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for name in ("loss", *TERMS, *(f"weight/{term}" for term in TERMS)):
        raw = runs["raw"]["logged"][name]
        assert runs[loop]["logged"][name] == pytest.approx(raw, rel=1e-6), name
    assert runs[loop]["accuracy"] == runs["raw"]["accuracy"]


def statements_of(loop):
    """The simple statements of a loop, and the heads of its compound ones, as text."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    (function,) = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == f"train_{loop}"
    ]
    return [
        ast.unparse(node)
        for node in ast.walk(function)
        if isinstance(node, ast.stmt) and not hasattr(node, "body")
    ]


@pytest.mark.parametrize("loop", ["trainer", "lightning"])
def test_three_lines_of_glue(loop):
    """The import and the object that is made, and the distiller, which is made for every loop."""
    named = [x for x in statements_of(loop) if "Distillation" in x]
    assert len(named) + 1 == 3


def test_accelerate_adds_nothing_but_its_own_words():
    added = set(statements_of("accelerate")) - set(statements_of("raw"))
    assert all("accelerat" in statement for statement in added)
    assert {"result = distiller(batch, progress=step / work.budget.steps)"} & set(
        statements_of("accelerate")
    )
