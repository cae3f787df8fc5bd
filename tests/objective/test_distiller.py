"""The distiller: both models, adapters, capture and objective in one call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillkit as dk
from distillkit import errors, losses
from tests.support import tiny


def distiller_of(recipe="dide", student=None, teacher=None, **changes):
    torch.manual_seed(0)
    return dk.Distiller(
        student or tiny.Dual(),
        teacher or tiny.Fusion(),
        recipe,
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        **{"ignore": ["labels"], **changes},
    )


def recipe_of(*terms):
    return dk.Recipe(name="test", terms=list(terms))


ATTENTION = {"loss": "attention_kl", "on": "attention.text_to_image"}


def test_dide_equals_the_arithmetic_of_the_paper_by_hand():
    distiller = distiller_of()
    batch = tiny.batch()
    result = distiller(batch)

    student, teacher = distiller.student, distiller._teacher.model
    with torch.no_grad():
        x = torch.cat([teacher.words(batch["ids"]), teacher.patches(batch["pixels"])], 1)
        seen = torch.cat([batch["mask"], torch.ones(3, 4).bool()], 1)
        x = x + teacher.encoder.blocks[0](x, seen)
        q, k, _ = teacher.encoder.blocks[1].heads(x)
    text = student.words(batch["ids"])
    text = text + student.text.blocks[0](text, batch["mask"])
    image = student.patches(batch["pixels"])
    image = image + student.image.blocks[0](image, torch.ones(3, 4).bool())
    text_q, text_k, _ = student.text.blocks[1].heads(text)
    image_q, image_k, _ = student.image.blocks[1].heads(image)

    def kl(student_scores, teacher_scores):
        log_p, log_q = (s.log_softmax(-1) for s in (teacher_scores, student_scores))
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    text_to_image, image_to_text = [], []
    for i, n in enumerate(batch["mask"].sum(1).tolist()):
        text_to_image.append(
            kl(text_q[i, :, :n] @ image_k[i].mT / 2, q[i, :, :n] @ k[i, :, 5:].mT / 2).mean()
        )
        image_to_text.append(
            kl(image_q[i] @ text_k[i, :, :n].mT / 2, q[i, :, 5:] @ k[i, :, :n].mT / 2).mean()
        )
    parts = list(result.parts.values())
    torch.testing.assert_close(parts[1], torch.stack(text_to_image).mean().detach())
    torch.testing.assert_close(parts[2], torch.stack(image_to_text).mean().detach())
    soft = kl(
        student(**{k: batch[k] for k in tiny.INPUTS}).logits,
        teacher(**{k: batch[k] for k in tiny.INPUTS}).logits,
    ).mean()
    torch.testing.assert_close(parts[0], soft.detach())
    torch.testing.assert_close(result.loss.detach(), sum(parts))


def test_the_paper_averages_over_padded_rows():
    """rows = "all": padded text queries count too (each over the same image keys)."""
    batch = tiny.batch()
    valid = distiller_of(recipe_of(ATTENTION))(batch)
    paper = distiller_of(recipe_of({**ATTENTION, "rows": "all"}))(batch)
    student = paper.student["attention.text_to_image"][-1].with_rows(None)
    teacher = paper.teacher["attention.text_to_image"][-1].with_rows(None)
    every_row = losses.attention_kl(student, teacher)
    assert every_row.shape == (3, 4, 5)
    assert (every_row > 0).all()
    torch.testing.assert_close(paper.loss, every_row.mean())
    kept = batch["mask"][:, None].expand(every_row.shape)
    by_example = [row[keep].mean() for row, keep in zip(every_row, kept, strict=True)]
    torch.testing.assert_close(valid.loss, torch.stack(by_example).mean())
    assert not torch.isclose(paper.loss, valid.loss)


def test_every_student_parameter_before_the_last_attention_gets_a_gradient():
    distiller = distiller_of(recipe_of(ATTENTION))
    distiller(tiny.batch()).loss.backward()
    got = {
        n for n, p in distiller.student.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"words.weight", "patches.weight", "text.blocks.1.qkv.weight"} <= got
    assert {"image.blocks.0.out.weight", "image.blocks.1.qkv.weight"} <= got
    assert all(p.grad is None for p in distiller._teacher.model.parameters())


def test_the_teacher_is_frozen_and_no_part_of_the_module():
    teacher = tiny.Fusion().train()
    distiller = distiller_of(teacher=teacher)
    distiller.train()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    inside = {id(p) for p in distiller.parameters()}
    assert inside == {id(p) for p in distiller.student.parameters()}
    assert all(name.startswith("student.") for name in distiller.state_dict())


def test_the_teacher_keeps_its_dtype_and_never_loses_its_weights():
    teacher = tiny.Fusion()
    distiller = distiller_of(teacher=teacher)
    distiller.to("meta", torch.float64)
    assert next(teacher.parameters()).device.type == "cpu"
    assert next(teacher.parameters()).dtype == torch.float32
    assert next(distiller.student.parameters()).dtype == torch.float64


def test_teacher_signals_computed_before_give_the_same_loss_without_running_the_teacher():
    distiller = distiller_of()
    batch = tiny.batch(4)
    parts = [
        distiller.run_teacher({k: v[i : i + 2] for k, v in batch.items()}).only(
            "logits", "attention.text_to_image", "attention.image_to_text"
        )
        for i in (0, 2)
    ]
    known = dk.Signals.concatenate(parts)
    order = torch.tensor([2, 0, 3])
    some = {name: value[order] for name, value in batch.items()}
    direct = distiller(some)
    distiller._teacher.model.forward = None  # running it would raise
    cached = distiller(some, teacher_signals=known.take(order))
    torch.testing.assert_close(cached.loss, direct.loss, rtol=1e-6, atol=1e-7)


def test_a_distiller_without_teacher_takes_teacher_signals_only():
    teacher = distiller_of()
    batch = tiny.batch()
    signals = teacher.run_teacher(batch)
    alone = dk.Distiller(
        copy.deepcopy(teacher.student), None, "dide",
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
    )  # fmt: skip
    assert alone(batch, teacher_signals=signals).loss == teacher(batch).loss
    with pytest.raises(errors.SignalError, match="no teacher"):
        alone(batch)


def test_the_students_own_loss_is_a_term():
    labels = {"loss": "task", "weight": 0.5}
    distiller = distiller_of(
        recipe_of(labels, ATTENTION),
        task_loss=lambda output, batch: F.cross_entropy(output.logits, batch["labels"]),
    )
    result = distiller(tiny.batch())
    assert list(result.parts) == ["task", "attention_kl/attention.text_to_image"]
    expected = 0.5 * result.parts["task"] + result.parts["attention_kl/attention.text_to_image"]
    torch.testing.assert_close(result.loss.detach(), expected)


def test_a_recipe_of_the_task_alone_does_not_run_the_teacher():
    distiller = distiller_of(
        recipe_of({"loss": "task"}), task_loss=lambda output, _: output.logits.square().mean()
    )
    distiller._teacher.model.forward = None
    assert len(distiller(tiny.batch()).teacher) == 0


def test_a_task_term_without_a_task_loss_says_where_it_would_come_from():
    with pytest.raises(errors.SignalError, match="task_loss=lambda output, batch"):
        distiller_of(recipe_of({"loss": "task"}))(tiny.batch())


def test_losses_run_in_float32_under_autocast():
    distiller = distiller_of()
    with torch.autocast("cpu", torch.bfloat16):
        result = distiller(tiny.batch())
    assert result.loss.dtype == torch.float32
    result.loss.backward()


def test_a_term_of_ones_own_runs_without_autocast_too():
    def product(student, teacher):
        made = student @ teacher.mT
        assert made.dtype == torch.float32
        return made.square().mean(-1)

    terms = dk.Objective([dk.Term(product, on="logits")])
    with torch.autocast("cpu", torch.bfloat16):
        distiller_of(terms)(
            {**tiny.batch()}, teacher_signals=dk.Signals({"logits": torch.randn(3, 3)})
        )


def test_the_teacher_runs_in_eval_mode_whatever_was_done_to_it():
    teacher = tiny.Fusion()
    distiller = distiller_of(teacher=teacher)
    teacher.train()
    distiller.run_teacher(tiny.batch())
    assert not teacher.training


def test_splitting_a_batch_changes_nothing():
    distiller = distiller_of()
    batch = tiny.batch(4)
    whole = distiller(batch).loss
    halves = [distiller({k: v[i : i + 2] for k, v in batch.items()}).loss for i in (0, 2)]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


class TestBadInput:
    def test_a_student_without_gradient_in_training(self):
        student = tiny.Dual().requires_grad_(False)
        with pytest.raises(errors.SignalError, match="'logits' carries no gradient"):
            distiller_of(student=student)(tiny.batch())

    def test_it_is_no_error_in_evaluation(self):
        distiller = distiller_of().eval()
        with torch.no_grad():
            assert distiller(tiny.batch()).loss > 0

    def test_a_scheduled_recipe_without_progress(self):
        weight = {"start": 8.0, "stop": 0.0, "until": 0.5, "shape": "step"}
        distiller = distiller_of(
            recipe_of({**ATTENTION, "weight": weight}, {"loss": "kl_divergence", "on": "logits"})
        )
        with pytest.raises(errors.RecipeError, match="progress=step / steps"):
            distiller(tiny.batch())
        early, late = (distiller(tiny.batch(), progress=p) for p in (0.4, 0.5))
        assert early.weights["attention_kl/attention.text_to_image"] == 8.0
        assert late.weights["attention_kl/attention.text_to_image"] == 0.0
        assert "attention_kl/attention.text_to_image" not in late.parts

    def test_a_pattern_that_matches_no_module(self):
        with pytest.raises(
            errors.CaptureError,
            match=r"'encoder\.layers\.\*' matches no module of Fusion; did you mean",
        ):
            dk.Distiller(
                tiny.Dual(), tiny.Fusion(), "dide",
                student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
                teacher_adapter=dk.DeclarativeAdapter(
                    **{**tiny.FUSION_TABLES, "streams": {"joint": "encoder.layers.*"}}
                ),
            )  # fmt: skip

    def test_an_attention_signal_without_layout_prints_the_lines_to_write(self):
        tables = {k: v for k, v in tiny.FUSION_TABLES.items() if k != "tokens"}
        distiller = dk.Distiller(
            tiny.Dual(), tiny.Fusion(), "dide",
            student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
            teacher_adapter=dk.DeclarativeAdapter(**tables),
        )  # fmt: skip
        with pytest.raises(errors.SignalError, match=r"\[\[tokens\.joint\]\]\nmodality = \"text\""):
            distiller(tiny.batch())

    def test_a_layout_of_another_length(self):
        tables = {
            **tiny.FUSION_TABLES,
            "tokens": {"joint": [tiny.TEXT, {"modality": "image", "grid": [3, 2]}]},
        }
        distiller = dk.Distiller(
            tiny.Dual(), tiny.Fusion(), "dide",
            student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
            teacher_adapter=dk.DeclarativeAdapter(**tables),
        )  # fmt: skip
        with pytest.raises(
            errors.SignalError, match="describes 11 tokens, but its attention has 9"
        ):
            distiller(tiny.batch())

    def test_different_numbers_of_tokens(self):
        student = tiny.Dual()
        adapter = dk.DeclarativeAdapter(**tiny.DUAL_TABLES)
        distiller = distiller_of(recipe_of(ATTENTION), student=student)
        batch = tiny.batch()
        signals = distiller.run_teacher(batch)
        fewer = {**batch, "pixels": batch["pixels"][:, :3]}
        tables = {
            **tiny.DUAL_TABLES,
            "tokens": {"text": [tiny.TEXT], "image": [{"modality": "image", "length": "pixels"}]},
        }
        other = dk.Distiller(
            student, None, recipe_of(ATTENTION), student_adapter=dk.DeclarativeAdapter(**tables)
        )
        assert adapter.streams == other._student.adapter.streams
        with pytest.raises(
            errors.ShapeError,
            match=r"term 'attention_kl/attention.text_to_image'.*\(3, 4, 5, 3\).*\(3, 4, 5, 4\)",
        ):
            other(fewer, teacher_signals=signals)

    def test_different_numbers_of_heads(self):
        distiller = distiller_of(recipe_of(ATTENTION))
        batch = tiny.batch()
        signals = distiller.run_teacher(batch)
        many = signals["attention.text_to_image"][-1]
        two = dk.Attention(many.query[:, :2], many.key[:, :2], rows=many.rows)
        with pytest.raises(errors.ShapeError, match='heads="mean"'):
            distiller(batch, teacher_signals=dk.Signals({"attention.text_to_image": [two]}))

    def test_a_signal_that_nobody_exposes(self):
        distiller = distiller_of(recipe_of({"loss": "mse", "on": "hidden.text"}))
        with pytest.raises(
            errors.SignalError, match="no signal of the student is called 'hidden.text'"
        ):
            distiller(tiny.batch())

    def test_no_adapter_fits(self):
        with pytest.raises(
            errors.UnknownNameError,
            match="no adapter fits torch.nn.modules.linear.Linear.*TOML|adapter file",
        ):
            dk.Distiller(nn.Linear(2, 2), None, "dide")
        with pytest.raises(errors.UnknownNameError, match="no adapter is called 'acme'"):
            dk.Distiller(nn.Linear(2, 2), None, "dide", student_adapter="acme")
