"""One batch for two models: own entries, unused entries, and what is compared before training."""

from __future__ import annotations

import copy

import pytest
import torch

import distillkit as dk
from distillkit import errors
from tests.support import tiny

ATTENTION = {"loss": "attention_kl", "on": "attention.text_to_image"}


def distiller_of(recipe="dide", *, student_tables=None, teacher_tables=None, **changes):
    torch.manual_seed(0)
    return dk.Distiller(
        changes.pop("student", None) or tiny.Dual(),
        changes.pop("teacher", None) or tiny.Fusion(),
        recipe,
        student_adapter=dk.DeclarativeAdapter(**(student_tables or tiny.DUAL_TABLES)),
        teacher_adapter=dk.DeclarativeAdapter(**(teacher_tables or tiny.FUSION_TABLES)),
        **changes,
    )


def recipe_of(*terms):
    return dk.Recipe(name="test", terms=list(terms))


def batch(**more):
    return {**{k: v for k, v in tiny.batch().items() if k != "labels"}, **more}


class TestEntries:
    def test_each_side_sees_its_own_first(self):
        own = torch.randn(3, 4, 6)
        shared = batch()
        expected = distiller_of()(shared).parts
        swapped = distiller_of().run_teacher({**shared, "pixels": own})["logits"]
        both = distiller_of()
        result = both({**shared, "teacher_pixels": own})
        assert torch.equal(result.teacher["logits"], swapped)
        assert result.parts.keys() == expected.keys()
        prefixed = {f"student_{k}": v for k, v in shared.items()}
        other = distiller_of()({**prefixed, **{f"teacher_{k}": v for k, v in shared.items()}})
        torch.testing.assert_close(other.loss, distiller_of()(shared).loss)

    def test_an_entry_that_nothing_uses_is_an_error_that_names_it(self):
        with pytest.raises(
            errors.SignalError,
            match=r"(?s)entry 'pixel':.*did you mean 'pixels'.*ignore=\('pixel',\)",
        ):
            distiller_of()(batch(pixel=1))
        with pytest.raises(errors.SignalError, match="entries 'a', 'student_mas'"):
            distiller_of()(batch(a=1, student_mas=2))
        assert distiller_of(ignore=["pixel"])(batch(pixel=1)).loss > 0

    def test_it_is_no_error_outside_training_or_with_known_teacher_signals(self):
        distiller = distiller_of()
        signals = distiller.run_teacher(batch())
        assert distiller_of().eval()(batch(pixel=1)).loss > 0
        assert distiller_of()(batch(teacher_pixel=1), teacher_signals=signals).loss > 0

    def test_what_terms_layouts_pairs_and_the_task_read_counts_as_used(self):
        def loss(student, teacher, *, labels: torch.Tensor):
            return (student - teacher).square().sum(-1) + labels

        term = dk.Term(loss, on="logits", inputs={"labels": "noise"})
        tables = {**tiny.FUSION_TABLES, "pairs": {"text": "question"}}
        tables["tokens"] = {"joint": [{**tiny.TEXT, "extents": "places"}, tiny.IMAGE]}
        distiller = distiller_of(
            dk.Objective([term, dk.Term("task")]),
            teacher_tables=tables,
            task_loss=lambda output, batch: output.logits.sum() * batch["factor"],
        )
        used = {
            "noise": torch.zeros(3), "question": torch.arange(3), "factor": 0.0,
            "places": torch.zeros(3, 5, 2),
        }  # fmt: skip
        assert distiller(batch(**used)).loss.isfinite()

    def test_labels_of_a_term_whose_weight_is_zero_now_are_used_later(self):
        weight = {"start": 0.0, "stop": 1.0, "until": 0.5, "shape": "step"}
        distiller = distiller_of(
            recipe_of(ATTENTION, {"loss": "task", "weight": weight}),
            task_loss=lambda output, batch: (
                output.logits.square().mean() + 0 * batch["labels"].sum()
            ),
        )
        assert distiller(tiny.batch(), progress=0.1).loss > 0
        assert distiller(tiny.batch(), progress=0.9).loss > 0

    def test_a_batch_without_names(self):
        with pytest.raises(errors.SignalError, match="mapping from name to tensor"):
            distiller_of()((torch.zeros(1),))


