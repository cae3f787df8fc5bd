"""DistillationTrainer evaluates and predicts with the student alone: ``make loops``."""

from __future__ import annotations

import copy
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("accelerate")

import numpy as np
import transformers as hf

import distillkit as dk
from tests.support import small_trainings as small
from tests.support.small_trainings import LOGITS, PROJECTED

pytestmark = pytest.mark.filterwarnings("ignore")
TASK = dk.Recipe(name="test", terms=[{"loss": "kl_divergence", "on": "logits"}, {"loss": "task"}])


def with_the_teachers_own(data):
    """The teacher is given other words."""
    return [
        {
            **one,
            "teacher_input_ids": one["input_ids"].flip(0).sort().values,
            "teacher_attention_mask": torch.ones_like(one["attention_mask"]),
        }
        for one in data
    ]


class Metric:
    """Remembers what it was given."""

    def __call__(self, prediction):
        self.predictions, self.labels = prediction.predictions, prediction.label_ids
        return {"size": len(self.labels)}


def encoders(folder, recipe=TASK, data=None, **changes):
    torch.manual_seed(0)
    models = small.answering(), small.answering()
    data = data or small.questions(7)
    trainer = small.trainer_of(folder, *models, recipe, data, eval_dataset=data, **changes)
    calls = []
    trainer.distiller.teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    return trainer, models[0], data, calls


def same(one, other):
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


class TestStudentAlone:
    @pytest.mark.parametrize("own", [False, True], ids=["shared", "teacher's own entries"])
    def test_it_is_evaluated_as_without_a_teacher(self, tmp_path, own):
        data = small.questions(7)
        metric, plain_metric = Metric(), Metric()
        trainer, student, _, calls = encoders(
            tmp_path, data=with_the_teachers_own(data) if own else data, compute_metrics=metric
        )
        plain = hf.Trainer(
            copy.deepcopy(student), small.arguments(tmp_path), eval_dataset=data,
            compute_metrics=plain_metric,
        )  # fmt: skip
        found, expected = trainer.evaluate(), plain.evaluate()
        assert calls == []
        assert found["eval_loss"] == expected["eval_loss"]
        assert found["eval_size"] == 7
        assert same(metric.predictions, plain_metric.predictions)
        assert same(metric.labels, plain_metric.labels)
        assert not any("kl_divergence" in name for name in found)

    def test_a_decoders_loss(self, tmp_path):
        torch.manual_seed(0)
        models, data = (small.llava(), small.llava()), small.prompts(8)
        trainer = small.trainer_of(tmp_path, *models, TASK, data)
        with torch.no_grad():
            losses = [
                models[0].eval()(**small.together(part)).loss for part in (data[:4], data[4:])
            ]
        found = trainer.evaluate(data)["eval_loss"]
        assert found == pytest.approx((sum(losses) / 2).item(), rel=1e-5)

    def test_it_predicts_as_without_a_teacher(self, tmp_path):
        trainer, student, data, calls = encoders(tmp_path)
        plain = hf.Trainer(copy.deepcopy(student), small.arguments(tmp_path))
        own, expected = trainer.predict(with_the_teachers_own(data)), plain.predict(data)
        assert calls == []
        assert same(own.predictions, expected.predictions)
        assert same(own.label_ids, expected.label_ids)

    def test_entries_of_the_students_own(self, tmp_path):
        data = small.pairs(5)
        torch.manual_seed(0)
        models = small.towers(), small.towers(12)
        prefixed = [{f"student_{name}": x for name, x in one.items()} for one in data]
        mixed = [
            {**own, **{f"teacher_{name}": x for name, x in one.items()}}
            for own, one in zip(prefixed, data, strict=True)
        ]
        trainer = small.trainer_of(tmp_path, *models, PROJECTED, mixed)
        trainer.train()
        plain = small.trainer_of(tmp_path, trainer.model, models[1], PROJECTED, data)
        found, expected = trainer.predict(mixed).predictions, plain.predict(data).predictions
        assert same(found[:4], expected[:4])  # logits of both towers, embeddings of both
        assert found[0].shape == (5, 4)  # in batches of 4

    @pytest.mark.parametrize("with_teacher", [False, True])
    def test_it_changes_nothing_in_training(self, tmp_path, with_teacher):
        torch.manual_seed(0)
        models, data = (small.towers(), small.towers(12)), small.pairs(8)
        plain = small.trainer_of(tmp_path, *models, PROJECTED, data, max_steps=4)
        plain.train()
        evaluated = small.trainer_of(
            tmp_path, *models, PROJECTED, data, max_steps=4, eval_strategy="steps", eval_steps=1,
            eval_dataset=data, evaluate_distillation=with_teacher,
        )  # fmt: skip
        evaluated.train()
        assert torch.equal(small.learned(plain), small.learned(evaluated))
        one, other = (
            [log["embeddings"] for log in trainer.state.log_history if "loss" in log]
            for trainer in (plain, evaluated)
        )
        assert one == other


