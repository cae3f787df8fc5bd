"""Engines that cannot run a distiller are refused by their name, before anything is learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distillkit as dk
from distillkit.errors import CaptureError
from tests.support import tiny

TERMS = [{"loss": "attention_kl", "on": "attention.text_to_image"}]


def distiller_of(student):
    return dk.Distiller(
        student, tiny.Fusion(), dk.Recipe(name="attention", terms=TERMS),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES), ignore=["labels"],
    )  # fmt: skip


def over_two_devices(student):
    wrapped = nn.DataParallel(student)
    wrapped.device_ids = [0, 1]
    return wrapped


def test_data_parallel_over_several_devices_is_refused():
    with pytest.raises(CaptureError, match="DataParallel over 2 devices.*torchrun"):
        distiller_of(over_two_devices(tiny.Dual()))
    distiller = distiller_of(tiny.Dual())
    distiller.student = over_two_devices(distiller.student)
    with pytest.raises(CaptureError, match="DataParallel over 2 devices.*torchrun"):
        distiller(tiny.batch())


def test_data_parallel_on_one_device_only_passes_on():
    distiller = distiller_of(tiny.Dual()).eval()
    loss = distiller(tiny.batch()).loss
    distiller.student = nn.DataParallel(distiller.student)
    assert torch.equal(distiller(tiny.batch()).loss, loss)


def test_a_distiller_in_data_parallel_is_refused():
    """What ``nn.DataParallel`` makes of a module on each device, which takes two GPUs to run."""
    distiller = distiller_of(tiny.Dual())
    replica = distiller._replicate_for_data_parallel()
    replica.student = distiller.student._replicate_for_data_parallel()
    with pytest.raises(CaptureError, match="distiller is in nn.DataParallel.*torchrun"):
        replica(tiny.batch())


@pytest.mark.parametrize("when", ["before", "after"])
def test_partitions_of_deepspeed_are_refused(when):
    """Its engine marks every parameter with ``ds_id``."""

    def partition(student):
        for i, parameter in enumerate(student.parameters()):
            parameter.ds_id = i
        return student

    if when == "before":
        with pytest.raises(CaptureError, match="ZeRO stage 3.*fully_shard"):
            distiller_of(partition(tiny.Dual()))
        return
    distiller = distiller_of(tiny.Dual())
    partition(distiller.student)
    with pytest.raises(CaptureError, match="ZeRO stage 3.*fully_shard"):
        distiller(tiny.batch())