class TestFirstBatch:
    def test_other_words_of_equal_number(self):
        shared = batch()
        other = {**shared, "teacher_ids": (shared["ids"] + 1) % 10}
        with pytest.raises(
            errors.ShapeError, match=r'queries differ in text.*align = \["overlap"\]'
        ):
            distiller_of(recipe_of(ATTENTION))(other)
        same = {**shared, "teacher_ids": shared["ids"].clone()}
        assert distiller_of(recipe_of(ATTENTION))(same).loss > 0

    def test_other_padding(self):
        shared = batch()
        with pytest.raises(errors.ShapeError, match="queries differ in padding"):
            distiller_of(recipe_of(ATTENTION))({**shared, "teacher_mask": shared["mask"].flip(1)})

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ({"modality": "image", "grid": [1, 4]}, r"different grids, \(2, 2\) and \(1, 4\)"),
            (
                {"modality": "image", "grid": [1, 3], "special": [0]},
                "only one side's keys have a special|different grids",
            ),
            ({"modality": "image", "grid": [2, 2], "extents": "boxes"}, "lie elsewhere"),
        ],
    )
    def test_other_grids_of_equal_number(self, image, message):
        whole = {"modality": "image", "grid": [2, 2]}
        more = {}
        if "extents" in image:
            whole["uncropped"] = True
            more["boxes"] = torch.tensor([[0.0, 0, 1, 0.5]] * 3)
        student = {**tiny.DUAL_TABLES, "tokens": {"text": [tiny.TEXT], "image": [whole]}}
        teacher = {**tiny.FUSION_TABLES, "tokens": {"joint": [tiny.TEXT, image]}}
        with pytest.raises(errors.ShapeError, match=message):
            distiller_of(recipe_of(ATTENTION), student_tables=student, teacher_tables=teacher)(
                batch(**more)
            )

    def test_other_classes_and_widths_name_their_aligner(self):
        soft = {"loss": "kl_divergence", "on": "logits"}
        with pytest.raises(
            errors.ShapeError,
            match=r"unequal classes: student \(3, 4\), teacher \(3, 3\).*universal_logit_distance",
        ):
            distiller_of(recipe_of(soft), student=tiny.Dual(classes=4))(batch())
        tables = {**tiny.DUAL_TABLES, "hidden": {"text": "text"}}
        narrow = {**tiny.DUAL_TABLES, "hidden": {"text": "head"}}
        hidden = {"loss": "mse", "on": "hidden.text"}
        with pytest.raises(
            errors.ShapeError, match=r'align = \[\{ name = "projector"|unequal tokens'
        ):
            distiller_of(
                recipe_of(hidden), teacher=tiny.Dual(), student_tables=tables, teacher_tables=narrow
            )(batch())

    def test_it_runs_once(self):
        distiller = distiller_of(recipe_of(ATTENTION))
        shared = batch()
        distiller(shared)
        assert distiller({**shared, "teacher_ids": (shared["ids"] + 1) % 10}).loss > 0


class TestCheck:
    def test_a_table_before_any_training(self):
        distiller = distiller_of()
        state = torch.random.get_rng_state()
        before = copy.deepcopy(distiller.state_dict())
        seen = distiller.check(batch())
        assert seen.passed
        text = str(seen)
        assert "attention_kl/attention.text_to_image  (b=3, h=4, q=5, k=4)" in text
        assert "12 of 15 rows" in text or "rows" in text
        assert "teacher offers logits*, attention.joint, attention.text_to_image*" in text
        assert text.endswith("ready to train")
        assert torch.equal(state, torch.random.get_rng_state())
        assert distiller.training
        assert distiller.student.training
        assert all(torch.equal(before[k], v) for k, v in distiller.state_dict().items())
        assert [one.value for one in seen.terms] == pytest.approx(
            [part.item() for part in distiller(batch()).parts.values()], rel=1e-5
        )

    def test_it_runs_without_dropout_and_leaves_statistics_alone(self):
        class Noisy(tiny.Dual):
            def __init__(self):
                super().__init__()
                self.norm = torch.nn.BatchNorm1d(4)

            def forward(self, ids, mask, pixels):
                noise = torch.nn.functional.dropout(self.norm(pixels), 0.5, self.training)
                return super().forward(ids, mask, noise)

        distiller = distiller_of(student=Noisy())
        state = torch.random.get_rng_state()
        values = [[one.value for one in distiller.check(batch()).terms] for _ in range(2)]
        assert values[0] == values[1]
        assert torch.equal(state, torch.random.get_rng_state())
        assert distiller.student.norm.num_batches_tracked == 0
        assert distiller.student.norm.training

    def test_everything_that_is_wrong_at_once(self):
        soft = {"loss": "kl_divergence", "on": "logits"}
        unknown = {"loss": "mse", "on": "embedding.text"}
        distiller = distiller_of(
            recipe_of(soft, ATTENTION, unknown, {"loss": "task"}), student=tiny.Dual(classes=4)
        )
        shared = batch(spare=1)
        seen = distiller.check({**shared, "teacher_mask": shared["mask"].flip(1)})
        assert not seen.passed
        for part in (
            "unequal classes", "differ in padding", "no signal of the student", "no field `loss`",
            "nothing uses the batch entry 'spare'",
        ):  # fmt: skip
            assert part in str(seen)
        assert "ready" not in str(seen)

    def test_a_frozen_student_is_noticed(self):
        student = tiny.Dual().requires_grad_(False)
        seen = distiller_of(recipe_of(ATTENTION), student=student).check(batch())
        assert "carries no gradient" in str(seen)

    def test_known_teacher_signals_need_no_teacher(self):
        distiller = distiller_of()
        signals = distiller.run_teacher(batch())
        alone = dk.Distiller(
            tiny.Dual(), None, "dide", student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES)
        )
        assert alone.check(batch(), teacher_signals=signals).passed


def test_teacher_and_student_that_share_a_tower():
    """A shared part that learns would be frozen in silence; one that is frozen may be shared."""
    teacher, student = tiny.Dual(), tiny.Dual()
    student.text = teacher.text

    def made():
        return distiller_of(
            recipe_of(ATTENTION), student=student, teacher=teacher, teacher_tables=tiny.DUAL_TABLES
        )

    with pytest.raises(errors.SignalError, match=r"share the parameter 'text\.blocks\.0\.qkv"):
        made()
    teacher.text.requires_grad_(False)
    made()(batch()).loss.backward()
    assert student.image.blocks[0].qkv.weight.grad.any()
