"""A loss through the output projections, by a recipe alone: right, and no logits are made."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import distillkit as dk
from distillkit import errors

from . import families
from .by_hand.linear import answered, llava_of, narrow_and_wide

CLASSES = 100
ON = ["head.input.response", "head.weight"]
OPTIONS = {"temperature": 2.0}


def recipe(loss: str = "linear_kl_divergence", on: Any = None, *more: Any) -> dk.Objective:
    first = dk.Term(loss, on=on or ON, options=OPTIONS, name="first")
    return dk.Objective([first, *more])


def on_logits(*more: Any) -> dk.Objective:
    return recipe("kl_divergence", "logits.response", *more)


def gemma(*, softcap: float | None = None) -> nn.Module:
    """A decoder with tied embeddings whose logits may end in a soft cap."""
    torch.manual_seed(2)
    text = {**families.LLAMA, "model_type": "gemma3_text", "head_dim": 8}
    config = hf.Gemma3TextConfig(**{**text, "final_logit_softcapping": softcap})
    return hf.Gemma3ForCausalLM(config)


def words() -> dict[str, Tensor]:
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


WORDS = dk.DeclarativeAdapter(
    streams={"text": "model.layers.*.self_attn"},
    inputs={"input_ids": "input_ids", "attention_mask": "attention_mask"},
    logits="logits",
    tokens={"text": [{"modality": "text", "length": "input_ids", "mask": "attention_mask"}]},
)


def stepped(
    student: nn.Module, teacher: nn.Module, objective: dk.Objective, batch: Any, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    distiller = dk.Distiller(student, teacher, objective, **options)
    loss = distiller(batch).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    distiller.close()
    return loss.detach(), found


def check_equal(student: nn.Module, teacher: nn.Module, batch: Any, **options: Any) -> None:
    """Loss and gradients are those of the same divergence of logits, in float64."""
    student, teacher = student.double(), teacher.double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    torch.manual_seed(0)
    ours = stepped(student, teacher, recipe(), batch, **options)
    torch.manual_seed(0)
    theirs = stepped(student, teacher, on_logits(), batch, **options)
    assert theirs[0] > 1e-6
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-12)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-8, atol=1e-10)


class Watch(TorchDispatchMode):
    """Keeps the shape of every tensor with numbers whose last axis is the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(one, Tensor) or one.is_meta or one.shape[-1:] != (CLASSES,):
                continue
            self.rows.append(one.shape[:-1].numel())
        return result


def test_equal_to_the_divergence_of_logits():
    check_equal(*narrow_and_wide())


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_equal_for_tied_embeddings_and_soft_caps_that_only_the_configuration_names(softcap):
    torch.manual_seed(1)
    teacher = gemma(softcap=softcap)
    adapters = {"student_adapter": WORDS, "teacher_adapter": WORDS}
    student = gemma(softcap=softcap)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    check_equal(student, teacher, words(), **adapters)


def test_a_bias_of_a_head_takes_part():
    student, teacher, batch = narrow_and_wide()
    for model in (student, teacher):
        model.lm_head.bias = nn.Parameter(torch.randn(CLASSES))
    check_equal(student, teacher, batch)


@pytest.mark.parametrize("more", [(), (dk.Term("task", weight=0.0),)], ids=["alone", "no task"])
def test_no_logits_are_ever_made(more):
    student, teacher, batch = narrow_and_wide()
    with Watch() as watch:
        result = dk.Distiller(student, teacher, recipe("linear_kl_divergence", None, *more))(batch)
        result.loss.backward()
    positions = batch["input_ids"].numel()
    assert max(watch.rows, default=0) < positions
    assert "logits" not in result.student
    with pytest.raises(errors.SignalError, match="did not run"):
        result.student["logits"]
    with Watch() as watch:
        dk.Distiller(student, teacher, on_logits())(batch)
    assert max(watch.rows) >= positions  # the watch sees logits


def test_a_task_needs_the_logits_and_gets_them():
    student, teacher, batch = narrow_and_wide()
    result = dk.Distiller(student, teacher, recipe("linear_kl_divergence", None, dk.Term("task")))(
        batch
    )
    assert result.parts["task"].isfinite()
    assert "logits" in result.student
    assert "logits" not in result.teacher


