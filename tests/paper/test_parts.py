"""The parts of the paper's training: labels, answers, pictures, words, optimizer, negatives."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import dide_paper
import numpy as np
import pytest
import torch
from dide_paper import (
    answers,
    augment,
    collate,
    data,
    labels,
    masking,
    negatives,
    optimizer,
    training,
)
from dide_paper.tasks import TASKS
from distillkit_transformers import ViltDualEncoder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import distillkit as dk
from distillkit import errors
from tests.support import paper_files as files


def test_examples_in_docstrings():
    for module in pkgutil.iter_modules(dide_paper.__path__):
        found = importlib.import_module(f"dide_paper.{module.name}")
        assert doctest.testmod(found).failed == 0, module.name


def test_every_task_has_its_recipe():
    for task in TASKS.values():
        assert dk.load_recipe(task.recipe).build().active(1.0)


class TestLabels:
    @given(st.permutations(files.RELATIONS), st.permutations(files.RELATIONS), st.integers(0, 2))
    def test_orders_are_compared_by_name(self, model, order, number):
        (found,) = labels.class_numbers([number], model, order)
        assert model[found] == order[number]
        assert labels.class_numbers([order[number].upper()], model, None) == [found]

    def test_numbers_without_names(self):
        with pytest.raises(errors.OptionError, match="found 1.*--data-labels"):
            labels.class_numbers([1], files.RELATIONS, None)
        with pytest.raises(errors.OptionError, match="a label of the data is 3, of 3"):
            labels.class_numbers([3], files.RELATIONS, files.RELATIONS)

    def test_other_names(self):
        with pytest.raises(errors.OptionError, match="did you mean 'neutral'"):
            labels.class_numbers(["neutrall"], files.RELATIONS, None)
        with pytest.raises(errors.OptionError, match="data's classes are yes, no, maybe"):
            labels.class_numbers([0], files.RELATIONS, ("yes", "no", "maybe"))

    def test_a_teacher_that_names_nothing(self):
        config = files.make_teacher("ve", id2label={i: f"LABEL_{i}" for i in range(3)}).config
        with pytest.raises(errors.OptionError, match="--teacher-labels"):
            labels.names_of_model(config)
        assert labels.names_of_model(config, files.RELATIONS) == files.RELATIONS
        with pytest.raises(errors.OptionError, match="has 3 classes; got 2 names"):
            labels.names_of_model(config, ["a", "b"])
        with pytest.raises(errors.OptionError, match="two classes .* called 'a'"):
            labels.names_of_model(config, ["a", "b", "A"])

    def test_answers_are_compared_as_they_are_written(self):
        answers = {0: "Yes", 1: "yes", 2: "no"}
        config = files.make_teacher("vqa", id2label=answers).config
        assert labels.names_of_model(config, exact=True) == ("Yes", "yes", "no")
        with pytest.raises(errors.OptionError, match="two classes .* called 'yes'"):
            labels.names_of_model(config)

    def test_booleans_are_names(self):
        names = labels.names_of_model(files.make_teacher("nlvr2").config)
        assert names == ("false", "true")
        assert labels.class_numbers([True, "False", "true"], names, None) == [1, 0, 1]


class TestAnswers:
    @given(st.lists(st.sampled_from("abcdefg"), min_size=0, max_size=10))
    def test_scores(self, votes):
        known = {name: i for i, name in enumerate("abcd")}
        scores = answers.answer_scores(votes, known)
        for name, i in known.items():
            expected = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9}.get(votes.count(name), 1.0)
            assert scores[i].item() == pytest.approx(expected)

    def test_the_metric_is_the_first_answers_score(self):
        targets = torch.tensor([[0.3, 1.0, 0.0], [0.0, 0.0, 0.6]])
        logits = torch.tensor([[5.0, 1.0, 2.0], [0.0, 1.0, 3.0]])
        assert answers.vqa_scores(logits, targets).tolist() == pytest.approx([0.3, 0.6])

    @given(st.lists(st.integers(0, 5), min_size=2, max_size=20), st.integers(0, 5))
    def test_no_image_is_on_both_sides(self, images, last):
        if last >= len(set(images)):
            with pytest.raises(errors.OptionError, match="held out"):
                answers.split_by_image(images, last)
            return
        kept, held = answers.split_by_image(images, last)
        assert sorted(kept + held) == list(range(len(images)))
        sides = [{images[i] for i in part} for part in (kept, held)]
        assert not sides[0] & sides[1]
        assert len(sides[1]) == last


class TestMasking:
    @given(st.integers(0, 1000))
    def test_what_is_hidden_is_predicted_and_nothing_else(self, seed):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, 20, (4, 12), generator=generator)
        special = torch.rand(4, 12, generator=generator) < 0.3
        seen, wanted = masking.mask_words(
            ids, special, mask_id=4, words=20, probability=0.5, generator=generator
        )
        chosen = wanted != masking.IGNORED
        assert not (chosen & special).any()
        assert torch.equal(wanted[chosen], ids[chosen])
        assert torch.equal(seen[~chosen], ids[~chosen])

    def test_how_many(self):
        generator = torch.Generator().manual_seed(0)
        ids = torch.full((400, 100), 7)
        seen, wanted = masking.mask_words(
            ids, torch.zeros_like(ids), mask_id=4, words=1000, generator=generator
        )
        chosen = wanted != masking.IGNORED
        assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
        hidden = seen[chosen]
        assert (hidden == 4).float().mean().item() == pytest.approx(0.8, abs=0.02)
        assert (hidden == 7).float().mean().item() == pytest.approx(0.1, abs=0.02)


class TestRandAugment:
    def pixels(self, name, strength=9, seed=0):
        one = augment.OPERATIONS[name]
        value = one.least + (one.most - one.least) * strength / augment.MOST
        return np.asarray(one.apply(files.make_picture(1), value)).astype(int), value

    def test_what_is_done_and_how_much(self):
        """Strength 9 of 30."""
        assert len(augment.OPERATIONS) == 14
        assert not {"invert", "cutout"} & set(augment.OPERATIONS)
        values = {name: self.pixels(name)[1] for name in augment.OPERATIONS}
        expected = {
            "rotate": 9.0, "posterize": 1.2, "solarize": 76.8, "solarize_add": 33.0,
            "color": 0.64, "contrast": 0.64, "brightness": 0.64, "sharpness": 0.64,
            "shear_x": 0.09, "shear_y": 0.09, "translate_x": 30.0, "translate_y": 30.0,
        }  # fmt: skip
        for name, value in expected.items():
            assert values[name] == pytest.approx(value), name

    @pytest.mark.parametrize("name", augment.OPERATIONS)
    def test_every_operation_keeps_size_and_mode(self, name):
        one = augment.OPERATIONS[name]
        for value in (one.least, one.most):
            changed = one.apply(files.make_picture(2), value)
            assert (changed.size, changed.mode) == ((64, 96), "RGB")
        assert self.pixels(name)[0].shape == (64, 96, 3)

    def test_by_hand(self):
        before = np.asarray(files.make_picture(1)).astype(int)
        assert np.array_equal(self.pixels("posterize")[0], before & 0b10000000)
        solarized = np.where(before < 76, before, 255 - before)
        assert np.array_equal(self.pixels("solarize")[0], solarized)
        brighter = np.minimum(before + 33, 255)
        expected = np.where(brighter < 128, brighter, 255 - brighter)
        assert np.array_equal(self.pixels("solarize_add")[0], expected)
        moved = self.pixels("translate_x")[0]
        assert np.array_equal(moved[:, :-30], before[:, 30:])
        assert not moved[:, -30:].any()
        moved = self.pixels("translate_y")[0]
        assert np.array_equal(moved[:-30], before[30:])

    def test_either_way_and_as_torch_draws(self):
        change = augment.RandAugment(2, 9)
        made = []
        for seed in (1, 1, *range(20)):
            torch.manual_seed(seed)
            made.append(np.asarray(change(files.make_picture(1))))
        assert np.array_equal(made[0], made[1])
        assert len({one.tobytes() for one in made[2:]}) > 15

    def test_pictures_of_examples(self):
        examples = [{"id": 0, "images": [files.make_picture(1)], "text": "a"}]
        (changed,) = augment.Augmented(examples, lambda image: image.rotate(180))
        assert changed["text"] == "a"
        expected = np.asarray(files.make_picture(1))[::-1, ::-1]
        assert np.array_equal(np.asarray(changed["images"][0]), expected)


class TestOptimizer:
    def test_groups(self):
        student = ViltDualEncoder.from_vilt(files.make_teacher("vqa"), task="vqa")
        groups = optimizer.parameter_groups(student, rate=1e-4, head_rate=10.0)
        names = {id(p): name for name, p in student.named_parameters()}
        found = {}
        for group in groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                assert name not in found
                found[name] = group["weight_decay"], group["lr"]
        assert found.keys() == set(names.values())
        for name, (decay, rate) in found.items():
            assert rate == (1e-3 if name.startswith("classifier.") else 1e-4), name
            is_norm = "norm" in name.lower() or name in ("fusion.1.weight", "classifier.1.weight")
            assert decay == (0.0 if name.endswith("bias") or is_norm else 0.01), name
        made = optimizer.make_optimizer(student)
        assert (made.defaults["betas"], made.defaults["eps"]) == ((0.9, 0.98), 1e-8)


class TestNegatives:
    @given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 2))
    def test_the_hardest_are_false_and_score_highest(self, seed, images, count):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(images, 2 * images, generator=generator)
        own = torch.eye(images).repeat_interleave(2, 1).bool()
        found = negatives.hardest(scores, own, count)
        for i in range(images):
            false = [(scores[i, j].item(), j) for j in range(2 * images) if not own[i, j]]
            assert found[i].tolist() == [j for _, j in sorted(false, reverse=True)[:count]]

    def test_too_few(self):
        with pytest.raises(errors.OptionError, match="3 false captions are needed.*has 2"):
            negatives.hardest(torch.rand(2, 3), torch.eye(2, 3).bool(), 3)

    def test_mined_captions_are_other_images(self):
        captions = [[f"{i}{k}" for k in range(1 + i % 3)] for i in range(9)]

        def score(rows, places):
            return torch.tensor(
                [[-abs(row - place[0]) for place in places] for row in rows]
            ).float()

        found = negatives.mine(score, captions, 2, spare=2, pool=100, images=4)
        assert len(found) == 9
        for row, places in enumerate(found):
            assert len(places) == 4
            assert all(place[0] != row for place in places)
            assert {abs(place[0] - row) for place in places} <= {1, 2, 3, 4}

    def test_recalls_by_hand(self):
        scores, own = torch.rand(6, 15), torch.arange(15) % 6
        found = negatives.recalls(scores, own, ranks=[1, 3])
        for k in (1, 3):
            hits = [any(own[j] == i for j in scores[i].topk(k).indices) for i in range(6)]
            assert found[f"text_recall@{k}"] == pytest.approx(sum(hits) / 6)
            hits = [own[j] in scores[:, j].topk(k).indices for j in range(15)]
            assert found[f"image_recall@{k}"] == pytest.approx(sum(hits) / 15)


class TestData:
    def test_columns_by_name(self):
        found = data.columns_of("nlvr2", ["sentence", "left_image", "right_image", "label"])
        assert found["image"] == ("left_image", "right_image")
        assert data.columns_of("nlvr2", ["question", "images", "answer"])["label"] == ("answer",)
        given_ = {"text": "caption", "image": "a,b", "label": "truth"}
        assert data.columns_of("nlvr2", ["a", "b", "caption", "truth"], given_)["image"] == (
            "a",
            "b",
        )

    def test_columns_that_are_not_there(self):
        with pytest.raises(
            errors.OptionError, match="reads its label from 'gold_label' or 'label'"
        ):
            data.columns_of("ve", ["sentence", "image"])
        with pytest.raises(errors.OptionError, match="not picture"):
            data.columns_of("ve", ["sentence"], {"picture": "image"})

    def test_pictures(self, tmp_path):
        expected = np.asarray(files.make_picture(1))
        files.make_picture(1).save(tmp_path / "one.png")
        raw = files.picture_bytes(1)
        for given_ in (raw, raw["bytes"], str(tmp_path / "one.png"), files.make_picture(1)):
            assert np.array_equal(np.asarray(data.picture(given_)), expected)
        assert data.picture(Image.new("L", (4, 4))).mode == "RGB"
        with pytest.raises(errors.OptionError, match="got int"):
            data.picture(3)

    def rows(self, task, count):
        columns = files.make_rows(task, count)
        return [{name: x[i] for name, x in columns.items()} for i in range(count)]

    def test_false_captions_are_of_other_images(self):
        rows = self.rows("retrieval", 5)
        captions = [row["caption"] for row in rows]
        examples = data.Captioned(rows, {"image": ("image",)}, captions, false=3)
        for index in range(5):
            for _ in range(20):
                found = examples[index]["texts"]
                assert found[0] in captions[index]
                others = [one for i, own in enumerate(captions) if i != index for one in own]
                assert set(found[1:]) <= set(others)
        with pytest.raises(errors.OptionError, match="there is one image"):
            data.Captioned(rows[:1], {"image": ("image",)}, captions[:1], false=1)
        few = data.Captioned(rows, {"image": ("image",)}, captions, 3, [[(1, 0)]] * 5)
        with pytest.raises(errors.OptionError, match="row 0 has 1 hard captions"):
            few[0]

    def test_batches_of_candidates(self, tmp_path):
        rows = self.rows("retrieval", 5)
        captions = [row["caption"] for row in rows]
        examples = data.Captioned(rows, {"image": ("image",)}, captions, false=15)
        task = TASKS["retrieval"]
        batch = collate.PaperCollator(task, files.make_processor(tmp_path))(
            [examples[0], examples[1]]
        )
        assert batch["input_ids"].shape == (32, 40)
        assert batch["image_index"].tolist() == [0] * 16 + [1] * 16
        assert torch.equal(batch["teacher_pixel_values"][20], batch["pixel_values"][1])
        with pytest.raises(errors.OptionError, match="has 16 texts for each example"):
            collate.PaperCollator(task, files.make_processor(tmp_path))(
                [{"texts": ["a"], "images": []}]
            )

    def test_images_that_are_too_many(self, tmp_path):
        one = {"text": "a", "images": [files.make_picture(0)] * 2, "labels": 0}
        with pytest.raises(errors.OptionError, match="example 0 has 2 images; the task 've' has 1"):
            collate.PaperCollator(TASKS["ve"], files.make_processor(tmp_path))([one])


class TestCandidates:
    """Retrieval's scores are one row for each image, its attention one map for each pair."""

    def batch(self, folder, images):
        rows = TestData().rows("retrieval", 6)
        captions = [row["caption"] for row in rows]
        examples = data.Captioned(rows, {"image": ("image",)}, captions, false=15)
        torch.manual_seed(4)
        collator = collate.PaperCollator(TASKS["retrieval"], files.make_processor(folder))
        return collator([examples[i] for i in images])

    def part(self, batch, images):
        """Some images of a batch, with their texts."""
        kept = torch.isin(batch["image_index"], torch.tensor(images))
        found = {
            name: x[images] if len(x) == len(batch["pixel_values"]) else x[kept]
            for name, x in batch.items()
            if name != "candidates"
        }
        index = torch.arange(len(images)).repeat_interleave(16)
        return {**found, "image_index": index, "candidates": batch["candidates"]}

    def test_parts_add_up_and_every_weight_learns(self, tmp_path, monkeypatch):
        teacher = files.make_teacher("retrieval")
        student = ViltDualEncoder.from_vilt(teacher, task="retrieval")
        distiller = training.make_distiller(TASKS["retrieval"], student, teacher).eval()
        batch = self.batch(tmp_path, [1, 4, 2])  # of equal and of unequal sizes
        whole = distiller(batch)
        assert whole.student["scores"].shape == (3, 16)
        assert whole.counts["kl_divergence/scores"] == 3
        assert whole.counts["attention_kl/attention.text_to_image"] == 48
        # of padded patches there are as many as in the whole: the last image has its size alone
        parts = [self.part(batch, [0, 1]), self.part(batch, [2])]
        monkeypatch.setattr(distiller, "_counts", None)  # no model runs to count
        normalizer = distiller.normalizer(parts)
        assert normalizer == {name: count.double() for name, count in whole.counts.items()}
        losses = [distiller(part, normalizer=normalizer) for part in parts]
        scores = sum(one.parts["kl_divergence/scores"] for one in losses)
        torch.testing.assert_close(scores, whole.parts["kl_divergence/scores"])
        whole.loss.backward()
        assert all(p.grad is not None for p in student.parameters())

    def test_the_scores_are_the_teachers(self, tmp_path):
        teacher = files.make_teacher("retrieval")
        student = ViltDualEncoder.from_vilt(teacher, task="retrieval").eval()
        distiller = training.make_distiller(TASKS["retrieval"], student, teacher).eval()
        batch = self.batch(tmp_path, [1, 4])
        with torch.no_grad():
            found = distiller(batch)
            expected = [
                teacher(
                    input_ids=batch["input_ids"][i : i + 1],
                    attention_mask=batch["attention_mask"][i : i + 1],
                    pixel_values=batch["pixel_values"][i // 16][None],
                    pixel_mask=batch["pixel_mask"][i // 16][None],
                ).logits[0, 0]
                for i in range(32)
            ]  # fmt: skip
        scores = torch.stack(expected).view(2, 16)
        torch.testing.assert_close(found.teacher["scores"], scores, rtol=1e-4, atol=1e-5)
        logs = found.student["scores"].log_softmax(-1)
        divergence = (scores.softmax(-1) * (scores.log_softmax(-1) - logs)).sum(-1).mean()
        torch.testing.assert_close(
            found.parts["kl_divergence/scores"], divergence, rtol=1e-3, atol=1e-6
        )
