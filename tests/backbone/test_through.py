"""Words that see the image through latents: Q-Formers and resamplers, from adapter files."""

from __future__ import annotations

import copy

import pytest
import torch

import distillkit as dk
from distillkit import errors, testing
from tests.support import zoo

ACROSS = "attention.text_to_image"
MARKS = {"where": "input_ids", "equals": zoo.IMAGE_TOKEN}
WORDS = {"modality": "text", "length": "input_ids", "mask": "attention_mask"}
PATCHES = {"modality": "image", "patch": zoo.PATCH, "uncropped": True}
BLIP2 = {
    "through": "query",
    "streams": {
        "joint": "language_model.model.decoder.layers.*.self_attn",
        "query_to_image": "qformer.encoder.layer.*.crossattention.attention",
    },
    "logits": "logits",
    "tokens": {
        "joint": [{"modality": "query", "length": 4, **MARKS}, WORDS],
        "query": [{"modality": "query", "length": 4}],
        "image": [{**PATCHES, "special": [0]}],
    },
    "absent": {"attention.image_to_text": "a decoder's image comes before its words"},
}
LATENTS = {"modality": "latent", "length": 4}
IDEFICS2 = {
    "through": "latent",
    "streams": {
        "joint": "model.text_model.layers.*.self_attn",
        "latent_to_image": "model.connector.perceiver_resampler.layers.*.self_attn",
    },
    "tokens": {
        "joint": [{**LATENTS, **MARKS}, WORDS],
        "latent": [LATENTS],
        "image": [PATCHES, LATENTS],  # its keys: the patches, then the latents themselves
    },
}


def build(name, implementation=None):
    """A model in which every word, latent and layer looks elsewhere: fresh weights are too small."""
    model, batch = zoo.build(name, implementation)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=drawn)
    return model, batch


def product_of(weights, reads):
    """Rows 5 to 9 are words, 1 to 4 latents; the first word sees none of these."""
    to_latents = weights[:, :, 5:, 1:5]
    to_latents = to_latents / to_latents.sum(-1, keepdim=True)
    return to_latents @ reads.mean(1, keepdim=True)


def test_it_is_the_product_of_what_blip2_says():
    module = "qformer.encoder.layer.1.crossattention.attention"
    model, batch = build("blip2_opt", "eager")
    seen = {"decoder": []}
    for layer in model.language_model.model.decoder.layers:
        layer.self_attn.register_forward_hook(lambda *a: seen["decoder"].append(a[-1][1]))
    model.get_submodule(module).register_forward_hook(lambda *a: seen.update(reads=a[-1][1]))
    _, signals = dk.Backbone(model, dk.DeclarativeAdapter(**BLIP2)).run(batch)
    found = signals[ACROSS]
    assert len(found) == len(seen["decoder"]) == 2
    assert seen["reads"].shape == (2, zoo.HEADS, 4, 17)
    for layer, weights in zip(found, seen["decoder"], strict=True):
        expected = product_of(weights, seen["reads"])
        expected[1, :, 3:] = 0  # padding
        torch.testing.assert_close(layer.probabilities()[:, :, 1:], expected)
        counted = [[False, *[True] * 5], [False, True, True, True, False, False]]
        assert layer.valid_rows()[:, 0].tolist() == counted
    words, patches = signals.axes(ACROSS)
    assert (words.modality, patches.modality) == ("text", "image")
    assert patches.grid == (4, 4)
    assert patches.extents.shape == (1, 17, 4)
    assert "attention.image_to_text" not in signals


def test_a_resampler_whose_latents_see_themselves_is_renormalised_over_the_patches():
    model, batch = build("idefics2", "eager")
    seen = {}
    last = model.model.text_model.layers[-1].self_attn
    resampler = model.model.connector.perceiver_resampler.layers[0].self_attn
    last.register_forward_hook(lambda *a: seen.update(decoder=a[-1][1]))
    resampler.register_forward_hook(lambda *a: seen.update(reads=a[-1][1]))
    _, signals = dk.Backbone(model, dk.DeclarativeAdapter(**IDEFICS2)).run(batch)
    assert seen["reads"].shape[-1] == 16 + 4
    reads = seen["reads"][..., :16]
    found = signals[ACROSS][-1]
    marks = batch["input_ids"] == zoo.IMAGE_TOKEN
    for example, marked in enumerate(marks):
        to_latents = seen["decoder"][example][:, ~marked][..., marked]
        to_latents = to_latents / to_latents.sum(-1, keepdim=True)
        mean = (reads / reads.sum(-1, keepdim=True))[example].mean(0)
        rows = found.valid_rows()[example, 0]
        assert rows.any()
        actual = found.probabilities()[example][:, rows]
        torch.testing.assert_close(actual, (to_latents @ mean)[:, rows])


