"""DistillationTrainer trains as the real Trainer does: ``make loops``."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("accelerate")

import copy

import transformers as hf
from distillkit_transformers import DistillationMixin, DistillationTrainer

import distillkit as dk
from distillkit import errors
from tests.support import small_trainings as small
from tests.support.small_trainings import LOGITS, PROJECTED, SGD

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("default::distillkit.errors.CaptureWarning"),
]
CLOSE = {"rtol": 0.0, "atol": 1e-6}


class Silent(hf.LlavaForConditionalGeneration):
    """A decoder that says that its loss is a mean."""

    accepts_loss_kwargs = False


def decoder(*, divides):
    model = small.llava()
    return model if divides else _as(Silent, model)


def _as(kind, model):
    other = kind(model.config)
    other.load_state_dict(model.state_dict())
    return other


class TestAccumulation:
    """The steps of a trainer are those of a plain loop over big batches, whatever the cut."""

    def check(self, folder, student, teacher, recipe, data, windows, **changes):
        trainer = small.trainer_of(folder, student, teacher, recipe, data, **SGD, **changes)
        trainer.train()
        hand, results = small.by_hand(student, teacher, recipe, windows)
        moved = (small.flat(student) - small.flat(hand.student)).abs().max()
        assert moved > 1e-4
        difference = (small.learned(trainer) - small.flat(hand)).abs().max()
        assert difference < 1e-6 * max(1, moved)
        logs = [log for log in trainer.state.log_history if "loss" in log]
        for log, result in zip(logs, results, strict=True):
            assert log["loss"] == pytest.approx(result.loss.item(), abs=1e-6)
            for name, value in result.parts.items():
                assert log[name] == pytest.approx(value.item(), abs=1e-6), name
            for name, value in result.weights.items():
                assert log[f"weight/{name}"] == pytest.approx(value), name

    @pytest.mark.parametrize("divides", [True, False], ids=["divides", "averages"])
    @pytest.mark.parametrize("per", ["example", "row"])
    @pytest.mark.parametrize("task", [True, False], ids=["task", "alone"])
    def test_unequal_parts(self, tmp_path, per, task, divides):
        terms = [{"loss": "kl_divergence", "on": "logits", "per": per, "mask": "labels"}]
        recipe = dk.Recipe(name="test", terms=[*terms, {"loss": "task"}] if task else terms)
        data = small.prompts(8)
        student, teacher = decoder(divides=divides), small.llava()
        changes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}
        self.check(tmp_path, student, teacher, recipe, data, [data] * 2, max_steps=2, **changes)

    @pytest.mark.parametrize("per", ["example", "row"])
    def test_the_last_window_is_incomplete(self, tmp_path, per):
        terms = [
            {"loss": "kl_divergence", "on": "logits", "per": per, "mask": "labels"},
            {"loss": "task"},
        ]
        data = small.prompts(8)
        changes = {
            "max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 3,
        }  # fmt: skip
        self.check(
            tmp_path, small.llava(), small.llava(), dk.Recipe(name="test", terms=terms), data,
            [data[:6], data[6:]], **changes,
        )  # fmt: skip

    def test_a_part_without_labels(self, tmp_path):
        """The first part tells nothing of how the student's loss counts."""
        terms = [{"loss": "kl_divergence", "on": "logits"}, {"loss": "task"}]
        data = small.prompts(8)
        for one in data[:2]:
            one["labels"] = torch.full_like(one["labels"], -100)
        self.check(
            tmp_path, small.llava(), small.llava(), dk.Recipe(name="test", terms=terms), data,
            [data] * 2, gradient_accumulation_steps=4,
        )  # fmt: skip

    def test_soft_labels_of_examples(self, tmp_path):
        recipe = dk.Recipe(
            name="test", terms=[{"loss": "kl_divergence", "on": "logits"}, {"loss": "task"}]
        )
        data = small.questions(8)
        changes = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
        models = small.answering(), small.answering()
        self.check(tmp_path, *models, recipe, data, [data] * 2, **changes)

    def test_without_labels_and_with_an_aligner(self, tmp_path):
        data = small.pairs(8)
        changes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}
        models = small.towers(), small.towers(12)
        self.check(tmp_path, *models, PROJECTED, data, [data] * 2, **changes)

    def test_no_model_runs_twice_where_examples_are_counted(self, tmp_path):
        student = small.towers()
        trainer = small.trainer_of(
            tmp_path, student, small.vilt(), small.ATTENTION, small.pairs(8),
            gradient_accumulation_steps=2, max_steps=2,
        )  # fmt: skip
        calls = count_calls(trainer)
        trainer.train()
        assert calls == {"student": 4, "teacher": 4}


