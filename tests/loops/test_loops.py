"""A distiller in the loops that people own, with the real libraries: ``make loops``.

``make test`` has none of them installed and skips this file.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
for library in ("accelerate", "peft", "lightning", "bitsandbytes"):
    pytest.importorskip(library)

import transformers as hf

import distillkit as dk
from distillkit import errors

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("default::distillkit.errors.CaptureWarning"),
]
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TEXT = {**SMALL, "vocab_size": 100, "max_position_embeddings": 40}
IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
TASK = dk.Recipe(name="test", terms=[{"loss": "kl_divergence", "on": "logits"}, {"loss": "task"}])


def teacher():
    return hf.ViltModel(hf.ViltConfig(**{**TEXT, **IMAGE}))


def towers():
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(
        hf.ViTConfig(**IMAGE), hf.BertConfig(**TEXT), projection_dim=16
    )
    return hf.VisionTextDualEncoderModel(config)


def pairs():
    ids = torch.randint(5, 90, (2, 7))
    ids[:, -1] = 2
    ones = torch.ones(2, 7, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": ones, "pixel_values": torch.rand(2, 3, 32, 32)}


def llava(*, tied=False):
    text = hf.LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=tied, pad_token_id=0)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**IMAGE), text_config=text, image_token_id=99,
        vision_feature_select_strategy="default", vision_feature_layer=-1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config)


def prompts(examples=8):
    words = torch.randint(5, 90, (examples, 6))
    ids = torch.cat([torch.ones(examples, 1).long(), torch.full((examples, 16), 99), words], 1)
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.rand(examples, 3, 32, 32),
        "labels": torch.where(ids == 99, -100, ids),
    }  # fmt: skip
    return [{name: value[i] for name, value in batch.items()} for i in range(examples)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TestPeft:
    def lora(self, model):
        import peft

        config = peft.LoraConfig(r=4, target_modules=["query", "value"])
        return peft.get_peft_model(model, config)

    def taught(self, student):
        return [n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()]

    @pytest.mark.parametrize("how", ["by class", "by name", "by part"])
    def test_a_student_with_adapters_is_found(self, how):
        student = self.lora(towers())
        adapter = {
            "by class": None,
            "by name": "vision_text_dual_encoder",
            "by part": dk.adapt(student, at="base_model.model"),
        }[how]
        distiller = dk.Distiller(student, teacher(), "dide_attention", student_adapter=adapter)
        distiller(pairs()).loss.backward()
        assert self.taught(student)
        assert all("lora" in name for name in self.taught(student))

    def test_adapters_that_are_added_later_are_trained(self):
        distiller = dk.Distiller(towers(), teacher(), "dide_attention")
        batch = pairs()
        loss = distiller.eval()(batch).loss
        distiller.student = self.lora(distiller.student)
        torch.testing.assert_close(distiller.eval()(batch).loss, loss)
        distiller(batch).loss.backward()
        assert all("lora" in name for name in self.taught(distiller.student))


class TestAccelerate:
    def test_an_offloaded_teacher_stays_where_it_is(self):
        from accelerate import Accelerator, cpu_offload

        model, batch = teacher(), pairs()
        student = towers()
        expected = dk.Distiller(student, copy.deepcopy(model), "dide_attention").eval()(batch).loss
        cpu_offload(model, execution_device="cpu")
        distiller = dk.Distiller(student, model, "dide_attention").eval()
        torch.testing.assert_close(distiller(batch).loss, expected)
        torch.testing.assert_close(distiller.to("cpu").float()(batch).loss, expected)
        prepared = Accelerator(cpu=True).prepare(distiller)
        torch.testing.assert_close(prepared(batch).loss, expected)

    def test_what_it_rebuilds_keeps_what_is_known(self):
        from accelerate.utils import convert_to_fp32, send_to_device

        distiller = dk.Distiller(towers(), teacher(), "dide_attention")
        batch = pairs()
        known = distiller.run_teacher(batch)
        for moved in (send_to_device(known, "cpu"), convert_to_fp32(distiller(batch)).teacher):
            name = "attention.text_to_image"
            assert [axis.modality for axis in moved.axes(name)] == ["text", "image"]
            assert dict(moved.absent) == dict(known.absent)
            one, other = (side[name][-1].scores() for side in (moved, known))
            torch.testing.assert_close(one, other)


class TestQuantised:
    @pytest.mark.parametrize("bits", [8, 4])
    def test_a_teacher_of_bitsandbytes(self, bits):
        import bitsandbytes as bnb

        model = hf.ViltModel(hf.ViltConfig(**{**TEXT, **IMAGE, "hidden_size": 64})).eval()
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is torch.nn.Linear:
                    shape = child.in_features, child.out_features, child.bias is not None
                    made = bnb.nn.Linear4bit(*shape) if bits == 4 else bnb.nn.Linear8bitLt(
                        *shape, has_fp16_weights=False
                    )  # fmt: skip
                    made.load_state_dict(child.state_dict())
                    setattr(parent, name, made)
        model.to("cpu")
        distiller = dk.Distiller(towers(), model, "dide_attention")
        loss = distiller(pairs()).loss
        loss.backward()
        assert torch.isfinite(loss)
        distiller.to("cpu").float()(pairs())


class Averaging(hf.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = model(inputs)
        return (
            (result.loss, {"logits": result.student["logits"]}) if return_outputs else result.loss
        )


class TestTrainer:
    def arguments(self, folder, **changes):
        return hf.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=2, max_steps=2, save_steps=1,
            report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True, **changes,
        )  # fmt: skip

    @pytest.mark.parametrize(
        "changes",
        [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}],
        ids=str,
    )
    @pytest.mark.parametrize("tied", [False, True])
    def test_it_trains_evaluates_saves_and_resumes(self, tmp_path, changes, tied):
        data = prompts()
        one, other = (dk.Distiller(llava(tied=tied), llava(), TASK) for _ in range(2))
        trainer = hf.Trainer(
            one, self.arguments(tmp_path, **changes), train_dataset=data, eval_dataset=data
        )
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0
        resumed = hf.Trainer(other, self.arguments(tmp_path, **changes), train_dataset=data)
        resumed.train(resume_from_checkpoint=True)
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)

    @pytest.mark.parametrize("whole", [True, False], ids=["distiller", "student"])
    def test_accumulation_is_one_big_batch(self, tmp_path, whole):
        data, start = prompts(), llava()

        def step(accumulated):
            student = copy.deepcopy(start)
            distiller = dk.Distiller(student, copy.deepcopy(start), TASK)
            torch.manual_seed(1)
            torch.nn.init.normal_(distiller.teacher.lm_head.weight, std=0.1)

            class Loop(hf.Trainer):
                def compute_loss(self, model, inputs, **_):
                    return distiller(inputs).loss

                def create_optimizer(self, model=None):
                    self.optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
                    return self.optimizer

            arguments = self.arguments(
                tmp_path, gradient_accumulation_steps=accumulated, max_grad_norm=0.0, seed=1,
                lr_scheduler_type="constant", learning_rate=1.0, save_strategy="no",
            )  # fmt: skip
            arguments.per_device_train_batch_size = 8 // accumulated
            arguments.max_steps = 1
            model = distiller if whole else student
            Loop(model, arguments, train_dataset=data).train()
            return torch.cat([p.detach().flatten() for p in student.parameters()])

        torch.testing.assert_close(step(1), step(4), rtol=1e-4, atol=1e-5)


def test_lightning_trains_and_validates_under_inference_mode(tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.distiller = dk.Distiller(towers(), teacher(), "dide_attention")
            self.seen, self.modes = [], []

        def training_step(self, batch, _):
            return self.distiller(batch).loss

        def validation_step(self, batch, _):
            self.modes.append(torch.is_inference_mode_enabled())
            self.seen.append(self.distiller(batch).loss.item())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    module, data = Module(), [pairs() for _ in range(3)]
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    trainer.fit(module, loader, loader)
    trainer.validate(module, loader, verbose=False)
    assert module.modes[-1]
    assert module.seen[-1] < module.seen[0]


def test_what_the_student_is_called_with_says_what_is_missing():
    distiller = dk.Distiller(towers(), teacher(), "dide_attention")
    batch = pairs()
    del batch["pixel_values"]
    with pytest.raises((errors.DistillKitError, ValueError), match="pixel_values"):
        distiller(batch)
