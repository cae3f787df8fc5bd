"""DistillationTrainer saves the student alone, and resumes to the bit: ``make loops``."""

from __future__ import annotations

import copy
import fnmatch
import os
import types
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
for library in ("accelerate", "peft"):
    pytest.importorskip(library)

import peft
import transformers as hf
from safetensors.torch import load_file

from distillkit import errors
from tests.support import small_trainings as small
from tests.support.small_trainings import LOGITS, PROJECTED

pytestmark = pytest.mark.filterwarnings("ignore")
ALIGNERS = "distillkit_aligners.safetensors"


def projected(folder, data=None, **changes):
    torch.manual_seed(0)
    models = small.towers(**DROPOUT), small.towers(12)
    return small.trainer_of(folder, *models, PROJECTED, data or small.pairs(8), **changes)


DROPOUT = {"hidden_dropout_prob": 0.1}
"""So that a resumed run needs the random state of the checkpoint, too."""


class TestSaved:
    @pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
    def test_it_is_the_student_with_its_own_keys(self, tmp_path, tied):
        data = small.prompts(4)
        models = small.llava(tied=tied), small.llava()
        trainer = small.trainer_of(tmp_path, *models, LOGITS, data, ignore=["labels"])
        trainer.train()
        trainer.save_model()
        plain = tmp_path / "plain"
        trainer.model.save_pretrained(plain)
        keys = set(load_file(tmp_path / "model.safetensors"))
        assert keys == set(load_file(plain / "model.safetensors"))
        assert not (tmp_path / ALIGNERS).exists()
        loaded = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
        batch = small.together(data)
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)
        assert not torch.equal(loaded(**batch).logits, models[0].eval()(**batch).logits)

    def test_adapters_of_peft_alone(self, tmp_path):
        base, data = small.towers(), small.pairs(4)
        config = peft.LoraConfig(r=2, target_modules=["query", "value", "q_proj", "v_proj"])
        student = peft.get_peft_model(copy.deepcopy(base), config)
        start = small.flat(student.base_model.model)
        trainer = small.trainer_of(
            tmp_path, student, small.towers(12), PROJECTED, data, save_strategy="steps",
            save_steps=2, learning_rate=0.1,
        )  # fmt: skip
        trainer.train()
        folder = tmp_path / "checkpoint-2"
        assert {"adapter_model.safetensors", "adapter_config.json", ALIGNERS} <= names(folder)
        assert "model.safetensors" not in names(folder)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
        batch = small.together(data)
        expected = trainer.model.eval()(**batch).text_embeds
        assert torch.equal(loaded(**batch).text_embeds, expected)
        assert not torch.allclose(base.eval()(**batch).text_embeds, expected)
        assert start.shape == small.flat(trainer.model.base_model.model).shape
        again = small.trainer_of(
            tmp_path, student, small.towers(12), PROJECTED, data, max_steps=4, learning_rate=0.1
        )
        again.train(resume_from_checkpoint=str(folder))
        assert again.state.global_step == 4

    def test_columns_of_a_teacher_with_adapters(self, tmp_path):
        """Its forward names nothing; ``pixel_mask`` is an argument of the model inside."""
        teacher = peft.get_peft_model(small.vilt(), peft.LoraConfig(target_modules=["query"]))
        data = [{**one, "pixel_mask": torch.ones(16, 16).long()} for one in small.pairs(4)]
        trainer = small.trainer_of(tmp_path, small.towers(), teacher, small.ATTENTION, data)
        assert "pixel_mask" in next(iter(trainer.get_train_dataloader()))
        trainer.train()

    @pytest.mark.parametrize("only", [False, True], ids=["everything", "save_only_model"])
    def test_aligners_are_beside_it(self, tmp_path, only):
        trainer = projected(tmp_path, save_strategy="steps", save_steps=2, save_only_model=only)
        trainer.train()
        folder = tmp_path / "checkpoint-2"
        assert ("optimizer.pt" in names(folder)) is not only
        saved = load_file(folder / ALIGNERS)
        learned = trainer.distiller.objective.state_dict()
        assert saved.keys() == learned.keys()
        assert all(torch.equal(x, learned[name]) for name, x in saved.items())
        assert all("projector" not in name for name in load_file(folder / "model.safetensors"))


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