def count_calls(trainer):
    calls = {"student": 0, "teacher": 0}

    def note(name):
        def hook(*_):
            calls[name] += 1

        return hook

    trainer.model.register_forward_pre_hook(note("student"))
    trainer.distiller.teacher.register_forward_pre_hook(note("teacher"))
    return calls


class TestLogs:
    def test_means_over_logging_steps(self, tmp_path):
        data = small.pairs(8)
        models = small.towers(), small.towers(12)
        trainer = small.trainer_of(
            tmp_path, *models, PROJECTED, data, **SGD, max_steps=4, logging_steps=2
        )
        trainer.train()
        windows = [data[i : i + 2] for i in (0, 2, 4, 6)]
        _, results = small.by_hand(*models, PROJECTED, windows)
        logs = [log for log in trainer.state.log_history if "loss" in log]
        for log, (one, other) in zip(logs, (results[:2], results[2:]), strict=True):
            for name in one.parts:
                mean = (one.parts[name] + other.parts[name]) / 2
                assert log[name] == pytest.approx(mean.item(), rel=1e-4)
        assert [log["weight/embeddings"] for log in logs] == [3.5, 1.5]

    def test_a_second_training_starts_anew(self, tmp_path):
        trainer = small.trainer_of(
            tmp_path, small.towers(), small.towers(12), PROJECTED, small.pairs(6),
            max_steps=3, logging_steps=2,
        )  # fmt: skip
        trainer.train()  # the third step is never logged
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        assert logs[0]["weight/embeddings"] == pytest.approx((4 + 4 * 2 / 3) / 2)


class TestAligners:
    def trainer(self, folder, **changes):
        models = small.towers(), small.towers(12)
        return small.trainer_of(folder, *models, PROJECTED, small.pairs(8), **changes)

    def test_they_are_in_the_optimizer_once(self, tmp_path):
        trainer = self.trainer(tmp_path, max_steps=1, weight_decay=0.3)
        before = small.flat(trainer.distiller.objective)
        trainer.train()
        between = small.flat(trainer.distiller.objective)
        assert not torch.equal(before, between)
        trainer.train()
        assert not torch.equal(between, small.flat(trainer.distiller.objective))
        places = {
            name: [g for g in trainer.optimizer.param_groups if any(p is q for q in g["params"])]
            for name, p in trainer.distiller.objective.named_parameters()
        }
        assert {name: len(found) for name, found in places.items()} == dict.fromkeys(places, 1)
        decays = {name: found[0]["weight_decay"] for name, found in places.items()}
        assert {name.rpartition(".")[2]: x for name, x in decays.items()} == {
            "weight": 0.3, "bias": 0.0,
        }  # fmt: skip

    def test_they_are_clipped_with_the_student(self, tmp_path):
        class Watch(hf.TrainerCallback):
            def on_pre_optimizer_step(self, *_, **__):
                parameters = [
                    *trainer.model.parameters(),
                    *trainer.distiller.objective.parameters(),
                ]
                grads = [p.grad for p in parameters if p.grad is not None]
                norms.append(torch.stack([g.norm() for g in grads]).norm().item())

        norms = []
        trainer = self.trainer(tmp_path, max_steps=2, max_grad_norm=1e-3, callbacks=[Watch()])
        trainer.train()
        assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)

    def test_an_optimizer_of_ones_own_without_them_is_refused(self, tmp_path):
        student = small.towers()
        trainer = DistillationTrainer(
            student, small.towers(12), PROJECTED, train_dataset=small.pairs(8),
            args=small.arguments(tmp_path, max_steps=4),
            optimizers=(torch.optim.SGD(student.parameters(), lr=0.1), None),
        )  # fmt: skip
        with pytest.raises(errors.RecipeError, match="no optimizer steps its parameters"):
            trainer.train()


