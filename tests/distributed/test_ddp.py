"""Two real processes compute exactly what one does on the joined batch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def run_in_two_processes(script, folder):
    """What each of two processes saved."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(HERE / f"{script}.py"), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def imported(script):
    spec = importlib.util.spec_from_file_location(script, HERE / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_attention_alone_trains_under_ddp_as_in_one_process(tmp_path):
    first, second = run_in_two_processes("train_ddp", tmp_path)
    script = imported("train_ddp")
    distiller = script.distiller_of()
    before = {name: value.clone() for name, value in distiller.student.state_dict().items()}
    alone = script.train(distiller, distiller.student, slice(0, 4))

    moved = [name for name in alone if not torch.equal(alone[name], before[name])]
    assert {"words.weight", "patches.weight", "text.blocks.1.qkv.weight"} <= set(moved)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_gathered_examples_give_the_loss_and_gradient_of_the_joined_batch(tmp_path):
    loss, gradient = imported("gather_pairs").gradient(slice(None))
    for one_loss, one_gradient in run_in_two_processes("gather_pairs", tmp_path):
        torch.testing.assert_close(one_loss, loss)
        torch.testing.assert_close(one_gradient, gradient)


def test_a_blockwise_attention_loss_trains_under_ddp_as_the_dense_one_alone(tmp_path):
    script = imported("attend_blockwise")
    alone = script.gradients(script.projections(), slice(None), "dense")
    for found in run_in_two_processes("attend_blockwise", tmp_path):
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_unequal_ranks_add_up_to_the_whole_batch(tmp_path):
    script = imported("unequal_ranks")
    distiller = script.distiller_of()
    distiller(script.tiny.batch(5)).loss.backward()
    whole = script.gradients(distiller)
    for found in run_in_two_processes("unequal_ranks", tmp_path):
        for wrapped in ("distiller", "student"):
            assert found[wrapped].keys() == whole.keys()
            for name, value in whole.items():
                torch.testing.assert_close(
                    found[wrapped][name], value, rtol=1e-5, atol=1e-6, msg=f"{wrapped}: {name}"
                )