class TestResumed:
    def logs(self, trainer, after=0):
        own = ("train_", "eval_runtime", "eval_steps", "eval_samples", "total_flos")
        return [
            {name: x for name, x in log.items() if not name.startswith(own)}
            for log in trainer.state.log_history
            if log["step"] > after and "loss" in log
        ]

    @pytest.mark.parametrize("accumulated", [1, 2])
    def test_it_is_the_uninterrupted_run_to_the_bit(self, tmp_path, accumulated):
        changes = {
            "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2,
            "gradient_accumulation_steps": accumulated,
        }  # fmt: skip
        whole = projected(tmp_path, **changes)
        whole.train()
        resumed = projected(tmp_path, **changes)
        assert not torch.equal(small.learned(resumed), small.learned(whole))
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert torch.equal(small.learned(resumed), small.learned(whole))
        assert self.logs(resumed, after=2) == self.logs(whole, after=2)
        weights = [log["weight/embeddings"] for log in self.logs(resumed)]
        assert weights == [4.0, 3.0, 2.0, 1.0]

    @pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
    def test_a_decoder(self, tmp_path, tied):
        """Its files have other names for its parameters than the model itself."""
        torch.manual_seed(0)
        models, data = (small.llava(tied=tied), small.llava()), small.prompts(8)
        changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        whole = small.trainer_of(tmp_path, *models, LOGITS, data, **changes)
        whole.train()
        resumed = small.trainer_of(tmp_path, *models, LOGITS, data, **changes)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert torch.equal(small.learned(resumed), small.learned(whole))

    def test_a_checkpoint_of_another_student(self, tmp_path):
        first = projected(tmp_path, save_strategy="steps", save_steps=1)
        first.train()
        other = small.towers(num_hidden_layers=3)
        trainer = small.trainer_of(tmp_path, other, small.towers(12), PROJECTED, small.pairs(4))
        with pytest.raises(errors.OptionError, match="lacks .* parameters of the student"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))

    def test_without_the_optimizer_what_was_learned_goes_on(self, tmp_path):
        changes = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
        first = projected(tmp_path, **changes)
        first.train()
        starts = []

        class Watch(hf.TrainerCallback):
            def on_train_begin(self, *_, **__):
                starts.append(small.learned(second))

        second = projected(tmp_path, max_steps=3, callbacks=[Watch()])
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert torch.equal(starts[0], small.learned(first))

    def test_a_checkpoint_without_aligners(self, tmp_path):
        trainer = projected(tmp_path, save_strategy="steps", save_steps=1)
        trainer.train()
        folder = tmp_path / "checkpoint-1"
        (folder / ALIGNERS).unlink()
        with pytest.raises(errors.OptionError, match=rf"{folder.name}'? has no {ALIGNERS}"):
            projected(tmp_path).train(resume_from_checkpoint=str(folder))

    def test_aligners_of_another_recipe(self, tmp_path):
        trainer = projected(tmp_path, save_strategy="steps", save_steps=1)
        trainer.train()
        terms = copy.deepcopy(PROJECTED.model_dump()["terms"])
        terms[1]["align"] = [{"name": "projector", "student_width": 8, "teacher_width": 10}]
        models = small.towers(**DROPOUT), small.towers(10)
        other = type(PROJECTED)(name="other", terms=terms)
        trainer = small.trainer_of(tmp_path, *models, other, small.pairs(8))
        with pytest.raises(errors.OptionError, match="aligners of another recipe"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))

    def test_the_best_model_has_its_aligners(self, tmp_path):
        data = small.pairs(4)
        trainer = projected(
            tmp_path, data, max_steps=3, save_strategy="steps", save_steps=1, eval_steps=1,
            eval_strategy="steps", load_best_model_at_end=True, greater_is_better=True,
            metric_for_best_model="eval_distillation_loss", learning_rate=1e-2,
            eval_dataset=data, evaluate_distillation=True,
        )  # fmt: skip
        trainer.train()
        best = Path(trainer.state.best_model_checkpoint)
        assert best.name == "checkpoint-1"  # the weight falls, and with it the loss
        learned, saved = trainer.distiller.objective.state_dict(), load_file(best / ALIGNERS)
        assert all(torch.equal(saved[name], x) for name, x in learned.items())
        saved = hf.VisionTextDualEncoderModel.from_pretrained(best)
        assert torch.equal(small.flat(saved), small.flat(trainer.model))
        last = load_file(tmp_path / "checkpoint-3" / ALIGNERS)
        assert any(not torch.equal(last[name], x) for name, x in learned.items())


class Hub:
    """What a push would send."""

    def __init__(self):
        self.sent = []

    def create_repo(self, name, **_):
        return types.SimpleNamespace(repo_id=f"someone/{name}")

    def upload_folder(self, *, folder_path, ignore_patterns=(), **_):
        left_out = tuple(ignore_patterns or ())
        files = [p.relative_to(folder_path) for p in Path(folder_path).rglob("*") if p.is_file()]
        self.sent.append(
            {str(p) for p in files if not any(fnmatch.fnmatch(str(p), x) for x in left_out)}
        )
        return types.SimpleNamespace(done=lambda: True)


class TestHub:
    def test_what_is_pushed(self, tmp_path, monkeypatch):
        hub = Hub()
        monkeypatch.setattr(hf.trainer, "hf_api", lambda: hub)
        folder = tmp_path / "student"
        trainer = projected(folder, save_strategy="steps", save_steps=1, push_to_hub=True)
        trainer.train()
        trainer.push_to_hub()
        assert {"README.md", "config.json", "model.safetensors", ALIGNERS} <= hub.sent[-1]
        assert not any(name.startswith("checkpoint") for name in hub.sent[-1])
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\n")
        assert "teacher `VisionTextDualEncoderModel`" in card
        assert "| attention_kl/attention.text_to_image | attention.text_to_image | 1.0 |" in card
        assert (
            "| embeddings | embedding.text | 4.0 to 0.0 (linear, until 100% of training) |" in card
        )
        assert "@" in card.partition("```bibtex")[2].partition("```")[0]

    def test_the_section_is_there_once(self, tmp_path):
        trainer = projected(tmp_path)
        trainer.train()
        for _ in range(2):
            trainer.create_model_card(model_name="student", tags=["distillation"])
        card = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert card.count("## Distillation") == 1
        assert card.count("```bibtex") == 1

    def test_with_adapters_of_peft(self, tmp_path):
        config = peft.LoraConfig(r=2, target_modules=["query", "value", "q_proj", "v_proj"])
        student = peft.get_peft_model(small.towers(), config)
        models = student, small.towers(12)
        trainer = small.trainer_of(tmp_path, *models, PROJECTED, small.pairs(4))
        trainer.train()
        trainer.save_model()
        for _ in range(2):
            trainer.create_model_card(model_name="student")
        card = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert card.count("## Distillation") == 1