class TestColumns:
    def test_what_the_distiller_reads_stays_and_the_rest_goes(self, tmp_path):
        """Teacher and student have words of their own, told apart by their characters."""
        data, own = small.pairs(4), small.pairs(4, words=5)
        ends = torch.arange(1, 7)
        for one, other in zip(data, own, strict=True):
            one["teacher_input_ids"] = other["input_ids"]
            one["teacher_attention_mask"] = other["attention_mask"]
            one["offset_mapping"] = torch.stack([ends - 1, ends], -1)
            one["teacher_offset_mapping"] = torch.stack([ends - 1, ends], -1)[:5] * 6 // 5
            one["counts"] = one["attention_mask"] == 1
            one["url"] = torch.zeros(())
        recipe = dk.Recipe(
            name="test",
            terms=[
                {
                    "loss": "attention_kl", "on": "attention.text_to_image", "align": ["overlap"],
                    "mask": "counts",
                }
            ],
        )  # fmt: skip
        trainer = small.trainer_of(tmp_path, small.towers(), small.vilt(), recipe, data)
        batch = next(iter(trainer.get_train_dataloader()))
        assert set(batch) == set(data[0]) - {"url"}
        trainer.train()
        assert trainer.state.log_history[0]["attention_kl/attention.text_to_image"] > 0

    def test_a_student_with_a_prefix(self, tmp_path):
        data = [
            {**{f"student_{n}": x for n, x in one.items()}, **one, "text": torch.zeros(())}
            for one in small.pairs(4)
        ]
        trainer = small.trainer_of(tmp_path, small.towers(), small.vilt(), small.ATTENTION, data)
        assert set(next(iter(trainer.get_train_dataloader()))) == set(data[0]) - {"text"}

    def test_what_a_collator_reads(self, tmp_path):
        class Collate:
            columns = ("text", "image")

            def __call__(self, examples):
                assert set(examples[0]) == {"text", "image"}
                return small.together(small.pairs(len(examples)))

        data = [{"text": "a", "image": "b", "url": "c"}] * 4
        trainer = small.trainer_of(
            tmp_path, small.towers(), small.vilt(), small.ATTENTION, data, data_collator=Collate()
        )
        trainer.train()

    def test_grouped_by_length(self, tmp_path):
        trainer = small.trainer_of(
            tmp_path, small.towers(), small.vilt(), small.ATTENTION, small.pairs(8),
            train_sampling_strategy="group_by_length",
        )  # fmt: skip
        trainer.train()
        assert trainer.state.global_step == 2


class TestSettings:
    """The loss is the same under settings that change how the student is run."""

    def losses(self, folder, models=None, recipe=PROJECTED, data=None, **changes):
        torch.manual_seed(0)
        student, teacher = models or (small.towers(), small.towers(12))
        data = data or small.pairs(8)
        trainer = small.trainer_of(folder, student, teacher, recipe, data, **SGD, **changes)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        return torch.tensor([log["loss"] for log in logs]), small.learned(trainer)

    @pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
    def test_checkpointing(self, tmp_path, name):
        """Of logits and of captured layers, whose gradients are part of the update."""
        terms = [
            {"loss": "kl_divergence", "on": "logits"},
            {"loss": "attention_kl", "on": "attention.text_to_image", "weight": 1000.0},
        ]
        given = {
            "models": (small.llava(), small.llava()), "data": small.prompts(8),
            "recipe": dk.Recipe(name="test", terms=terms), "ignore": ["labels"],
        }  # fmt: skip
        plain = self.losses(tmp_path, **given)
        checkpointed = self.losses(tmp_path, **given, **{name: True})
        torch.testing.assert_close(plain, checkpointed, **CLOSE)

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_compiled(self, tmp_path, backend):
        torch.compiler.reset()
        compiled = self.losses(tmp_path, torch_compile=True, torch_compile_backend=backend)
        torch.testing.assert_close(self.losses(tmp_path), compiled, rtol=0, atol=1e-5)

    def test_half_precision(self, tmp_path):
        plain, half = (self.losses(tmp_path, bf16=on) for on in (False, True))
        torch.testing.assert_close(plain[0], half[0], rtol=0.1, atol=1e-3)
        assert not torch.equal(plain[1], half[1])

    def test_half_precision_is_the_teachers_too(self, tmp_path):
        seen = []
        trainer = small.trainer_of(
            tmp_path, small.towers(), small.vilt(), small.ATTENTION, small.pairs(4), bf16=True,
            gradient_accumulation_steps=2, max_steps=1,
        )  # fmt: skip
        layer = trainer.distiller.teacher.encoder.layer[0].attention.attention.query
        layer.register_forward_hook(lambda _, __, y: seen.append(y.dtype))
        trainer.train()
        assert set(seen) == {torch.bfloat16}


