"""What the demo's parts promise beyond running: fixed data, encodings reused, pictures drawn."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
import torch

from tests.support.scripts import load_scripts

DIDE = load_scripts("dide")
data = DIDE.data
figures = DIDE.figures
models = DIDE.models
timing = DIDE.timing


def size_of(png):
    """Width and height, from the file's header."""
    start = png.read_bytes()[:24]
    assert start.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", start[16:])


def random_pairs(pairs, count):
    generator = torch.Generator().manual_seed(0)
    question = torch.randint(len(pairs.questions), (count,), generator=generator)
    return question, torch.randint(len(pairs.scenes), (count,), generator=generator)


@pytest.fixture(scope="module")
def held_out():
    return data.load("val", 6)


def test_everybody_draws_the_same():
    once, again = data.load("train", 5), data.load("train", 5)
    for field in dataclasses.fields(data.Pairs):
        assert torch.equal(getattr(once, field.name), getattr(again, field.name))


def test_fewer_scenes_are_the_first_of_more():
    assert torch.equal(data.load("test", 3).scenes, data.load("test", 5).scenes[:3])


def test_every_split_asks_the_same_questions_in_the_same_order(held_out):
    for split in ("train", "test"):
        assert torch.equal(data.load(split, 1).questions, held_out.questions)


def test_the_pairs_of_a_scene_are_neighbours(held_out):
    assert held_out.scene.tolist() == sorted(held_out.scene.tolist())
    assert held_out.scene.bincount().tolist() == [data.QUESTIONS_PER_SCENE] * 6


def test_an_eighth_of_the_training_answers_is_changed(monkeypatch):
    noisy = data.load("train", 1500)
    monkeypatch.setattr(data, "with_noisy_answers", lambda pairs: pairs)
    clean = data.load("train", 1500)
    assert torch.equal(noisy.scenes, clean.scenes)
    assert torch.equal(noisy.question, clean.question)
    # 20 % are redrawn; 1/4 of the colours and 1/3 of the rows and columns come out as before
    expected = 0.2 * (3 / 4 + 2 / 3 + 2 / 3) / 3
    changed = (noisy.answer != clean.answer).float().mean().item()
    assert changed == pytest.approx(expected, abs=0.01)


def test_answers_outside_training_are_never_redrawn(monkeypatch):
    def refuse(pairs):
        raise AssertionError

    monkeypatch.setattr(data, "with_noisy_answers", refuse)
    data.load("val", 1)
    data.load("test", 1)
    with pytest.raises(AssertionError):
        data.load("train", 1)


def test_a_picture_shows_each_cell_in_its_place():
    cells = torch.arange(9.0)[:, None].expand(9, data.CELL_SIZE)
    image = data.image_of(cells)
    assert image.shape == (24, 24, 3)
    assert (image[::8, ::8, 0] == np.arange(9).reshape(3, 3)).all()
    assert (image[:8, 8:16] == 1).all()


def test_the_dual_encoder_answers_stored_encodings_as_it_answers_pairs(held_out):
    model = models.DualEncoder().eval()
    question, scene = random_pairs(held_out, 20)
    with torch.no_grad():
        texts = model.text(held_out.questions, held_out.question_mask)
        images = model.image(held_out.scenes)
        stored = model.answer(texts[question], images[scene])
        encoded_for_each = model(
            held_out.questions[question], held_out.question_mask[question],
            held_out.scenes[scene], torch.arange(20), torch.arange(20),
        ).logits  # fmt: skip
    torch.testing.assert_close(stored, encoded_for_each, rtol=1e-4, atol=1e-5)


def test_the_dual_encoder_encodes_a_side_once_however_many_pairs(held_out):
    model = models.DualEncoder().eval()
    encoded = []
    for tower in (model.text, model.image):
        tower.register_forward_hook(lambda _, inputs, out: encoded.append(len(out)))
    question, scene = random_pairs(held_out, 50)
    model(held_out.questions, held_out.question_mask, held_out.scenes, question, scene)
    assert encoded == [36, 6]


