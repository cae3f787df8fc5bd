"""The teacher of a task, from its name or path, every weight accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from distillkit.errors import OptionError

from .labels import KNOWN_ORDERS

KINDS = {
    "vqa": hf.ViltForQuestionAnswering,
    "ve": hf.ViltForQuestionAnswering,
    "nlvr2": hf.ViltForImagesAndTextClassification,
    "retrieval": hf.ViltForImageAndTextRetrieval,
    "pretraining": hf.ViltForMaskedLM,
}
_FILES = ("model.safetensors", "pytorch_model.bin")
_OFFICIAL = "vilt.transformer."
_LEFT_OUT = ("vilt.token_pruner.",)  # learns what to leave out, which a plain teacher does not
_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def load_teacher(task: str, source: str, names: Sequence[str] | None = None) -> Any:
    """The teacher, in eval mode.

    Args:
        task: a task's name.
        source: the name or path of a checkpoint: of transformers' ViLT, or for visual entailment
            also one that names its weights as the official code does (PuMer's).
        names: the names of its classes, in its order, where its configuration has none.

    Raises:
        OptionError: weights that the checkpoint lacks or the class does not know.
    """
    if task == "ve" and (weights := _official_weights(source)) is not None:
        names = names or KNOWN_ORDERS.get(source)
        declared, _ = hf.PreTrainedConfig.get_config_dict(source)
        return _converted(source, weights, declared, names).eval()
    kind: Any = KINDS[task]
    model, report = kind.from_pretrained(source, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise OptionError(
            f"{source!r} lacks {len(missing)} weights of a {kind.__name__}: "
            f"{', '.join(missing[:3])} ... They would be random, and so would be all that is "
            f"learned from them: the task {task!r} takes another checkpoint"
        )
    limit = model.config.max_image_length
    if isinstance(limit, int) and limit > 0:
        raise OptionError(
            f"{source!r} draws {limit} patches of every image at random; the student has to be "
            "given its draw in every step (docs/how-to/repeat-the-paper.md), or set "
            "max_image_length to -1 in its config.json: it sees every patch then"
        )
    return model.eval()


def _official_weights(source: str) -> dict[str, Tensor] | None:
    """The weights of a checkpoint with the official names; None: it has those of transformers."""
    for name in _FILES:
        path = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is None:
            continue
        if Path(path).suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        return weights if any(key.startswith(_OFFICIAL) for key in weights) else None
    return None


def _converted(
    source: str, weights: Mapping[str, Tensor], declared: Mapping[str, Any],
    names: Sequence[str] | None,
) -> hf.ViltForQuestionAnswering:  # fmt: skip
    """transformers' class with these weights."""
    state = transformers_names(weights)
    width = state["vilt.embeddings.cls_token"].shape[-1]
    patch = state["vilt.embeddings.patch_embeddings.projection.weight"].shape[-1]
    side = math.isqrt(state["vilt.embeddings.position_embeddings"].shape[1] - 1)
    layers = 1 + max(int(key.split(".")[3]) for key in state if ".encoder.layer." in key)
    text = "vilt.embeddings.text_embeddings"
    classes = len(state["classifier.3.bias"])
    labels = dict(enumerate(names)) if names else None
    config = hf.ViltConfig(
        hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=declared.get("num_heads", max(1, width // 64)),
        intermediate_size=len(state["vilt.encoder.layer.0.intermediate.dense.bias"]),
        vocab_size=len(state[f"{text}.word_embeddings.weight"]),
        max_position_embeddings=len(state[f"{text}.position_embeddings.weight"]),
        type_vocab_size=len(state[f"{text}.token_type_embeddings.weight"]),
        modality_type_vocab_size=len(state["vilt.embeddings.token_type_embeddings.weight"]),
        patch_size=patch, image_size=side * patch,
        **({"id2label": labels} if labels else {"num_labels": classes}),
    )  # fmt: skip
    model = hf.ViltForQuestionAnswering(config)
    known = model.state_dict()
    wrong = sorted(
        key for key in {*state, *known}
        if key not in state or key not in known or state[key].shape != known[key].shape
    )  # fmt: skip
    if wrong:
        raise OptionError(
            f"{source!r} is no ViLT with the official names: {', '.join(wrong[:3])} is missing, "
            "unknown or of another shape"
        )
    model.load_state_dict(state)
    return model


def transformers_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the official code under the names of transformers' ViltForQuestionAnswering.

    Queries, keys and values are one matrix there.
    """
    found: dict[str, Tensor] = {}
    for key, x in weights.items():
        if key.startswith(_LEFT_OUT) or key.endswith("position_ids"):
            continue
        if ".attn.qkv." in key:
            layer, kind = _layer_of(key), key.rpartition(".")[2]
            for name, part in zip(("query", "key", "value"), x.chunk(3), strict=True):
                found[f"{layer}.attention.attention.{name}.{kind}"] = part.contiguous()
        else:
            found[_renamed(key)] = x
    return found


def _layer_of(key: str) -> str:
    number = key.removeprefix(f"{_OFFICIAL}blocks.").partition(".")[0]
    return f"vilt.encoder.layer.{number}"


def _renamed(key: str) -> str:
    if key.startswith(f"{_OFFICIAL}blocks."):
        part, _, kind = key.removeprefix(f"{_OFFICIAL}blocks.").partition(".")[2].rpartition(".")
        return f"{_layer_of(key)}.{_PARTS.get(part, part)}.{kind}"
    for official, ours in (
        (f"{_OFFICIAL}patch_embed.proj.", "vilt.embeddings.patch_embeddings.projection."),
        (f"{_OFFICIAL}cls_token", "vilt.embeddings.cls_token"),
        (f"{_OFFICIAL}pos_embed", "vilt.embeddings.position_embeddings"),
        (f"{_OFFICIAL}norm.", "vilt.layernorm."),
        ("vilt.text_embeddings.", "vilt.embeddings.text_embeddings."),
        ("vilt.token_type_embeddings.", "vilt.embeddings.token_type_embeddings."),
        ("ve_classifier.", "classifier."),
    ):
        if key.startswith(official):
            return ours + key.removeprefix(official)
    return key
