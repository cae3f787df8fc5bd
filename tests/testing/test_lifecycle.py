"""The life of six pairs of models, by the kit that strangers use; and faults that it catches."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch.nn import functional as F

import distillkit as dk
from distillkit import testing
from tests.support import tiny
from tests.support.students import AsPeftDoes

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TEXT = {**SMALL, "vocab_size": 100, "max_position_embeddings": 40}
IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
TERMS = [
    {"loss": "attention_kl", "on": "attention.text_to_image", "per": "row"},
    {"loss": "attention_kl", "on": "attention.image_to_text"},
    {"loss": "kl_divergence", "on": "logits"},
]


def files(**changes):
    return {
        "student_adapter": dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        "teacher_adapter": dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        "ignore": ["labels"],
        **changes,
    }


def task_loss(output, batch):
    return F.cross_entropy(output.logits, batch["labels"])


def by_files():
    terms = [*TERMS, {"loss": "task"}]
    recipe = dk.Recipe(name="files", terms=terms)
    return dk.Distiller(
        tiny.Dual(), tiny.Fusion(), recipe, **files(task_loss=task_loss)
    ), tiny.batch(4)


def vilt_and_clip():
    text = {**TEXT, "bos_token_id": 1, "eos_token_id": 2}
    config = hf.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16)
    ids = torch.randint(5, 90, (4, 7))
    ids[:, -1] = 2
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.rand(4, 3, 32, 32),
    }  # fmt: skip
    teacher = hf.ViltModel(hf.ViltConfig(**{**TEXT, **IMAGE}))
    return dk.Distiller(hf.CLIPModel(config), teacher, "dide_attention"), batch


def llava():
    text = hf.LlamaConfig(**TEXT, num_key_value_heads=2, pad_token_id=0)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**IMAGE), text_config=text, image_token_id=99,
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip
    words = torch.randint(5, 90, (4, 6))
    ids = torch.cat([torch.ones(4, 1).long(), torch.full((4, 16), 99), words], 1)
    labels = torch.where(ids == 99, -100, ids)
    labels[0, 20:] = -100
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "pixel_values": torch.rand(4, 3, 32, 32),
    }  # fmt: skip
    terms = [
        {"loss": "kl_divergence", "on": "logits", "mask": "labels", "per": "row"},
        {"loss": "attention_kl", "on": "attention.text_to_image"},
        {"loss": "task"},
    ]
    models = [hf.LlavaForConditionalGeneration(config) for _ in range(2)]
    return dk.Distiller(*models, dk.Recipe(name="words", terms=terms)), batch


def as_peft_does():
    recipe = dk.Recipe(name="adapters", terms=TERMS[:2])
    student = AsPeftDoes(tiny.Dual())
    return dk.Distiller(student, tiny.Fusion(), recipe, **files()), tiny.batch(4)


def compiled():
    torch.compiler.reset()
    recipe = dk.Recipe(name="compiled", terms=TERMS)
    student = torch.compile(tiny.Dual(), backend="eager")
    return dk.Distiller(student, tiny.Fusion(), recipe, **files()), tiny.batch(4)


class Own:
    """An adapter class of one's own."""

    outputs, returns = (), ()

    def __init__(self, streams, runs):
        self.streams, self._runs = streams, runs

    def inputs(self, batch):
        return {name: batch[name] for name in tiny.INPUTS}

    def layout(self, batch, record):
        del record
        text = dk.ModalityTokens(slice(0, 5), special=(0,))
        streams = {}
        for stream, modalities in self._runs.items():
            first = 0 if modalities == ("image",) else 5
            places = {"text": text, "image": dk.ModalityTokens(slice(first, first + 4))}
            real = {"text": batch["mask"], "image": torch.ones_like(batch["mask"])[:, :4]}
            streams[stream] = dk.StreamTokens(
                {one: places[one] for one in modalities},
                torch.cat([real[one] for one in modalities], 1),
            )
        return dk.TokenLayout(streams)

    def signals(self, record, output, layout):
        return dk.build_signals(record, self.streams, layout, values={"logits": output.logits})


