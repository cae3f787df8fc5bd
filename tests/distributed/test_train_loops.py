"""Whole steps of two processes, with accumulation, clipping and resuming, are those of one."""

from __future__ import annotations

import functools
import shutil
import warnings

import pytest
import torch

from tests.distributed import train_loops
from tests.distributed.two_processes import run_in_two_processes
from tests.support.students import CHANGES

HALF = 5e-3
NAMES = list(train_loops.scenarios(""))
pytestmark = [
    pytest.mark.xdist_group("train_loops"),
    pytest.mark.filterwarnings("ignore:torch.distributed is"),
    pytest.mark.filterwarnings("ignore:.*no process group:UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds what one process saved after the first steps."""
    made = tmp_path_factory.mktemp("ranks")
    distiller = train_loops.distiller_of()
    optimizer = train_loops.optimizer_of(distiller)
    train_loops.train(
        distiller, distiller, optimizer, rank=None, steps=range(train_loops.INTERRUPTED)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a checkpoint without a process group
        train_loops.save(str(made / "one"), distiller, optimizer)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def two(folder):
    """What both processes found, for all scenarios."""
    return run_in_two_processes("train_loops", folder)


@functools.cache
def alone(first=0, last=train_loops.STEPS, *, rows=True):
    terms = train_loops.TERMS if rows else train_loops.EVERY_EXAMPLE
    trained = train_loops.alone(range(last), terms)
    return trained._replace(losses=trained.losses[first:])


def change_in(name):
    """What was done to the student; checkpointing and compilation change no number."""
    return next((change for change in CHANGES if f", {change}" in name), None)


@functools.cache
def changed_alone(change):
    return train_loops.changed(train_loops.distiller_of(), CHANGES[change])


def expected(name):
    change = change_in(name)
    if change in ("bf16", "PEFT"):
        return changed_alone(change)
    if name.endswith("interrupted"):
        return alone(last=train_loops.INTERRUPTED)
    if name.endswith("evaluated"):
        return alone()._replace(weights={"logits": train_loops.evaluated_alone()})
    if name == "fsdp1":
        return alone(rows=False)
    return alone(first=train_loops.INTERRUPTED if name.endswith("resumed") else 0)


def assert_same(found, true, tolerance=1e-5):
    losses, weights = found
    torch.testing.assert_close(
        torch.tensor(losses), torch.tensor(true.losses), rtol=tolerance, atol=0.1 * tolerance
    )
    assert weights.keys() == true.weights.keys()
    for name, value in true.weights.items():
        torch.testing.assert_close(weights[name], value, rtol=tolerance, atol=tolerance, msg=name)


def test_what_is_compared_moves():
    start = train_loops.weights_of(train_loops.distiller_of())
    moved = [name for name, x in alone().weights.items() if (x - start[name]).abs().max() > 1e-3]
    assert {"student.words.weight", "student.text.blocks.1.qkv.weight"} <= set(moved)
    assert any(name.startswith("objective.") for name in moved)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one(name, two):
    for found in two:
        assert not isinstance(found[name], str), found[name]
        tolerance = HALF if change_in(name) == "bf16" else 1e-5
        assert_same(found[name], expected(name), tolerance)


def test_one_process_accumulates_and_clips():
    """Four unequal batches in a step are the joined one."""
    distiller = train_loops.distiller_of()
    optimizer, losses = train_loops.optimizer_of(distiller), []
    for step in range(train_loops.STEPS):
        batches = [x for rank in (0, 1) for x in train_loops.batches_of(step, rank)]
        progress = step / train_loops.STEPS
        normalizer = distiller.normalizer(batches, progress=progress)
        found = []
        for batch in batches:
            found.append(distiller(batch, progress=progress, normalizer=normalizer).loss)
            found[-1].backward()
        train_loops.clip(distiller)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(found).item())
    assert_same((losses, train_loops.weights_of(distiller)), alone())


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_one_process_goes_on_where_two_stopped(way, two, folder):
    distiller = train_loops.distiller_of()
    with torch.no_grad():
        for parameter in distiller.parameters():
            parameter.add_(1.0)
    optimizer = train_loops.optimizer_of(distiller)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_loops.load(str(folder / f"{way} two"), distiller, optimizer)
    steps = range(train_loops.INTERRUPTED, train_loops.STEPS)
    losses = train_loops.train(distiller, distiller, optimizer, rank=None, steps=steps)
    assert_same((losses, train_loops.weights_of(distiller)), expected("resumed"))