class TestOnesOwnTrainer:
    def test_its_hooks_are_called(self, tmp_path):
        seen = []

        class Own(hf.Trainer):
            def training_step(self, *args, **kwargs):
                seen.append("step")
                return super().training_step(*args, **kwargs)

            def evaluate(self, *args, **kwargs):
                seen.append("evaluate")
                return super().evaluate(*args, **kwargs)

        class Mixed(DistillationMixin, Own):
            def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
                loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
                if model.training:
                    assert isinstance(outputs, dk.Distilled)
                    loss = loss + 0.5 * model.logit_scale**2
                return (loss, outputs) if return_outputs else loss

        data = small.pairs(4)
        trainer = small.trainer_of(
            tmp_path, small.towers(), small.vilt(), small.ATTENTION, data, kind=Mixed, **SGD,
            max_steps=1, eval_dataset=data,
        )  # fmt: skip
        before = trainer.model.logit_scale.item()
        trainer.train()
        trainer.evaluate()
        assert seen == ["step", "evaluate"]
        assert trainer.model.logit_scale.item() == pytest.approx(
            before * (1 - SGD["learning_rate"]), rel=1e-5
        )

    def test_the_distiller_holds_the_plain_model_afterwards(self, tmp_path):
        torch.compiler.reset()
        trainer = small.trainer_of(
            tmp_path, small.towers(), small.vilt(), small.ATTENTION, small.pairs(4),
            torch_compile=True, torch_compile_backend="eager", max_steps=1,
        )  # fmt: skip
        trainer.train()
        assert trainer.distiller.student is trainer.model


class TestErrors:
    def make(self, folder, *models, **changes):
        changes = {"train_dataset": small.pairs(2), "args": small.arguments(folder), **changes}
        return DistillationTrainer(*models, **changes)

    def test_what_is_given_twice_or_not_at_all(self, tmp_path):
        student, teacher = small.towers(), small.vilt()
        with pytest.raises(errors.OptionError, match="`student` and `model` are the same"):
            self.make(tmp_path, student, teacher, LOGITS, model=student)
        with pytest.raises(errors.OptionError, match="takes a student, a teacher and a recipe"):
            self.make(tmp_path)
        with pytest.raises(errors.OptionError, match="takes a student, a teacher and a recipe"):
            self.make(tmp_path, student, teacher)
        distiller = dk.Distiller(student, teacher, small.ATTENTION)
        with pytest.raises(errors.OptionError, match="brings its own student"):
            self.make(tmp_path, student, distiller=distiller)
        self.make(tmp_path, distiller=distiller).train()
        self.make(tmp_path, model=student, teacher=teacher, recipe=small.ATTENTION).train()

    def test_several_gpus_in_one_process(self, tmp_path):
        arguments = small.arguments(tmp_path)
        assert arguments.n_gpu <= 1
        arguments._n_gpu = 2
        with pytest.raises(errors.OptionError, match=r"sees 2 GPUs.*torchrun"):
            self.make(tmp_path, small.towers(), small.vilt(), small.ATTENTION, args=arguments)

    def test_a_teacher_that_shares_parameters(self, tmp_path):
        student, teacher = small.towers(), small.towers(12)
        teacher.text_model = student.text_model
        with pytest.raises(errors.SignalError, match=r"share the parameter 'text_model"):
            self.make(tmp_path, student, teacher, small.ATTENTION)

    @pytest.mark.parametrize("name", ["model_init", "compute_loss_func", "label_smoothing_factor"])
    def test_what_would_be_ignored(self, tmp_path, name):
        given = {name: lambda *_: None}
        if name == "label_smoothing_factor":
            given = {"args": small.arguments(tmp_path, label_smoothing_factor=0.1)}
        with pytest.raises(errors.OptionError, match=name):
            self.make(tmp_path, small.towers(), small.vilt(), small.ATTENTION, **given)

    def test_a_trainer_that_is_too_old(self, tmp_path, monkeypatch):
        monkeypatch.delattr(hf.Trainer, "loss_is_scaled_for_ga")
        with pytest.raises(errors.OptionError, match=r"transformers 5.*\[trainer\]"):
            self.make(tmp_path, small.towers(), small.vilt(), small.ATTENTION)


def test_the_program_of_the_readme(tmp_path, monkeypatch):
    """Up to its trainer; ``make test`` runs the rest."""
    plugin = Path(__file__).parents[2] / "plugins" / "distillkit-transformers"
    text = (plugin / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    last = next(i for i, block in enumerate(blocks) if "DistillationTrainer" in block)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks[: last + 1]), {})
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_a_student_that_was_trained_is_a_plain_model(tmp_path):
    """What the trainer leaves on the model does not travel with a copy."""
    trainer = small.trainer_of(
        tmp_path, small.llava(), small.llava(), LOGITS, small.prompts(4), max_steps=1
    )
    trainer.train()
    student = trainer.model
    trainer.distiller.close()
    assert "accepts_loss_kwargs" not in vars(student)
    assert copy.deepcopy(student)(**small.together(small.prompts(2))).loss > 0
