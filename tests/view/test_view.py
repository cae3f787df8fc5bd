"""What the viewer's page holds: the models' numbers, their tokens, and nothing that runs."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import distillkit as dk
from distillkit import losses
from distillkit._view import coding, contexts, pictures
from distillkit._view.maps import Maps, maps_of
from distillkit.errors import DistillKitError, OptionError, ShapeError, SignalError
from tests.support import decoding, shown
from tests.support.shown import TO_IMAGE, TO_TEXT, WORDS

ROOT = Path(__file__).parents[2]
HOSTILE = ["</script><img src=x onerror=alert(1)>", "<!--<script>", "${policy}", "&lt;\u2028'\"`"]


@pytest.fixture(scope="module")
def page():
    return dk.view(shown.signals(0), shown.signals(1), words=WORDS, images=torch.rand(2, 3, 8, 12))


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize(("number", "name"), [(0, TO_IMAGE), (1, TO_TEXT)])
def test_the_page_holds_the_probabilities_and_the_rows_that_count(page, side, number, name):
    exact = shown.signals(1 if side == "teacher" else 0)[name]
    for layer, attention in enumerate(exact):
        numbers, counts, *_ = shown.maps_of(page.html, number, layer, side)
        expected = attention.probabilities()
        off = np.abs(numbers - expected.numpy())
        assert off.max() <= page.tolerance
        assert (off <= page.relative * expected.amax(-1, keepdim=True).numpy() + 1e-9).all()
        assert np.array_equal(counts, attention.valid_rows().numpy())
    assert page.tolerance < 0.005


def test_the_page_holds_the_divergence_that_the_losses_compute(page):
    student, teacher = shown.signals(0)[TO_IMAGE], shown.signals(1)[TO_IMAGE]
    for layer in range(2):
        *_, kl, compared = shown.maps_of(page.html, 0, layer, "student")
        expected = [
            losses.attention_kl(student[layer], teacher[layer]),
            losses.attention_kl(student[layer], teacher[layer], heads="mean"),
        ]
        assert np.allclose(kl, torch.cat(expected, 1).numpy(), rtol=0.005, atol=1e-6)
        rows = losses.shared_rows(student[layer], teacher[layer])
        assert np.array_equal(compared[:, :-1], rows.numpy())
        means = shown.facts_of(page.html)["signals"][0]["layers"][layer]["means"][0]
        exact = losses.masked_mean(expected[0][1], mask=rows[1])
        assert np.mean(means[1][:-1]) == pytest.approx(exact.item(), rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(coding.LEVELS),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 6)),
    st.integers(2, 4),
    st.sampled_from([0.001, 200]),
)
def test_no_number_is_farther_off_than_the_page_says(
    seed, levels, sharpness, shape, stride, per_entry
):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(shape[0], shape[2], generator=generator) < 0.7
    layers = []
    for reference in (None, 0):
        scores = sharpness * torch.randn(shape, generator=generator)
        maps = maps_of(dk.Attention.from_scores(scores, rows=rows))
        layers.append(coding.Layer(maps, None, str(reference), reference, (stride, stride)))
    with (
        mock.patch.object(coding, "LEVELS", (levels,)),
        mock.patch.object(contexts, "_CODES_PER_ENTRY", per_entry),
    ):
        coded = coding.encoded(layers, 10**9)
    for i, one in enumerate(layers):
        facts = {**coded.facts, "levels": coded.levels}
        numbers, counts, *_ = decoding.read(facts, dict(enumerate(coded.texts)), i)
        exact = one.maps.probabilities.numpy()
        off = np.abs(numbers - exact)
        assert (off <= coded.errors.absolute + 1e-7).all()
        bound = coded.errors.relative * exact.max(-1, keepdims=True, initial=0)
        assert (off <= bound + 1e-7).all()
        assert np.array_equal(counts, one.maps.counts)
    assert coded.errors.absolute <= 1.1 / levels


def test_a_model_that_diverged_is_seen():
    key = torch.randn(1, 1, 4, 3)
    query = torch.randn(1, 1, 2, 3)
    query[0, 0, 0, 1] = torch.nan
    sides = dk.Attention(query, key), dk.Attention(torch.randn(1, 1, 2, 3), key)
    page = dk.view(*sides, words=[["a", "b"]], images=torch.rand(1, 1, 4, 4))
    numbers, *_, kl, _ = shown.maps_of(page.html, 0, 0, "student")
    assert np.isnan(numbers[0, 0, 0]).any()
    assert np.isnan(kl[0, 0, 0])
    assert np.isfinite(kl[0, 0, 1])


def test_fewer_levels_are_taken_where_the_page_would_be_too_large():
    maps = Maps(torch.rand(4, 3, 20, 30), torch.ones(4, 3, 20, dtype=torch.bool))
    layers = [coding.Layer(maps, None)] * 3

    def size(coded):
        models = [one["frequencies"] for key in coded.facts["models"] for one in key["classes"]]
        return sum(map(len, (*coded.texts, *models)))

    fine = coding.encoded(layers, 10**7)
    budget = int(0.7 * size(fine))
    coarse = coding.encoded(layers, budget)
    assert fine.levels == 254 > coarse.levels > 2
    assert 0.7 * budget < size(coarse) <= budget
    assert coding.encoded(layers, 0).levels == 2
    assert fine.errors.absolute < coarse.errors.absolute


def test_a_map_that_is_like_another_costs_less():
    maps = Maps(torch.rand(4, 3, 40, 100), torch.ones(4, 3, 40, dtype=torch.bool))
    first = coding.Layer(maps, None, "teacher")
    alone, after = (coding.Layer(maps, None, "student", i) for i in (None, 0))
    with mock.patch.object(coding, "LEVELS", (12,)):
        sizes = [len(coding.encoded([first, one], 10**7).texts[1]) for one in (alone, after)]
    assert sizes[1] < 0.4 * sizes[0]


def test_hostile_text_stays_text():
    words = [[*HOSTILE], [*HOSTILE[:2], "[padding]", "[padding]"]]
    steps = {name: shown.signals(0) for name in HOSTILE}
    page = dk.view(steps, shown.signals(1), words=words).html
    found, plain = shown.elements(page), shown.elements(dk.view(shown.signals(0), words=WORDS).html)
    assert {tag for tag, _ in found.tags} == {tag for tag, _ in plain.tags}
    assert not any(name.startswith("on") for _, facts in found.tags for name in facts)
    facts = shown.facts_of(page)
    assert facts["axes"][0]["labels"] == words
    assert facts["checkpoints"] == HOSTILE


def test_one_script_may_run_and_nothing_may_be_fetched(page):
    found = shown.elements(page.html)
    code = [data for facts, data in found.scripts if "type" not in facts]
    assert len(code) == 1
    (policy,) = [f["content"] for tag, f in found.tags if "http-equiv" in f]
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "http" not in page.html.replace("http-equiv", "")


def test_a_notebook_gets_a_frame_that_holds_the_page(page):
    frame = page._repr_html_()
    ((_, facts),) = shown.elements(frame).tags
    assert facts["srcdoc"] == page.html
    assert facts["sandbox"] == "allow-scripts"


def test_a_distiller_shows_every_layer_and_is_left_as_it_was():
    spec = importlib.util.spec_from_file_location("dide_tf", ROOT / "examples/dide_transformers.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    batch = example.draw(3, torch.Generator().manual_seed(0))
    student, teacher = example.make_student(), example.make_teacher()
    distiller = dk.Distiller(student, teacher, dk.load_recipe("dide"), ignore=["answer"])
    student.text_model.train()
    student.vision_model.eval()
    modes = [module.training for module in distiller.modules()]

    class Tokenizer:
        def decode(self, ids):
            return example.WORDS[ids[0]]

    page = dk.view(
        distiller, batch=batch, words=Tokenizer(), images="pixel_values", denormalise=(0.5, 0.5)
    )
    assert [module.training for module in distiller.modules()] == modes
    assert not any(module._forward_hooks for module in distiller.modules())
    facts = shown.facts_of(page.html)
    assert [one["name"] for one in facts["signals"]] == [TO_IMAGE, TO_TEXT]
    assert [len(one["layers"]) for one in facts["signals"]] == [2, 2]
    named = [[example.WORDS[i] for i in row] for row in batch["input_ids"].tolist()]
    assert facts["axes"][0]["labels"] == named
    student.eval()
    with torch.no_grad():
        expected = dk.Backbone(student).signals(batch)[TO_IMAGE][0]
    numbers, counts, *_ = shown.maps_of(page.html, 0, 0, "student")
    assert np.abs(numbers - expected.probabilities().numpy()).max() <= page.tolerance
    words = [kinds.count("p") for kinds in facts["axes"][0]["kinds"]]
    assert words == (batch["attention_mask"] == 0).sum(1).tolist()
    assert not counts.all(1)[(batch["attention_mask"] == 0).numpy()].any()


def test_checkpoints_share_one_teacher():
    steps = {f"step {i}": shown.signals(i) for i in range(3)}
    page = dk.view(steps, shown.signals(9), words=WORDS)
    facts = shown.facts_of(page.html)
    assert facts["checkpoints"] == ["step 0", "step 1", "step 2"]
    for step in range(3):
        numbers, *_ = shown.maps_of(page.html, 0, 1, "student", step)
        exact = shown.signals(step)[TO_IMAGE][1].probabilities().numpy()
        assert np.abs(numbers - exact).max() <= page.tolerance
    assert sum("layer-" in f.get("id", "") for f, _ in shown.elements(page.html).scripts) == 16


def test_layers_and_heads_of_unequal_number_stand_beside_each_other():
    page = dk.view(
        shown.signals(0, depth=2, heads=2), shown.signals(1, depth=4, heads=3), words=WORDS
    )
    facts = shown.facts_of(page.html)["signals"][0]
    assert [one["label"] for one in facts["layers"]] == [
        "1 of the student, 2 of the teacher",
        "2 of the student, 4 of the teacher",
    ]
    assert facts["kl_heads"] == 1  # of the mean alone
    numbers, *_ = shown.maps_of(page.html, 0, 0, "teacher")
    exact = shown.signals(1, depth=4, heads=3)[TO_IMAGE][1].probabilities().numpy()
    assert np.abs(numbers - exact).max() <= page.tolerance
    pair = dk.view(shown.signals(0), shown.signals(1), layers=[[0, 1]], signals=[TO_TEXT])
    (one,) = shown.facts_of(pair.html)["signals"]
    assert [x["label"] for x in one["layers"]] == ["1 of the student, 2 of the teacher"]


def test_other_patches_are_carried_onto_the_students_by_overlap():
    def side(grid):
        image = dk.TokenAxis("image", grid=grid, extents=dk.grid_extents(grid, torch.tensor([[0.0, 0, 1, 1]])))  # fmt: skip
        scores = torch.randn(1, 2, 3, grid[0] * grid[1])
        return dk.Signals({TO_IMAGE: [dk.Attention.from_scores(scores)]}, axes={TO_IMAGE: (dk.TokenAxis("text"), image)})  # fmt: skip

    student, teacher = side((2, 2)), side((4, 4))
    page = dk.view(student, teacher, words=[["a", "b", "c"]])
    numbers, *_ = shown.maps_of(page.html, 0, 0, "teacher")
    exact = teacher[TO_IMAGE][0].probabilities().view(1, 2, 3, 2, 2, 2, 2).sum((4, 6)).flatten(3)
    assert np.abs(numbers - exact.numpy()).max() <= page.tolerance + 1e-6
    plain = dk.Signals({TO_IMAGE: teacher[TO_IMAGE]}, axes={TO_IMAGE: (dk.TokenAxis("text"), dk.TokenAxis("image", grid=(4, 4)))})  # fmt: skip
    with pytest.raises(ShapeError, match="nothing says where those of the teacher lie"):
        dk.view(student, plain)
    wide = dk.TokenAxis("image", grid=(1, 4))
    other = dk.Signals({TO_IMAGE: student[TO_IMAGE]}, axes={TO_IMAGE: (dk.TokenAxis("text"), wide)})
    with pytest.raises(ShapeError, match=r"a grid of \(2, 2\), the teacher's of \(1, 4\)"):
        dk.view(student, other)


@pytest.mark.parametrize(
    ("q", "k", "words", "images", "ends"),
    [
        (2, 4, 2, True, ("text", "image")),
        (4, 2, 2, True, ("image", "text")),
        (5, 5, None, True, ("image", "image")),
        (3, 3, 3, False, ("text", "text")),
        (4, 4, 4, True, ("text", "image")),
    ],
)
def test_words_and_images_explain_attentions_alone(q, k, words, images, ends):
    attention = dk.Attention.from_scores(torch.randn(1, 2, q, k))
    named = None if words is None else [[f"w{i}" for i in range(words)]]
    page = dk.view(attention, words=named, images=torch.rand(1, 1, 4, 4) if images else None)
    facts = shown.facts_of(page.html)
    (signal,) = facts["signals"]
    assert tuple(facts["axes"][signal[end]]["modality"] for end in ("rows", "keys")) == ends
    assert not facts["has_teacher"]


def test_patches_lie_where_the_grid_or_the_extents_say():
    facts = shown.facts_of(dk.view(shown.signals(0)).html)
    image = facts["axes"][1]
    assert image["boxes"][0][:3] == [None, [0, 0, 0, 0.5, 0.33333], [0, 0, 0.33333, 0.5, 0.66667]]
    assert image["labels"][0][:2] == ["[image 0]", "row 1, column 1"]
    box = torch.tensor([[0.5, 0, 1, 1]])
    axis = dk.TokenAxis("image", grid=(1, 2), extents=dk.grid_extents((1, 2), box))
    value = {TO_IMAGE: [dk.Attention.from_scores(torch.zeros(1, 1, 2, 2))]}
    cropped = dk.Signals(value, axes={TO_IMAGE: (dk.TokenAxis("text"), axis)})
    raw = shown.facts_of(dk.view(cropped, images=torch.rand(1, 3, 4, 4)).html)
    assert raw["axes"][1]["boxes"][0][0] == [0, 0.5, 0, 1, 0.5]
    seen = dk.view(cropped, batch={"p": torch.rand(1, 3, 4, 4)}, images="p", denormalise=(0, 1))
    assert shown.facts_of(seen.html)["axes"][1]["boxes"][0][0] == [0, 0, 0, 1, 0.5]


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (WORDS, WORDS),
        ([["x"] * 4, ["x"] * 2], [["x"] * 4, ["x", "x", "[padding]", "[padding]"]]),
        (
            [["x"] * 3, ["x"]],
            [["[special]", "x", "x", "x"], ["[special]", "x", "[padding]", "[padding]"]],
        ),
        (None, [[f"word {i}" for i in range(4)]] * 2),
    ],
)
def test_words_name_all_tokens_or_the_real_ones(words, labels):
    facts = shown.facts_of(dk.view(shown.signals(0), words=words).html)
    assert facts["axes"][0]["labels"] == labels


def test_images_are_what_they_show():
    from PIL import Image

    pixels = (np.arange(24).reshape(2, 4, 3) * 10).astype(np.uint8)
    for image in (pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
        assert np.array_equal(pictures.pixels_of(image), pixels)
    assert np.array_equal(pictures.pixels_of(pixels / 255), pixels)
    scale = pictures._scale_of(([0.5, 0.4, 0.3], [0.2, 0.2, 0.2]))
    normal = (torch.from_numpy(pixels / 255).permute(2, 0, 1) - scale[0]) / scale[1]
    assert np.array_equal(pictures.pixels_of(normal, scale), pixels)
    assert np.array_equal(np.array(Image.open(io.BytesIO(pictures.png(pixels)))), pixels)
    large = pictures.pictures_of([torch.rand(3, 600, 300)], 1, {}, None)[0][0]
    assert (large.width, large.height, large.pixelated) == (128, 256, False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dk.view(3), OptionError, "got int"),
        (lambda: dk.view({}), OptionError, "no checkpoint"),
        (lambda: dk.view([]), OptionError, "got list"),
        (lambda: dk.view(shown.signals(), signals=TO_IMAGE), OptionError, "is a list of names"),
        (lambda: dk.view(shown.signals(), signals=["attention.text"]), DistillKitError, "no signal is called"),
        (lambda: dk.view(shown.signals(), words=[["a"]]), ShapeError, "names 1 examples, but there are 2"),
        (lambda: dk.view(shown.signals(), words=[["a"] * 4, ["b"] * 3]), ShapeError, "4 tokens, 2 without padding, 1 without special"),
        (lambda: dk.view(shown.signals(), words="ab"), OptionError, "a tokenizer, or a list of tokens"),
        (lambda: dk.view(shown.signals(), words=["a b", "c"]), OptionError, "a tokenizer, or a list of tokens"),
        (lambda: dk.view(shown.signals(), images=torch.randn(2, 3, 4, 4)), OptionError, "denormalise="),
        (lambda: dk.view(shown.signals(), images=torch.rand(1, 3, 4, 4)), ShapeError, "2 examples, but 1 images"),
        (lambda: dk.view(shown.signals(), images=torch.rand(2, 4)), ShapeError, "a tensor"),
        (lambda: dk.view(shown.signals(), images="pixels"), SignalError, "names no entry"),
        (lambda: dk.view(shown.signals(), denormalise=(0, 1)), OptionError, "images="),
        (lambda: dk.view(shown.signals(), denormalise=3, images=torch.rand(2, 3, 4, 4)), OptionError, "image_mean"),
        (lambda: dk.view(shown.signals()[TO_IMAGE]), OptionError, "does not know its tokens"),
        (lambda: dk.view(shown.signals()[TO_IMAGE], words=lambda i: "x"), OptionError, "lists of tokens"),
        (lambda: dk.view(shown.signals()[TO_IMAGE], words=WORDS, images=torch.rand(2, 3, 4, 4)), ShapeError, "7 patches are no square"),
        (lambda: dk.view(dk.Attention.from_scores(torch.zeros(1, 1, 2, 4)), words=[["a"] * 3], images=torch.rand(1, 1, 4, 4)), ShapeError, "neither rows nor keys"),
        (lambda: dk.view(dk.Signals({"logits": torch.zeros(1, 2)})), SignalError, "no attention that both sides have"),
        (lambda: dk.view(dk.Signals({"attention.joint": shown.signals()[TO_IMAGE]})), SignalError, "nothing says what the rows and keys"),
        (lambda: dk.view({"a": shown.signals(), "b": shown.signals(heads=3)}, words=WORDS), ShapeError, "checkpoints of one page"),
        (lambda: dk.view({"a": shown.signals(), "b": shown.signals(depth=3)}), ShapeError, "unequally many layers"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_no_page_can_hold_is_refused_before_it_fills_the_memory():
    layers = [dk.Attention(torch.zeros(8, 8, 2048, 1), torch.zeros(8, 8, 2048, 1))] * 2
    with pytest.raises(OptionError, match=r"2 layers .* = \(8, 8, 2048, 2048\).*fewer examples"):
        dk.view(layers, words=[["a"] * 2048] * 8)


def test_a_distiller_needs_a_batch_and_brings_its_teacher():
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    adapter = dk.DeclarativeAdapter(streams={})
    distiller = dk.Distiller(student, teacher, dk.load_recipe("dide"), student_adapter=adapter, teacher_adapter=adapter)  # fmt: skip
    with pytest.raises(OptionError, match="batch=batch"):
        dk.view(distiller)
    with pytest.raises(OptionError, match="brings its teacher"):
        dk.view(distiller, shown.signals(), batch={})


def test_no_example_is_a_page_without_any():
    page = dk.view(shown.signals(0).take(slice(0, 0)), shown.signals(1).take(slice(0, 0)))
    assert shown.facts_of(page.html)["examples"] == 0


def test_the_pages_parts_reach_the_wheel(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("page.html", "page.css", "page.js"):
        assert f"distillkit/_view/{part}" in names


def test_the_page_is_the_same_from_a_checkout_that_is_not_installed(tmp_path):
    code = "import distillkit as dk, torch; print(len(dk.view(dk.Attention.from_scores(torch.zeros(1,1,2,2)), words=[['a','b']]).html) > 10000)"
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"], cwd=tmp_path, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "True"
