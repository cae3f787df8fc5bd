"""Small real models, data sets and trainers for the tests of DistillationTrainer."""

from __future__ import annotations

import copy

import torch
import transformers as hf
from distillkit_transformers import DistillationTrainer

import distillkit as dk

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
TEXT = {**SMALL, "vocab_size": 100, "max_position_embeddings": 40}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PATCHES = 4

LOGITS = dk.Recipe(name="logits", terms=[{"loss": "kl_divergence", "on": "logits"}])
ATTENTION = dk.Recipe(
    name="attention", terms=[{"loss": "attention_kl", "on": "attention.text_to_image"}]
)
PROJECTED = dk.Recipe(
    name="projected",
    terms=[
        {"loss": "attention_kl", "on": "attention.text_to_image", "per": "row"},
        {
            "loss": "mse",
            "on": "embedding.text",
            "align": [{"name": "projector", "student_width": 8, "teacher_width": 12}],
            "weight": {"start": 4.0, "stop": 0.0, "shape": "linear"},
            "name": "embeddings",
        },
    ],
)
"""A learnable projector, and a weight with a schedule."""


def vilt():
    return hf.ViltModel(hf.ViltConfig(**{**TEXT, **IMAGE, **STILL}))


def towers(width=8, **changes):
    """Two towers, which take no labels and return no logits."""
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(
        hf.ViTConfig(**{**IMAGE, **STILL, **changes}),
        hf.BertConfig(**{**TEXT, **STILL, **changes}),
        projection_dim=width,
    )
    return hf.VisionTextDualEncoderModel(config)


def llava(*, tied=False):
    """A decoder, which takes labels and divides its loss by num_items_in_batch."""
    text = hf.LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=tied, pad_token_id=0)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**IMAGE), text_config=text, image_token_id=99,
        vision_feature_select_strategy="default", vision_feature_layer=-1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = hf.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)  # answers that differ from those of another one
    return model


def answering():
    """A fusion encoder with soft labels of three answers."""
    model = hf.ViltForQuestionAnswering(hf.ViltConfig(**{**TEXT, **IMAGE, **STILL}, num_labels=3))
    with torch.no_grad():
        model.classifier[-1].weight.normal_(std=0.5)
    return model


def pairs(examples=8, words=6):
    """Texts of unequal length beside images."""
    lengths = torch.arange(examples) % (words - 1) + 2
    mask = (torch.arange(words) < lengths[:, None]).long()
    ids = torch.randint(5, 90, (examples, words)) * mask
    ids[torch.arange(examples), lengths - 1] = 2
    pixels = torch.rand(examples, 3, 16, 16)
    return one_by_one({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})


def prompts(examples=8, words=6):
    """Prompts with an image, padded, of which unequally many words have a label."""
    texts = pairs(examples, words)
    ids = torch.stack([one["input_ids"] for one in texts])
    mask = torch.stack([one["attention_mask"] for one in texts])
    start = torch.cat([torch.ones(examples, 1).long(), torch.full((examples, PATCHES), 99)], 1)
    batch = {
        "input_ids": torch.cat([start, ids], 1),
        "attention_mask": torch.cat([torch.ones_like(start), mask], 1),
        "pixel_values": torch.stack([one["pixel_values"] for one in texts]),
        "labels": torch.cat([torch.full_like(start, -100), ids.where(mask == 1, -100)], 1),
    }
    return one_by_one(batch)


def questions(examples=8):
    answers = torch.rand(examples, 3)
    return [{**one, "labels": x} for one, x in zip(pairs(examples), answers, strict=True)]


def one_by_one(batch):
    count = len(next(iter(batch.values())))
    return [{name: value[i] for name, value in batch.items()} for i in range(count)]


def together(examples):
    return {name: torch.stack([one[name] for one in examples]) for name in examples[0]}


def arguments(folder, **changes):
    changes = {
        "max_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4,
        "train_sampling_strategy": "sequential", "save_strategy": "no", "logging_steps": 1,
        **changes,
    }  # fmt: skip
    return hf.TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **changes
    )


SGD = {
    "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    "weight_decay": 0.0,
}  # fmt: skip
"""Settings under which the change of a parameter is its gradient."""


def trainer_of(
    folder, student, teacher, recipe, data, *, kind=DistillationTrainer, seed=7, **changes
):
    """A trainer of copies, so that several start alike."""
    named = {name: changes.pop(name) for name in list(changes) if name in NAMED}
    torch.manual_seed(seed)  # for what aligners start with
    return kind(
        copy.deepcopy(student), copy.deepcopy(teacher), recipe, train_dataset=data,
        args=arguments(folder, **changes), **named,
    )  # fmt: skip


NAMED = {
    "eval_dataset", "compute_metrics", "evaluate_distillation", "ignore", "callbacks",
    "data_collator", "task_loss",
}  # fmt: skip


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def learned(trainer):
    """All that the trainer has learned: the student's parameters and the aligners'."""
    parts = [flat(trainer.model)]
    if list(trainer.distiller.objective.parameters()):
        parts.append(flat(trainer.distiller.objective))
    return torch.cat(parts)


def by_hand(student, teacher, recipe, windows, rate=SGD["learning_rate"], steps=None):
    """The distiller that a plain loop gets from one big batch for each window of examples."""
    torch.manual_seed(7)
    distiller = dk.Distiller(copy.deepcopy(student), copy.deepcopy(teacher), recipe).train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=rate)
    results = []
    for i, window in enumerate(windows):
        optimizer.zero_grad()
        results.append(distiller(together(window), progress=i / (steps or len(windows))))
        results[-1].loss.backward()
        optimizer.step()
    return distiller, results
