"""Options that are trained: their values, gradients, ranges, state, and who must step them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors, losses
from distillkit._objective.learned import Learn, LearnedOption
from tests.support import tiny


def sides(seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 5, generator=generator)
    return (
        dk.Signals({"logits": student.clone().requires_grad_()}), dk.Signals({"logits": teacher})
    )  # fmt: skip


def term(**learn):
    return dk.Term("kl_divergence", on="logits", learn=learn)


class TestValue:
    @given(st.floats(0.02, 50.0), st.booleans())
    def test_it_starts_where_it_is_told(self, start, reverse):
        for low, high in ((None, None), (0.01, 100.0)):
            one = LearnedOption(Learn(start=start, low=low, high=high, reverse=reverse))
            assert one().item() == pytest.approx(start, rel=1e-5)

    @given(st.floats(-1e3, 1e3))
    def test_it_stays_in_its_range(self, raw):
        one = LearnedOption(Learn(start=1.0, low=0.5, high=4.0))
        with torch.no_grad():
            one.raw.fill_(raw)
        assert 0.5 * (1 - 1e-6) <= one().item() <= 4.0 * (1 + 1e-6)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_value_and_gradient_are_those_of_the_option(self, reverse):
        made, (student, teacher) = term(temperature={"start": 2.0, "reverse": reverse}), sides()
        value = made(student, teacher)
        logits = student["logits"], teacher["logits"]
        torch.testing.assert_close(value, losses.kl_divergence(*logits, temperature=2.0).mean())
        value.backward()
        number = torch.tensor(2.0, requires_grad=True)
        expected = losses.kl_divergence(logits[0].detach(), logits[1], temperature=number).mean()
        (slope,) = torch.autograd.grad(expected, number)
        found = made.learned["temperature"].raw.grad
        torch.testing.assert_close(found[0], slope * 2.0 * (-1 if reverse else 1))

    def test_half_precision_of_the_distiller(self):
        made = term(temperature=2.0).bfloat16()
        assert made.learned["temperature"]().dtype == torch.float32

    def test_a_contrastive_temperature(self):
        table = {"start": 0.07, "low": 0.01, "high": 1.0}
        made = dk.Term("info_nce", on="logits", learn={"temperature": table})
        value = made(*sides())
        value.backward()
        assert made.learned["temperature"].raw.grad.any()


class TestLife:
    def test_its_state_has_a_clear_name_and_comes_back(self):
        made = term(temperature=3.0)
        assert list(made.state_dict()) == ["learned.temperature.raw"]
        other = term(temperature=1.0)
        other.load_state_dict(made.state_dict())
        for twin in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            torch.testing.assert_close(twin(*sides()), made(*sides()))

    def test_an_optimizer_that_has_it_steps_it(self):
        made = term(temperature=2.0)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        made(*sides()).backward()
        optimizer.step()
        assert made.learned["temperature"]().item() != pytest.approx(2.0, abs=1e-4)

    def test_in_a_recipe(self):
        recipe = dk.Recipe(
            name="t", terms=[{"loss": "kl_divergence", "on": "logits", "learn": {
                "temperature": {"start": 2.0, "low": 1.0, "high": 8.0}}}],
        )  # fmt: skip
        changed = recipe.override({"kl_divergence/logits.learn.temperature.start": 4.0})
        (made,) = changed.build().each()
        assert made.learned["temperature"]().item() == pytest.approx(4.0)

    @pytest.mark.parametrize("whole", [False, True])
    def test_an_optimizer_without_it_is_an_error(self, whole):
        torch.manual_seed(0)
        distiller = dk.Distiller(
            tiny.Dual(classes=3), tiny.Fusion(classes=3),
            dk.Recipe(name="t", terms=[
                {"loss": "kl_divergence", "on": "logits", "learn": {"temperature": 2.0}}
            ]),
            student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
            teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
            ignore=["labels"],
        )  # fmt: skip
        trained = distiller if whole else distiller.student
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)

        def steps():
            for seed in range(5):
                optimizer.zero_grad()
                distiller(tiny.batch(seed=seed)).loss.backward()
                optimizer.step()

        if whole:
            steps()
            return
        with pytest.raises(errors.RecipeError, match="learns an option.*distiller.parameters"):
            steps()


class TestErrors:
    @pytest.mark.parametrize(
        ("learn", "says"),
        [
            ({"temperatur": 2.0}, "did you mean 'temperature'"),
            ({"temperature": -1.0}, "starts above 0|greater than 0"),
            ({"temperature": {"start": 1.0, "low": 2.0, "high": 4.0}}, "inside its range"),
            ({"temperature": {"start": 1.0, "low": 0.5}}, "both low and high"),
            ({"temperature": {"start": 1.0, "low": 0.0, "high": 2.0}}, "0 < low < high"),
            ({"temperature": {"start": 1.0, "revers": True}}, "did you mean 'reverse'"),
        ],
    )
    def test_tables(self, learn, says):
        with pytest.raises(errors.DistillKitError, match=says):
            term(**learn)

    def test_an_option_that_is_given_too(self):
        with pytest.raises(errors.RecipeError, match="leave it out of `options`"):
            dk.Term(
                "kl_divergence", on="logits", options={"temperature": 2.0},
                learn={"temperature": 2.0},
            )  # fmt: skip

    def test_an_option_that_needs_a_range(self):
        with pytest.raises(errors.OptionError, match="give it a range"):
            dk.Term("jensen_shannon_divergence", on="logits", learn={"beta": 0.5})
        table = {"start": 0.5, "low": 0.1, "high": 0.9}
        made = dk.Term("jensen_shannon_divergence", on="logits", learn={"beta": table})
        made(*sides()).backward()
        assert made.learned["beta"].raw.grad.any()

    def test_an_option_that_is_no_number(self):
        with pytest.raises(errors.OptionError, match="number"):
            dk.Term("cka_distance", on="logits", learn={"unbiased": 1.0})

    def test_a_loss_of_ones_own_that_takes_a_plain_number(self):
        def mine(student, teacher, *, temperature: float = 1.0):
            return losses.kl_divergence(student, teacher, temperature=temperature.item())

        made = dk.Term(mine, on="logits", learn={"temperature": 2.0})
        with pytest.raises(
            errors.OptionError, match="no gradient reaches the option 'temperature'"
        ):
            made(*sides())

    def test_a_task_learns_nothing(self):
        with pytest.raises(errors.RecipeError, match="task"):
            dk.Term("task", learn={"temperature": 2.0})