def test_nothing_stays_on_the_head_and_copies_are_plain():
    student, teacher, batch = narrow_and_wide()
    distiller = dk.Distiller(student, teacher, recipe())
    distiller(batch)
    for model in (student, teacher):
        assert "forward" not in vars(model.lm_head)
        assert not model.lm_head._forward_pre_hooks
    twin = copy.deepcopy(distiller)
    torch.testing.assert_close(twin(batch).loss, distiller(batch).loss)


def test_a_model_that_reads_its_logits_runs_with_them_from_then_on():
    student, teacher, batch = narrow_and_wide()
    calls = []

    def read(_: Any, __: Any, output: Any) -> None:
        calls.append(output.is_meta)
        float(output.detach().sum())

    student.lm_head.register_forward_hook(read)
    plain = dk.Distiller(student, teacher, on_logits())(batch).loss
    calls.clear()
    distiller = dk.Distiller(student, teacher, recipe())
    torch.testing.assert_close(distiller(batch).loss, plain)
    assert calls == [True, False]
    distiller(batch)
    assert calls == [True, False, False]


def test_an_error_of_the_model_leaves_the_head_as_it_was():
    student, teacher, batch = narrow_and_wide()
    distiller = dk.Distiller(student, teacher, recipe())

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = student.lm_head.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        distiller(batch)
    handle.remove()
    assert "forward" not in vars(student.lm_head)
    assert distiller(batch).loss.isfinite()


def test_another_thread_that_runs_the_model_gets_its_logits():
    student, teacher, batch = narrow_and_wide()
    inputs = {name: one for name, one in batch.items() if name != "labels"}
    found: list[bool] = []

    def look(*_: Any) -> None:
        thread = threading.Thread(target=lambda: found.append(student(**inputs).logits.is_meta))
        thread.start()
        thread.join()

    layer = student.get_output_embeddings()
    distiller = dk.Distiller(student, teacher, recipe())

    def once(*_: Any) -> None:
        if not found and threading.current_thread() is threading.main_thread():
            look()

    handle = layer.register_forward_pre_hook(once)
    distiller(batch)
    handle.remove()
    assert found == [False]


def test_logits_that_are_scaled_after_the_projection_are_an_error_that_names_the_scale():
    class Scaled(hf.LlavaForConditionalGeneration):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * self.config.logit_scale
            return output

    student, teacher, batch = narrow_and_wide()
    student.__class__ = Scaled
    student.config.logit_scale = 0.25
    distiller = dk.Distiller(student, teacher, recipe(), student_adapter="llava")
    with pytest.raises(errors.SignalError, match="logit_scale = 0.25"):
        distiller(batch)


def test_a_head_with_adapters_of_peft_is_refused():
    class Lora(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    student, teacher, batch = narrow_and_wide()
    student.lm_head = Lora(32, CLASSES, bias=False)
    with pytest.raises(errors.SignalError, match="plain nn.Linear"):
        dk.Distiller(student, teacher, recipe())(batch)


def test_a_frozen_head_teaches_what_is_below_it():
    student, teacher, batch = narrow_and_wide()
    student.lm_head.requires_grad_(requires_grad=False)
    check_equal(student, teacher, batch)


def test_an_ensemble_or_a_cache_of_weights_is_refused():
    with pytest.raises(errors.RecipeError, match="model's own"):
        dk.Term("linear_kl_divergence", on=ON, teacher=["a", "b"])


def test_examples_are_taken_of_what_has_them():
    student, _, batch = narrow_and_wide()
    signals = dk.Backbone(student).signals(batch)
    some = signals.take(slice(0, 1))
    assert some["head.input"].shape[0] == 1
    assert some["head.weight"].shape == (CLASSES, 32)


def test_the_input_is_what_makes_the_logits():
    model, batch = llava_of(32), answered()
    signals = dk.Backbone(model).signals(batch)
    made = signals["head.input"] @ signals["head.weight"].mT
    torch.testing.assert_close(made, signals["logits"])
    made = signals["head.input.response"] @ signals["head.weight"].mT
    torch.testing.assert_close(made, signals["logits.response"])
