"""Aligners: projectors whose parameters reach the optimiser, vocabularies, and their errors."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors, losses
from tests.support import tiny


def distiller_of(term, *, example=None, classes=(3, 5)):
    torch.manual_seed(0)
    return dk.Distiller(
        tiny.Dual(classes=classes[0]),
        tiny.Fusion(classes=classes[1]),
        dk.Recipe(name="test", terms=[term]),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        example=example,
        ignore=["labels"],
    )


DIVERGENCES = (
    "kl_divergence", "reverse_kl_divergence", "jensen_shannon_divergence", "total_variation",
    "soft_cross_entropy", "universal_logit_distance",
)  # fmt: skip
PROJECTED = {"loss": "mse", "on": "logits", "align": ["projector"]}


class TestProjector:
    def test_an_example_gives_the_widths_and_the_optimiser_knows_its_parameters(self):
        distiller = distiller_of(PROJECTED, example=tiny.batch())
        (projector,) = distiller.objective.terms[0].aligners
        assert projector.linear.weight.shape == (5, 3)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.5)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in projector.parameters()} <= known
        before = copy.deepcopy(projector.state_dict())
        distiller(tiny.batch(seed=1)).loss.backward()
        optimizer.step()
        for name, value in projector.state_dict().items():
            assert not torch.equal(value, before[name]), name

    def test_building_from_an_example_changes_nothing_else(self):
        distiller = distiller_of(PROJECTED, example=tiny.batch())
        plain = distiller_of({**PROJECTED, "align": [
            {"name": "projector", "student_width": 3, "teacher_width": 5}
        ]})  # fmt: skip
        for name, value in plain.student.state_dict().items():
            assert torch.equal(value, distiller.student.state_dict()[name])
        assert all(module.training for module in distiller.student.modules())
        assert all(parameter.grad is None for parameter in distiller.parameters())

    def test_without_sizes_or_an_example(self):
        with pytest.raises(errors.RecipeError, match=r"term 'mse/logits'.*example=batch"):
            distiller_of(PROJECTED)
        term = dk.Term("mse", on="logits", align=["projector"])
        assert not term.aligners.are_built
        signals = dk.Signals({"logits": torch.randn(2, 3, requires_grad=True)})
        with pytest.raises(errors.ShapeError, match="no widths yet"):
            term(signals, signals)

    def test_equal_widths_may_be_left_alone_and_then_need_no_example(self):
        term = dk.Term("mse", on="logits", align=[{"name": "projector", "keep_equal": True}])
        assert not term.aligners.need_example
        signals = dk.Signals({"logits": torch.randn(2, 3, requires_grad=True)})
        assert term(signals, signals).item() == 0.0
        term.build_aligners(signals, signals)
        assert term.aligners.are_built
        assert not list(term.parameters())

    def test_unequal_widths_are_not_left_alone(self):
        keep = {**PROJECTED, "align": [{"name": "projector", "keep_equal": True}]}
        distiller = distiller_of(keep, example=tiny.batch())
        assert distiller.objective.terms[0].aligners[0].linear.weight.shape == (5, 3)
        with pytest.raises(errors.ShapeError, match="no widths yet.*example=batch"):
            distiller_of(keep)(tiny.batch())

    def test_sizes_of_the_recipe_stay(self):
        align = [{"name": "projector", "student_width": 3, "teacher_width": 5}]
        distiller = distiller_of({**PROJECTED, "align": align}, example=tiny.batch())
        weight = distiller.objective.terms[0].aligners[0].linear.weight
        assert weight.shape == (5, 3)

    def test_weights_of_half_precision_meet_signals_of_float32(self):
        """As in ``distiller.bfloat16()``, and under a policy of FSDP2."""
        torch.manual_seed(0)
        projector = dk.Projector(student_width=3, teacher_width=5)
        student, teacher = torch.randn(2, 3), torch.randn(2, 5)
        whole, _ = projector(student, teacher)
        half, _ = projector.bfloat16()(student, teacher)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, whole, rtol=2e-2, atol=2e-2)
        half.sum().backward()
        assert projector.linear.weight.grad.any()

    @pytest.mark.parametrize(("student", "teacher"), [(3, 5), (5, 3), (4, 4)])
    def test_an_orthogonal_one_stays_so_while_it_learns(self, student, teacher):
        torch.manual_seed(0)
        projector = dk.Projector(student_width=student, teacher_width=teacher, kind="orthogonal")
        assert [name for name, _ in projector.named_parameters()] == ["linear.original"]
        optimizer = torch.optim.SGD(projector.parameters(), lr=0.5)
        before = projector.linear.weight.detach().clone()
        for _ in range(5):
            optimizer.zero_grad()
            one, other = projector(torch.randn(8, student), torch.randn(8, teacher))
            losses.mse(one, other).mean().backward()
            optimizer.step()
        weight = projector.linear.weight.detach()
        assert not torch.allclose(weight, before)
        square = weight @ weight.mT if teacher <= student else weight.mT @ weight
        torch.testing.assert_close(square, torch.eye(min(student, teacher)), atol=1e-5, rtol=0)

    def test_an_orthogonal_map_to_a_larger_width_keeps_lengths(self):
        projector = dk.Projector(student_width=3, teacher_width=7, kind="orthogonal")
        x = torch.randn(4, 3)
        projected, _ = projector(x, torch.zeros(4, 7))
        torch.testing.assert_close(projected.norm(dim=-1), x.norm(dim=-1))

    def test_bias_by_kind(self):
        widths = {"student_width": 2, "teacher_width": 2}
        assert dk.Projector(**widths).linear.bias is not None
        assert dk.Projector(**widths, kind="orthogonal").linear.bias is None
        assert dk.Projector(**widths, kind="orthogonal", bias=True).linear.bias is not None

    def test_bad_options_and_signals(self):
        with pytest.raises(errors.OptionError, match='"linear" or "orthogonal"; got \'mlp\''):
            dk.Projector(student_width=2, teacher_width=2, kind="mlp")
        with pytest.raises(errors.OptionError, match="both student_width and teacher_width"):
            dk.Projector(student_width=2)
        attention = dk.Attention(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        with pytest.raises(errors.ShapeError, match="last axis of tensors.*Attention"):
            dk.Projector().build(attention, attention)


class TestVocabularies:
    @pytest.mark.parametrize("classes", [(3, 5), (5, 3), (4, 4)])
    @pytest.mark.parametrize("name", ["truncate", "mask"])
    def test_train_end_to_end(self, classes, name):
        term = {"loss": "kl_divergence", "on": "logits", "align": [name]}
        distiller = distiller_of(term, classes=classes)
        result = distiller(tiny.batch())
        result.loss.backward()
        common = min(classes)
        expected = losses.kl_divergence(
            result.student["logits"][:, :common], result.teacher["logits"][:, :common]
        )
        torch.testing.assert_close(result.loss, expected.mean())
        gradient = distiller.student.head.weight.grad
        assert gradient.isfinite().all()
        assert not gradient[common:].any()

    def test_without_an_aligner_the_error_names_sizes_and_aligners(self):
        with pytest.raises(errors.ShapeError, match=r'3 and the other 5.*"truncate".*"mask"'):
            distiller_of({"loss": "kl_divergence", "on": "logits"})(tiny.batch())

    @given(st.integers(2, 4), st.integers(2, 4), st.sampled_from(DIVERGENCES))
    def test_mask_is_truncate_for_every_divergence(self, v, w, name):
        student, teacher = torch.randn(2, v).double(), torch.randn(2, w).double()
        align = {n: dk.Term(name, on="logits", align=[n]).aligners[0] for n in ("mask", "truncate")}
        masked, cut = (align[n](student, teacher) for n in ("mask", "truncate"))
        assert masked[0].shape == masked[1].shape == (2, max(v, w))
        loss = getattr(losses, name)
        torch.testing.assert_close(loss(*masked), loss(*cut))