class TestWithTeacher:
    def test_every_term_is_a_mean_over_examples(self, tmp_path):
        """In batches of 4 and 3."""
        trainer, student, data, calls = encoders(tmp_path, evaluate_distillation=True)
        found = trainer.evaluate()
        assert calls == [1, 1]
        parts = data[:4], data[4:]
        distiller = dk.Distiller(copy.deepcopy(student), trainer.distiller.teacher, TASK).eval()
        results = [distiller(small.together(part)) for part in parts]

        def mean(values):
            return sum(x.item() * len(part) for x, part in zip(values, parts, strict=True)) / 7

        for name in ("kl_divergence/logits", "task"):
            expected = mean([result.parts[name] for result in results])
            assert found[f"eval_{name}"] == pytest.approx(expected, rel=1e-5)
        expected = mean([result.loss for result in results])
        assert found["eval_distillation_loss"] == pytest.approx(expected, rel=1e-5)
        assert trainer.evaluate() | TIMES == found | TIMES

    def test_an_evaluation_that_was_interrupted_leaves_nothing(self, tmp_path):
        def interrupt(_):
            raise KeyboardInterrupt

        trainer, _, data, _ = encoders(tmp_path, evaluate_distillation=True)
        expected = trainer.evaluate(data[:4])["eval_task"]
        trainer.compute_metrics = interrupt
        with pytest.raises(KeyboardInterrupt):
            trainer.evaluate(data[4:])
        trainer.compute_metrics = None
        assert trainer.evaluate(data[:4])["eval_task"] == expected

    def test_a_metric_prefix_and_several_data_sets(self, tmp_path):
        trainer, _, data, _ = encoders(tmp_path, LOGITS, evaluate_distillation=True)
        found = trainer.evaluate({"one": data[:4], "other": data[4:]})
        assert found["eval_one_kl_divergence/logits"] != found["eval_other_kl_divergence/logits"]
        predicted = trainer.predict(data[:4], metric_key_prefix="late").metrics
        expected = found["eval_one_kl_divergence/logits"]
        assert predicted["late_kl_divergence/logits"] == pytest.approx(expected)

    def test_the_weight_is_that_of_the_trainers_progress(self, tmp_path):
        torch.manual_seed(0)
        data = small.pairs(4)
        trainer = small.trainer_of(
            tmp_path, small.towers(), small.towers(12), PROJECTED, data, eval_dataset=data,
            evaluate_distillation=True, max_steps=2,
        )  # fmt: skip

        def rest():
            found = trainer.evaluate()
            return found["eval_distillation_loss"] - (
                found["eval_attention_kl/attention.text_to_image"]
            ), found.get("eval_embeddings")

        total, part = rest()
        assert total == pytest.approx(4.0 * part, rel=1e-4)
        trainer.train()
        assert rest() == (0.0, None)  # its weight is 0 by now

    @pytest.mark.parametrize("setting", ["bf16", "bf16_full_eval"])
    def test_half_precision(self, tmp_path, setting):
        plain, *_ = encoders(tmp_path, evaluate_distillation=True)
        half, *_ = encoders(tmp_path, evaluate_distillation=True, **{setting: True})
        expected = plain.evaluate()["eval_kl_divergence/logits"]
        assert half.evaluate()["eval_kl_divergence/logits"] == pytest.approx(expected, rel=0.05)


TIMES = {
    f"eval_{name}": 0
    for name in ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
}
