"""Decoders that learn words from decoders, without logits."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import kl_div

from .. import families
from .trial import Batch, Trial


def llava_of(width: int) -> hf.LlavaForConditionalGeneration:
    language = {**families.LLAMA, "hidden_size": width, "intermediate_size": 2 * width}
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **families.IMAGE},
        text_config={"model_type": "llama", **language},
        image_token_id=99,
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config)


def answered() -> dict[str, Any]:
    """Prompts of images and words, of which the last are the response."""
    batch = families.prompted(families.prompt(99, 16))
    labels = batch["input_ids"].clone()
    labels[:, :-4] = -100
    labels[batch["attention_mask"] == 0] = -100
    return {**batch, "labels": labels}


def narrow_and_wide() -> tuple[nn.Module, nn.Module, Batch]:
    teacher = llava_of(64)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(8)
    return llava_of(32), teacher, answered()


def response(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """The mean over examples of each one's mean over its response, T = 2."""
    inputs = {name: one for name, one in batch.items() if name != "labels"}
    asked = batch["labels"][:, 1:] != -100
    sides = [(model(**inputs).logits[:, :-1] / 2).log_softmax(-1) for model in (student, teacher)]
    found = [
        4 * kl_div(sides[0][i, rows], sides[1][i, rows], reduction="batchmean", log_target=True)
        for i, rows in enumerate(asked)
    ]
    return torch.stack(found).mean()


TRIALS = {"vlm_response_linear": Trial(narrow_and_wide, response)}
