"""The life of a distiller around the step: closed, replaced, copied, moved, interrupted, shared."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import distillkit as dk
from distillkit import errors
from tests.support import tiny

ATTENTION = {"loss": "attention_kl", "on": "attention.text_to_image"}
SOFT = {"loss": "kl_divergence", "on": "logits"}
TASK = {"loss": "task"}


def task_loss(output, batch):
    return F.cross_entropy(output.logits, batch["labels"])


def distiller_of(*terms, student=None, teacher=None, **changes):
    torch.manual_seed(0)
    return dk.Distiller(
        student or tiny.Dual(),
        teacher or tiny.Fusion(),
        dk.Recipe(name="test", terms=list(terms or (ATTENTION, SOFT))),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        **{"ignore": ["labels"], **changes},
    )


def left_on(*models):
    return [
        m for model in models for m in model.modules() if m._forward_hooks or m._forward_pre_hooks
    ]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=tolerance, msg=name)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


class TestClose:
    def test_a_call_after_close_is_an_error(self):
        distiller = distiller_of()
        distiller(tiny.batch())
        distiller.close()
        distiller.close()
        for call in (
            distiller,
            distiller.check,
            distiller.run_teacher,
            lambda b: distiller.normalizer([b]),
        ):
            with pytest.raises(errors.CaptureError, match="this distiller is closed"):
                call(tiny.batch(seed=1))

    def test_the_teacher_is_given_back_as_it_was(self):
        teacher = tiny.Fusion().train()
        teacher.words.requires_grad_(False)
        teacher.encoder.eval()
        before = (
            [m.training for m in teacher.modules()],
            [p.requires_grad for p in teacher.parameters()],
        )
        distiller = distiller_of(teacher=teacher)
        assert not any(p.requires_grad for p in teacher.parameters())
        distiller.close()
        assert before == (
            [m.training for m in teacher.modules()], [p.requires_grad for p in teacher.parameters()]
        )  # fmt: skip

    def test_distillers_that_share_a_teacher_close_in_any_order(self):
        teacher = tiny.Fusion()
        one, other = distiller_of(teacher=teacher), distiller_of(teacher=teacher)
        loss = other(tiny.batch()).loss
        one.close()
        assert not any(p.requires_grad for p in teacher.parameters())
        assert torch.equal(other(tiny.batch()).loss, loss)
        other.close()
        assert all(p.requires_grad for p in teacher.parameters())

    def test_nothing_is_on_the_models_between_calls(self):
        distiller = distiller_of()
        distiller(tiny.batch())
        assert not left_on(distiller.student, distiller.teacher)


class TestStudent:
    def test_another_student_is_the_one_that_runs(self):
        distiller, batch = distiller_of(), tiny.batch()
        distiller(batch)
        other = tiny.Dual()
        distiller.student = other
        expected = distiller_of(student=other, teacher=distiller.teacher)(batch)
        result = distiller(batch)
        assert torch.equal(result.loss, expected.loss)
        result.loss.backward()
        assert gradients(other)
        assert {id(p) for p in distiller.parameters()} == {id(p) for p in other.parameters()}

    def test_a_wrapper_around_the_student_is_called(self):
        distiller, batch = distiller_of(), tiny.batch()
        loss = distiller(batch).loss
        distiller.student = Wrapper(distiller.student)
        assert torch.equal(distiller(batch).loss, loss)
        assert distiller.student.calls == 1

    def test_a_part_that_is_replaced_is_watched(self):
        distiller, batch = distiller_of(), tiny.batch()
        loss = distiller(batch).loss
        distiller.student.text = Wrapper(copy.deepcopy(distiller.student.text))
        with pytest.raises(errors.CaptureError, match=r"'text\.blocks\.\*' matches no module"):
            distiller(batch)  # the author of a part that passes everything on knows its name
        distiller.student.text = distiller.student.text.module
        assert torch.equal(distiller(batch).loss, loss)
        nn.init.zeros_(distiller.student.text.blocks[1].qkv.weight)
        assert not torch.equal(distiller(batch).loss, loss)

    def test_a_replica_runs_its_own_student(self):
        distiller = distiller_of()
        replica = distiller._replicate_for_data_parallel()
        replica.student = copy.deepcopy(distiller.student)
        nn.init.zeros_(replica.student.text.blocks[1].qkv.weight)
        assert not torch.equal(replica(tiny.batch()).loss, distiller(tiny.batch()).loss)

    def test_the_teacher_is_not_replaced_in_silence(self):
        distiller = distiller_of()
        with pytest.raises(errors.SignalError, match="keeps the teacher that it was made with"):
            distiller.teacher = tiny.Fusion()

    def test_a_student_that_shares_what_learns_with_the_teacher(self):
        distiller = distiller_of()
        other = tiny.Dual()
        other.words = distiller.teacher.words
        other.words.requires_grad_(True)
        distiller.student = other
        with pytest.raises(errors.SignalError, match="share the parameter"):
            distiller(tiny.batch())


class TestCopies:
    def test_a_copy_trains_its_own_student(self):
        distiller, batch = distiller_of(), tiny.batch()
        distiller(batch).loss.backward()
        for twin in (copy.deepcopy(distiller), pickle.loads(pickle.dumps(distiller))):
            twin.zero_grad()
            result = twin(batch)
            assert torch.equal(result.loss, distiller(batch).loss)
            result.loss.backward()
            assert_close(gradients(twin.student), gradients(distiller.student))
            assert twin.teacher is not distiller.teacher
            assert not any(p.requires_grad for p in twin.teacher.parameters())
            twin.close()
            assert all(p.requires_grad for p in twin.teacher.parameters())
        assert not any(p.requires_grad for p in distiller.teacher.parameters())

    def test_a_saved_one_is_loaded(self):
        distiller, batch, file = distiller_of(), tiny.batch(), io.BytesIO()
        loss = distiller(batch).loss
        torch.save(distiller, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(batch).loss, loss)

    def test_watched_models_pickle_as_if_nobody_looked(self):
        distiller = distiller_of()
        distiller(tiny.batch())
        for model in (distiller.student, distiller.teacher):
            twin = pickle.loads(pickle.dumps(model))
            assert not left_on(twin)
            assert twin.state_dict().keys() == model.state_dict().keys()

    def test_an_average_of_it_runs(self):
        distiller, batch = distiller_of(), tiny.batch()
        distiller(batch).loss.backward()
        average = AveragedModel(distiller)
        average.update_parameters(distiller)
        assert torch.equal(average.module(batch).loss, distiller(batch).loss)

    def test_tied_weights_are_saved_once_and_loaded(self):
        student = tiny.Dual()
        student.image.blocks[0].qkv.weight = student.text.blocks[0].qkv.weight
        distiller = distiller_of(student=student)
        state = distiller.state_dict()
        pointers = [value.data_ptr() for value in state.values()]
        assert len(set(pointers)) == len(pointers)
        other = distiller_of(student=copy.deepcopy(student))
        nn.init.zeros_(other.student.text.blocks[0].qkv.weight)
        other.load_state_dict(state)
        assert torch.equal(other(tiny.batch()).loss, distiller(tiny.batch()).loss)


class TestInferenceMode:
    def test_evaluation_then_training(self):
        distiller, batch = distiller_of(), tiny.batch()
        distiller.eval()
        with torch.inference_mode():
            seen = distiller(batch).loss
            assert distiller.check(batch).passed
        distiller.train()
        result = distiller(batch)
        torch.testing.assert_close(seen.clone(), result.loss.detach())
        result.loss.backward()
        assert gradients(distiller.student)

    def test_what_a_teacher_gave_is_a_target_later(self):
        distiller, batch = distiller_of(), tiny.batch()
        with torch.inference_mode():
            known = distiller.run_teacher(batch)
        result = distiller(batch, teacher_signals=known)
        assert torch.equal(result.loss, distiller(batch).loss)
        result.loss.backward()
        assert gradients(distiller.student)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_interrupt_leaves_no_mode_on(kind, side):
    distiller, batch = distiller_of(), tiny.batch()
    loss = distiller(batch).loss
    module = distiller.student.text if side == "student" else distiller.teacher.encoder

    def stop(*_):
        raise kind("stop")

    handle = module.blocks[1].out.register_forward_hook(stop)
    with pytest.raises(kind, match="stop"):
        distiller(batch)
    handle.remove()
    assert torch.overrides._get_current_function_mode_stack() == []
    assert not left_on(distiller.student, distiller.teacher)
    assert torch.equal(distiller(batch).loss, loss)


def test_threads_that_share_a_teacher_or_a_distiller():
    teacher = tiny.Fusion()
    own = [distiller_of(teacher=teacher, student=tiny.Dual()) for _ in range(2)]
    batches = [tiny.batch(seed=seed) for seed in range(2)]
    for pair in (own, [own[0], own[0]]):
        expected = [one(batch).loss.item() for one, batch in zip(pair, batches, strict=True)]
        found = [[], []]

        def repeat(i, pair=pair, found=found):
            for _ in range(20):
                found[i].append(pair[i](batches[i]).loss.item())

        threads = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[value] * 20 for value in expected]


class Placed(tiny.Fusion):
    """Says that somebody dispatched it."""

    hf_device_map = {"": "cpu"}  # noqa: RUF012


class TestDevices:
    def test_the_teacher_moves_only_when_the_device_does(self, monkeypatch):
        distiller = distiller_of()
        moved = []
        monkeypatch.setattr(distiller.teacher, "to", lambda *where: moved.append(where))
        distiller.float()
        distiller.to("cpu")
        distiller.bfloat16()
        assert moved == []
        distiller.to("meta")
        assert moved == []  # its weights would be lost
        there = torch.device("cuda", 1)
        distiller._teacher.move(lambda _: SimpleNamespace(device=there))
        assert moved == [(there,)]

    def test_a_dispatched_teacher_stays(self):
        distiller = distiller_of(teacher=Placed())
        distiller.to("meta")
        assert next(distiller.teacher.parameters()).device.type == "cpu"
        assert next(distiller.student.parameters()).device.type == "meta"

    def test_a_teacher_on_several_devices_stays(self):
        teacher = tiny.Fusion()
        teacher.head.to("meta")
        distiller = distiller_of(teacher=teacher)
        distiller.to("meta")
        assert next(teacher.words.parameters()).device.type == "cpu"


class Loud(tiny.Fusion):
    """A teacher that has a loss of its own."""

    def forward(self, ids, mask, pixels, labels=None):
        self.seen = labels
        return super().forward(ids, mask, pixels)


class TestBatch:
    def test_labels_are_the_students_own(self):
        teacher = Loud()
        tables = {k: v for k, v in tiny.FUSION_TABLES.items() if k != "inputs"}
        distiller = dk.Distiller(
            tiny.Dual(), teacher, dk.Recipe(name="test", terms=[SOFT]), ignore=["labels"],
            student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
            teacher_adapter=dk.DeclarativeAdapter(**tables),
        )  # fmt: skip
        batch = tiny.batch()
        distiller(batch)
        assert teacher.seen is None
        distiller({**batch, "teacher_labels": batch["labels"]})
        assert teacher.seen is batch["labels"]

    def test_by_keyword_it_is_the_same(self):
        distiller, batch = distiller_of(), tiny.batch()
        assert torch.equal(distiller(**batch).loss, distiller(batch).loss)
        with pytest.raises(errors.SignalError, match="not both.*'ids'"):
            distiller(batch, ids=batch["ids"])

    def test_an_unknown_entry_of_a_later_batch(self):
        distiller, batch = distiller_of(), tiny.batch()
        distiller(batch)
        with pytest.raises(errors.SignalError, match="nothing uses the batch entry 'extra'"):
            distiller({**batch, "extra": torch.zeros(3)})

    def test_an_entry_of_the_teachers_own_that_vanishes(self):
        distiller, batch = distiller_of(), tiny.batch()
        distiller({**batch, "teacher_ids": batch["ids"].clone()})
        with pytest.raises(errors.SignalError, match="no entry 'teacher_ids', which earlier ones"):
            distiller(batch)

    def test_another_look_at_a_later_batch(self):
        batch = tiny.batch()
        left = {**batch, "teacher_mask": batch["mask"].flip(1), "teacher_ids": batch["ids"].flip(1)}
        for every, refused in ((2, True), (0, False)):
            distiller = distiller_of(ATTENTION, look_every=every)
            same = {**batch, "teacher_mask": batch["mask"], "teacher_ids": batch["ids"]}
            distiller(same)
            distiller(same)
            if refused:
                with pytest.raises(errors.ShapeError, match="another padding side"):
                    distiller(left)
            else:
                distiller(left)
        with pytest.raises(errors.OptionError, match="look_every"):
            distiller_of(look_every=-1)

    def test_teacher_signals_of_another_batch(self):
        distiller = distiller_of()
        known = distiller.run_teacher(tiny.batch(2))
        with pytest.raises(errors.ShapeError, match="different numbers of examples|of 3 examples"):
            distiller(tiny.batch(3), teacher_signals=known)

    def test_the_first_batch_says_what_counts(self, caplog):
        batch = tiny.batch()
        with caplog.at_level(logging.INFO, logger="distillkit"):
            distiller = distiller_of(ATTENTION)
            distiller(batch)
            distiller(batch)
        rows = int(batch["mask"].sum())
        name = "attention_kl/attention.text_to_image"
        assert caplog.messages == [f"what counts of {name}: {rows} of 15 rows"]


class TestNormalizer:
    """Parts of unequal size add up to the whole."""

    def parts(self):
        whole = tiny.batch(5)
        return whole, [{n: x[i] for n, x in whole.items()} for i in (slice(0, 1), slice(1, 5))]

    @pytest.mark.parametrize("per", ["row", "example"])
    def test_of_a_batch(self, per):
        terms = [{**ATTENTION, "per": per}, {**SOFT, "per": per}, TASK]
        distiller = distiller_of(*terms, task_loss=task_loss)
        whole, parts = self.parts()
        expected = distiller(whole)
        expected.loss.backward()
        wanted = gradients(distiller.student)
        normalizer = distiller.normalizer(parts)
        distiller.zero_grad()
        total = 0.0
        for part in parts:
            loss = distiller(part, normalizer=normalizer).loss
            loss.backward()
            total += loss.item()
        assert total == pytest.approx(expected.loss.item(), rel=1e-6)
        assert_close(gradients(distiller.student), wanted)
        assert {k: v.item() for k, v in normalizer.items()} == {
            k: v.item() for k, v in expected.counts.items() if k in expected.parts
        } | {"task": 5.0}

    def test_one_number_of_examples_costs_nothing(self):
        distiller = distiller_of(ATTENTION, TASK, task_loss=task_loss)
        whole, parts = self.parts()
        total = sum(distiller(part, normalizer=5).loss.item() for part in parts)
        assert total == pytest.approx(distiller(whole).loss.item(), rel=1e-6)

    def test_counting_changes_nothing(self):
        distiller = distiller_of()
        distiller.student.head = nn.Sequential(nn.Dropout(0.5), distiller.student.head)
        torch.manual_seed(1)
        before = torch.rand(3)
        torch.manual_seed(1)
        distiller.normalizer([tiny.batch()])
        assert torch.equal(torch.rand(3), before)
        assert distiller.student.training
        with pytest.raises(errors.SignalError, match="no batch to count in"):
            distiller.normalizer([])


class TestAlignersLearn:
    def test_a_projector_in_no_optimizer_is_an_error(self):
        hidden = {**tiny.DUAL_TABLES, "hidden": {"text": "text.blocks.*"}}
        projector = {"name": "projector", "student_width": 16, "teacher_width": 16}
        term = {"loss": "mse", "on": "hidden.text", "align": [projector]}

        def train(parameters_of):
            distiller = dk.Distiller(
                tiny.Dual(), tiny.Dual(), dk.Recipe(name="test", terms=[term]), ignore=["labels"],
                student_adapter=dk.DeclarativeAdapter(**hidden),
                teacher_adapter=dk.DeclarativeAdapter(**hidden),
            )  # fmt: skip
            optimizer = torch.optim.SGD(parameters_of(distiller), lr=0.1)
            for step in range(4):
                optimizer.zero_grad()
                distiller(tiny.batch(seed=step)).loss.backward()
                optimizer.step()

        train(lambda distiller: distiller.parameters())
        with pytest.raises(errors.RecipeError, match="no optimizer steps its parameters"):
            train(lambda distiller: distiller.student.parameters())


class TestTrainersView:
    def test_the_student_is_not_what_divides_by_items(self):
        class Open(tiny.Dual):
            def forward(self, ids, mask, pixels, **rest):
                return super().forward(ids, mask, pixels)

        student = Open()
        distiller = distiller_of(student=student)
        assert not student.accepts_loss_kwargs
        assert copy.deepcopy(student).accepts_loss_kwargs is True
        distiller.close()
        assert "accepts_loss_kwargs" not in vars(student)

    def test_checkpointing_is_the_students(self):
        distiller = distiller_of()
        with pytest.raises(errors.SignalError, match="Dual, has no gradient_checkpointing_enable"):
            distiller.gradient_checkpointing_enable()
        calls = []
        distiller.student.gradient_checkpointing_enable = lambda **options: calls.append(options)
        distiller.gradient_checkpointing_enable(use_reentrant=False)
        assert calls == [{"use_reentrant": False}]
