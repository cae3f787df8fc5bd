"""Captured attention under DDP and FSDP2: the gradients of one process on the joined batch."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.distributed import capture_parallel
from tests.distributed.two_processes import run_in_two_processes

NAMES = list(capture_parallel.scenarios(slice(0, 2)))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes found, for all scenarios."""
    return run_in_two_processes("capture_parallel", tmp_path_factory.mktemp("ranks"))


@functools.lru_cache
def alone(kind, loss):
    return capture_parallel.alone(f"{kind}, : {loss}")


@pytest.mark.xdist_group("capture_parallel")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_gradient_of_one(name, two):
    expected = alone(name.split(",")[0], name.rpartition(": ")[2])
    assert {"words.weight", "text.blocks.0.qkv.weight", "image.blocks.1.qkv.weight"} <= set(
        expected
    )
    largest = max(gradient.abs().max() for gradient in expected.values())
    for found in two:
        assert not isinstance(found[name], str), found[name]
        missing = {
            parameter
            for parameter, gradient in expected.items()
            if gradient.abs().max() > 1e-6 * largest
        } - set(found[name])
        assert not missing
        for parameter, gradient in found[name].items():
            true = expected.get(parameter, torch.zeros(()))
            assert (gradient - true).abs().max() <= 1e-5 * largest, parameter