@pytest.mark.parametrize(("name", "tables"), [("blip2_opt", BLIP2), ("idefics2", IDEFICS2)])
def test_the_kit_finds_nothing_wrong(name, tables):
    def factory():
        return *build(name), dk.DeclarativeAdapter(**tables)

    results = {one.name: one for one in testing.check_adapter(factory)}
    assert [str(one) for one in results.values() if one.failed] == []
    assert ACROSS in results["attention_is_what_the_streams_define"].seen


def test_one_layer_is_composed_of_what_is_kept_for_it():
    """With the text_to_image of the last layer alone, the resampler's last is kept as well."""
    model, batch = build("blip2_opt")
    whole = dk.Backbone(model, dk.DeclarativeAdapter(**BLIP2)).run(batch)[1][ACROSS]
    for index in (0, -1):
        backbone = dk.Backbone(model, dk.DeclarativeAdapter(**BLIP2))
        _, signals = backbone.run(batch, wanted={ACROSS: frozenset({index})})
        found = signals[ACROSS][index].probabilities()
        torch.testing.assert_close(found, whole[index].probabilities())


def test_a_named_layer_of_the_resampler():
    tables = copy.deepcopy(BLIP2)
    tables["streams"]["query_to_image"] = "qformer.encoder.layer.0.crossattention.attention"
    model, batch = build("blip2_opt")
    signals = dk.Backbone(model, dk.DeclarativeAdapter(**tables)).run(batch)[1]
    reads = dk.Backbone(model, dk.DeclarativeAdapter(**BLIP2)).run(batch)[1]
    first = reads["attention.query_to_image"][0]
    block = reads["attention.joint"][-1].between([0, 5, 6, 7, 8, 9], slice(1, 5))
    expected = block.through(first).probabilities()
    torch.testing.assert_close(signals[ACROSS][-1].probabilities(), expected)


def test_a_part_of_a_model_is_composed_as_well():
    class Whole(torch.nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, input_ids, attention_mask, pixel_values):
            return self.part(
                input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values
            )

    def factory():
        model, batch = build("blip2_opt")
        whole = Whole(model)
        return whole, batch, dk.adapt(whole, dk.DeclarativeAdapter(**BLIP2), at="part")

    results = {one.name: one for one in testing.check_adapter(factory)}
    assert [str(one) for one in results.values() if one.failed] == []
    assert ACROSS in results["attention_is_what_the_streams_define"].seen


def test_it_teaches_two_towers():
    student, pictures = zoo.build("clip")
    teacher, of_teacher = build("blip2_opt")
    words = of_teacher["input_ids"] != zoo.IMAGE_TOKEN
    student.train()
    batch = {
        "pixel_values": pictures["pixel_values"],
        "student_input_ids": of_teacher["input_ids"][words].view(2, -1),
        "student_attention_mask": of_teacher["attention_mask"][words].view(2, -1),
        "teacher_input_ids": of_teacher["input_ids"],
        "teacher_attention_mask": of_teacher["attention_mask"],
    }
    towers = {
        "streams": {
            "text": "text_model.encoder.layers.*.self_attn",
            "image": "vision_model.encoder.layers.*.self_attn",
        },
        "tokens": {"text": [WORDS], "image": [{**PATCHES, "special": [0]}]},
    }
    term = {"loss": "attention_kl", "on": [ACROSS]}
    distiller = dk.Distiller(
        student, teacher, dk.Recipe(name="places", terms=[term]),
        student_adapter=dk.DeclarativeAdapter(**towers),
        teacher_adapter=dk.DeclarativeAdapter(**BLIP2),
    )  # fmt: skip
    before = distiller(batch).loss
    before.backward()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    moved = [p for n, p in student.named_parameters() if "self_attn" in n and p.grad is not None]
    assert any(bool(p.grad.any()) for p in moved)
    optimizer.step()
    assert distiller(batch).loss < before


