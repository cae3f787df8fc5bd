"""Teachers from files: transformers' own, and one that names its weights as the official code."""

from __future__ import annotations

import json
import re

import pytest
import torch
from dide_paper import teachers
from safetensors.torch import save_file

from distillkit import errors
from tests.support import paper_files as files

BACK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
}  # fmt: skip


def official_weights(teacher):
    """The weights of a ViLT of transformers under the names of the official code, as PuMer has."""
    found = {"vilt.text_embeddings.position_ids": torch.arange(40)[None]}
    parts = {}
    for name, x in teacher.state_dict().items():
        layer = re.fullmatch(r"vilt\.encoder\.layer\.(\d+)\.(.*)\.(weight|bias)", name)
        if layer and layer[2].startswith("attention.attention."):
            which = layer[2].rpartition(".")[2]
            parts.setdefault((layer[1], layer[3]), {})[which] = x
        elif layer:
            found[f"vilt.transformer.blocks.{layer[1]}.{BACK[layer[2]]}.{layer[3]}"] = x
        else:
            for ours, theirs in (
                (
                    "vilt.embeddings.patch_embeddings.projection",
                    "vilt.transformer.patch_embed.proj",
                ),
                ("vilt.embeddings.cls_token", "vilt.transformer.cls_token"),
                ("vilt.embeddings.position_embeddings", "vilt.transformer.pos_embed"),
                ("vilt.embeddings.", "vilt."),
                ("vilt.layernorm.", "vilt.transformer.norm."),
                ("classifier.", "ve_classifier."),
            ):
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
                    break
            found[name] = x
    for (number, kind), three in parts.items():
        joined = torch.cat([three[which] for which in ("query", "key", "value")])
        found[f"vilt.transformer.blocks.{number}.attn.qkv.{kind}"] = joined
    return {name: x.clone().contiguous() for name, x in found.items()}


@pytest.fixture
def original():
    return files.make_teacher("ve")


def write(folder, weights, kind="safetensors"):
    folder.mkdir(exist_ok=True)
    declared = {"model_type": "vilt", "num_heads": 4, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(declared), encoding="utf-8")
    if kind == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(weights, folder / "pytorch_model.bin")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_official_names(tmp_path, original, kind):
    weights = official_weights(original)
    weights["vilt.token_pruner.score.weight"] = torch.zeros(2, 2)
    write(tmp_path, weights, kind)
    found = teachers.load_teacher("ve", str(tmp_path), files.RELATIONS)
    for name, x in original.state_dict().items():
        assert torch.equal(found.state_dict()[name], x), name
    assert tuple(found.config.id2label.values()) == files.RELATIONS
    batch = {"input_ids": torch.randint(5, 20, (2, 6)), "pixel_values": torch.rand(2, 3, 64, 64)}
    with torch.no_grad():
        torch.testing.assert_close(found(**batch).logits, original(**batch).logits)


def test_weights_that_nobody_knows(tmp_path, original):
    weights = official_weights(original)
    weights["vilt.transformer.head.weight"] = torch.zeros(3, 32)
    del weights["vilt.pooler.dense.bias"]
    write(tmp_path, weights)
    with pytest.raises(
        errors.OptionError, match=r"vilt\.pooler\.dense\.bias, vilt\.transformer\.head"
    ):
        teachers.load_teacher("ve", str(tmp_path))


@pytest.mark.parametrize("task", ["vqa", "ve", "nlvr2", "retrieval", "pretraining"])
def test_files_of_transformers(tmp_path, task):
    original = files.write_checkpoint(tmp_path, task)
    found = teachers.load_teacher(task, str(tmp_path))
    assert type(found) is type(original)
    assert not found.training
    for name, x in original.state_dict().items():
        assert torch.equal(found.state_dict()[name], x), name


def test_a_checkpoint_of_another_task(tmp_path):
    files.write_checkpoint(tmp_path, "pretraining")
    with pytest.raises(errors.OptionError, match="lacks .* weights of a ViltForQuestionAnswering"):
        teachers.load_teacher("vqa", str(tmp_path))


def test_a_teacher_that_draws_patches(tmp_path):
    files.write_checkpoint(tmp_path, "vqa", max_image_length=3)
    with pytest.raises(errors.OptionError, match="draws 3 patches of every image at random"):
        teachers.load_teacher("vqa", str(tmp_path))
