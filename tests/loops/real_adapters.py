"""LoRA by the real PEFT in the small models of these tests."""

from __future__ import annotations

import peft
import torch

import distillkit as dk
from tests.support.students import TookEffect, only_moves


def add_lora(distiller: dk.Distiller) -> TookEffect:
    """LoRA in every attention, which alone is learned."""
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    distiller.student = peft.get_peft_model(distiller.student, config)
    return only_moves(distiller, {"lora_A", "lora_B"})