@pytest.mark.parametrize("model_class", [models.FusionEncoder, models.DualEncoder])
def test_models_see_both_sides(model_class, held_out):
    model = model_class().eval()
    zero = torch.zeros(1, dtype=torch.long)

    def logits(question, scene):
        arguments = held_out.questions, held_out.question_mask, held_out.scenes
        return model(*arguments, zero + question, zero + scene).logits

    with torch.no_grad():
        assert logits(0, 0).shape == (1, len(data.ANSWERS))
        assert not torch.allclose(logits(0, 0), logits(2, 0))
        assert not torch.allclose(logits(0, 0), logits(0, 1))


def test_a_trained_stem_starts_both_models_alike():
    stem = models.pretrain_stem(0, steps=2)
    again = models.pretrain_stem(0, steps=2)
    fusion, dual = models.FusionEncoder(), models.DualEncoder()
    models.load_stem(fusion, stem)
    models.load_stem(dual, stem)
    for name, weight in stem.items():
        assert torch.equal(weight, again[name])
        assert torch.equal(weight, fusion.cells.stem.state_dict()[name])
        assert torch.equal(weight, dual.image.embedding.stem.state_dict()[name])


def test_a_trained_stem_tells_digits_of_any_colour():
    torch.manual_seed(0)
    untrained, trained = models.stem(), models.stem()
    trained.load_state_dict(models.pretrain_stem(0))
    scans, digits = data.split_scans("val")
    cells = np.stack([data.colored(scan, color) for color in data.COLORS for scan in scans])
    labels = np.tile(digits, len(data.COLORS))

    def share_right(stem):
        with torch.no_grad():
            seen = stem(torch.from_numpy(cells).flatten(1) / models.PIXEL_SCALE).numpy()
        means = np.stack([seen[labels == digit].mean(0) for digit in range(10)])
        nearest = ((seen[:, None] - means) ** 2).sum(-1).argmin(1)
        return (nearest == labels).mean()

    assert share_right(untrained) < 0.85 < share_right(trained)


def test_timing_tells_four_ways_apart_and_gives_the_threads_back():
    torch.set_num_threads(2)
    pairs = data.load("test", 2)
    fusion, dual = models.FusionEncoder().train(), models.DualEncoder().train()
    seconds = timing.inference_seconds(fusion, dual, pairs, scenes=2, repeats=1)
    assert torch.get_num_threads() == 2
    assert len(seconds) == 4
    assert all(spent > 0 for spent in seconds.values())


def test_learning_curves_are_drawn_however_close_they_end(tmp_path):
    steps = range(200, 2001, 200)
    histories = {
        name: [(step, 0.5 + 0.0001 * step) for step in steps]
        for name in ("alone", "soft labels", "DiDE")
    }
    figures.draw_learning_curves(tmp_path / "curves.png", histories, teacher=0.99)
    width, height = size_of(tmp_path / "curves.png")
    assert 900 < width < 1600
    assert 500 < height < 1000
    apart = sorted(figures.apart({"a": 70.0, "b": 70.1, "c": 70.2}, 5.0).values())
    assert np.diff(apart).min() >= 5


@pytest.mark.parametrize("rows", [1, 3])
def test_attention_is_drawn_for_every_model(tmp_path, rows, held_out):
    names = ("teacher", "alone", "soft labels", "DiDE")
    attention = np.full(9, 0.02)
    attention[4] = 0.7
    examples = [
        figures.Example(
            image=data.image_of(held_out.scenes[row]),
            question="which color has the three",
            word="three",
            answer="red",
            panels=[
                figures.Panel(
                    model=name,
                    attention=attention,
                    answer="blue" if name == "alone" else "red",
                    kl=None if name == "teacher" else 0.5,
                )
                for name in names
            ],
        )
        for row in range(rows)
    ]
    figures.draw_attention(tmp_path / "attention.png", examples)
    width, height = size_of(tmp_path / "attention.png")
    assert 1500 < width < 2300
    assert 350 * rows < height < 520 * rows