class TestWhatDoesNotFit:
    def test_other_patches_than_the_file_says(self):
        tables = copy.deepcopy(BLIP2)
        del tables["tokens"]["image"][0]["special"]
        model, batch = build("blip2_opt")
        signals = dk.Backbone(model, dk.DeclarativeAdapter(**tables)).run(batch)[1]
        message = "stream 'image' describes 16 tokens, but its attention has 17"
        with pytest.raises(errors.SignalError, match=message):
            signals[ACROSS][-1]

    def test_images_are_paired_with_their_texts(self):
        from distillkit._backbone.directions import attention_signals

        joint = dk.Attention.from_scores(torch.randn(3, 1, 4, 4))
        reads = dk.Attention.from_scores(torch.randn(2, 1, 2, 5))
        tables = {**BLIP2, "pairs": {"image": "of"}, "tokens": {
            "joint": [{"modality": "query", "length": 2}, {"modality": "text", "length": 2}],
            "query": [{"modality": "query", "length": 2}],
            "image": [{"modality": "image", "length": 5}],
        }}  # fmt: skip
        index = torch.tensor([1, 0, 1])
        layout = dk.DeclarativeAdapter(**tables).layout({"of": index}, None)
        streams = {"joint": [joint], "query_to_image": [reads]}
        found = attention_signals(streams, layout, "query")[0][ACROSS]()[0]
        block = joint.between(slice(2, 4), slice(0, 2)).probabilities()
        expected = block @ reads.probabilities()[index]
        torch.testing.assert_close(found.probabilities(), expected)


FILE = """
logits = "logits"
through = "latent"
streams = { joint = "layers.*", latent_to_image = "resampler.*" }

[[tokens.joint]]
modality = "latent"
length = 4

[[tokens.joint]]
modality = "text"
length = "input_ids"

[[tokens.latent]]
modality = "latent"
length = 4

[[tokens.image]]
modality = "image"
grid = [4, 4]
"""
WRONG = [
    ('through = "latent"', 'through = "image"', "neither text nor image"),
    ('through = "latent"', 'through = "latnt"', "no 'latnt_to_image'; did you mean 'latent_to_i"),
    ("latent_to_image =", "image =", "`streams` has no 'latent_to_image'"),
    ("joint =", "text =", "`streams` has no 'joint'"),
    ("{ joint", '{ text_to_image = "x.*", joint', "which `streams` names as well"),
    ("[[tokens.image]]", '[absent]\n"attention.text_to_image" = "no"\n[[tokens.image]]', "`absent`"),
    ('"latent"\nlength = 4\n\n[[tokens.j', '"laten"\nlength = 4\n\n[[tokens.j',
     "[[tokens.joint]] of modality 'latent'; did you mean 'laten'"),
    ('modality = "text"', 'modality = "words"', "[[tokens.joint]] of modality 'text'"),
    ("[[tokens.latent]]", "[[tokens.text]]", "[[tokens.latent]] of modality 'latent'; there are"),
    ('modality = "image"', 'modality = "patch"', "[[tokens.image]] of modality 'image'"),
    ("[[tokens.image]]", '[[tokens.latent_to_image]]\nmodality="latent"\nlength=4\n[[tokens.image]]',
     "say it twice"),
]  # fmt: skip


def test_a_file_that_composes_loads(tmp_path):
    (tmp_path / "right.toml").write_text(FILE, encoding="utf-8")
    assert dk.DeclarativeAdapter.from_toml(tmp_path / "right.toml").through == "latent"


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[one[1][:30] for one in WRONG])
def test_what_cannot_be_composed_is_refused_with_its_line(tmp_path, old, new, message):
    assert FILE.count(old) == 1
    path = tmp_path / "wrong.toml"
    path.write_text(FILE.replace(old, new), encoding="utf-8")
    with pytest.raises(errors.SignalError) as raised:
        dk.DeclarativeAdapter.from_toml(path)
    assert message in str(raised.value)
    assert "line 3: `through`" in str(raised.value)