def own_classes():
    towers = {"text": "text.blocks.*", "image": "image.blocks.*"}
    student = Own(towers, {"text": ("text",), "image": ("image",)})
    teacher = Own({"joint": "encoder.blocks.*"}, {"joint": ("text", "image")})
    adapters = files(student_adapter=student, teacher_adapter=teacher)
    recipe = dk.Recipe(name="own", terms=TERMS)
    return dk.Distiller(tiny.Dual(), tiny.Fusion(), recipe, **adapters), tiny.batch(4)


@pytest.mark.filterwarnings("ignore")
@testing.parametrize_with_distiller_checks(
    [by_files, vilt_and_clip, llava, as_peft_does, compiled, own_classes]
)
def test_life(case, check):
    check(case)


class LeavesAMode(dk.Distiller):
    def forward(self, *args, **kwargs):
        self._mode = torch.overrides.BaseTorchFunctionMode()
        self._mode.__enter__()
        result = super().forward(*args, **kwargs)
        self._mode.__exit__(None, None, None)  # not reached where the model raises
        return result


class RemembersTheFirst(dk.Distiller):
    def forward(self, *args, **kwargs):
        if not hasattr(self, "first"):
            self.first = super().forward(*args, **kwargs)
        return self.first


class NeverCloses(dk.Distiller):
    def close(self):
        pass


class KeepsItsTeacherFrozen(dk.Distiller):
    def close(self):
        super().close()
        self.teacher.requires_grad_(requires_grad=False)


class IgnoresTheNormalizer(dk.Distiller):
    def forward(self, batch, normalizer=None, **kwargs):
        return super().forward(batch, **kwargs)


class LeavesAHook(dk.Distiller):
    def forward(self, *args, **kwargs):
        self.student.register_forward_hook(lambda *_: None)
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (LeavesAMode, "an_interrupt_is_unwound"),
        (RemembersTheFirst, "parts_add_up"),
        (NeverCloses, "closing_gives_the_models_back"),
        (KeepsItsTeacherFrozen, "closing_gives_the_models_back"),
        (IgnoresTheNormalizer, "parts_add_up"),
        (LeavesAHook, "nothing_stays_on_the_models"),
    ],
)
def test_a_fault_is_caught(fault, caught):
    def made():
        recipe = dk.Recipe(name="fault", terms=TERMS)
        return fault(tiny.Dual(), tiny.Fusion(), recipe, **files()), tiny.batch(4)

    failed = [result.name for result in testing.check_distiller(made) if not result.passed]
    while torch.overrides._get_current_function_mode_stack():
        torch.overrides._pop_mode()
    assert caught in failed


class TestRanks:
    """The factories are found by this module's name, so that another process imports them."""

    def results(self, factory):
        found = testing.check_distiller(factory, ranks=2)
        return {result.name: result for result in found}["two_ranks_agree"]

    def test_two_ranks_agree_with_one(self):
        result = self.results(by_files)
        assert result.passed, str(result)

    def test_a_normalizer_that_is_ignored_is_caught(self):
        result = self.results(ignores_the_normalizer)
        assert not result.passed
        assert "the gradient of two ranks is off by" in result.seen

    def test_what_no_process_can_import_is_named(self):
        result = self.results(lambda: by_files())
        assert not result.passed
        assert "make it a function of a module" in result.seen

    def test_other_numbers_of_ranks(self):
        with pytest.raises(dk.errors.OptionError, match="ranks is 1 or 2; got 3"):
            testing.check_distiller(by_files, ranks=3)


def ignores_the_normalizer():
    recipe = dk.Recipe(name="fault", terms=TERMS)
    return IgnoresTheNormalizer(tiny.Dual(), tiny.Fusion(), recipe, **files()), tiny.batch(4)
