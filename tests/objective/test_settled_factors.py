"""What the factors of a step are, whatever it showed: properties over random steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillkit import StepStatistics
from distillkit._objective.weighting.dynamic_average import DynamicAverage
from distillkit._objective.weighting.gradient_ratio import GradientRatio
from distillkit._objective.weighting.gradnorm import GradNorm
from distillkit._objective.weighting.sums import CallOfTerms, StepSums
from distillkit._objective.weighting.uncertainty import Uncertainty

TERMS = ("task", "one", "two")
SIZES = st.floats(1e-6, 1e6)


@st.composite
def trainings(draw):
    """The losses and gradients of several steps, in which terms come and go."""
    steps, factors = [], torch.ones(3).double()
    for _ in range(draw(st.integers(1, 6))):
        terms = torch.tensor(sorted(draw(st.sets(st.integers(0, 2), min_size=1))))
        losses = torch.tensor([draw(st.just(0.0) | SIZES) for _ in terms]).double()
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        sizes = torch.tensor([draw(st.just(0.0) | SIZES) for _ in terms]).double()
        rows = torch.randn(len(terms), 4, generator=generator).double() * sizes[:, None]
        priors = torch.tensor([draw(SIZES) for _ in terms]).double()
        steps.append((terms, losses, priors, rows @ rows.T))
    return steps, factors


def run(weighting, training):
    """Each step with the factors that it leads to."""
    steps, factors = training
    state = weighting.start()
    for terms, losses, priors, gramian in steps:
        step = StepStatistics(terms, losses, priors, factors[terms], gramian)
        found, state = weighting.settle(step, state)
        factors = factors.index_put((terms,), found)
        yield step, found


@given(trainings())
def test_factors_of_a_dynamic_average_are_positive_and_their_mean_is_1(training):
    for _, found in run(DynamicAverage(TERMS, steps=1), training):
        assert (found > 0).all()
        assert found.mean().item() == pytest.approx(1)


@given(trainings(), st.floats(0, 3), st.floats(1e-3, 1))
def test_factors_of_gradnorm_are_positive_and_their_mean_is_1(training, alpha, lr):
    for step, found in run(GradNorm(TERMS, alpha=alpha, lr=lr), training):
        assert (found > 0).all()
        if step.norms.any():
            assert found.mean().item() == pytest.approx(1)


@given(trainings(), st.floats(1e-3, 1e3))
def test_a_gradient_ratio_is_what_was_asked_for_or_at_its_limit(training, ratio):
    weighting = GradientRatio(TERMS, ratios={"one": ratio}, smoothing=0.0, limit=1e5)
    for step, found in run(weighting, training):
        assert found.isfinite().all()
        assert (found > 0).all()
        places = {TERMS[i]: place for place, i in enumerate(step.terms.tolist())}
        for name in places.keys() - {"one"}:
            assert found[places[name]] == step.factors[places[name]]
        if not {"task", "one"} <= places.keys():
            continue
        factor, norm = found[places["one"]].item(), step.norms[places["one"]].item()
        wanted = ratio * step.norms[places["task"]].item()
        if norm and 1e-5 < wanted / norm < 1e5:
            assert factor * norm == pytest.approx(wanted)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_an_uncertainty_is_least_where_factor_and_value_are_reciprocal(variances):
    """There the gradient of exp(-s) v + s is 0, and it is convex."""
    made = Uncertainty(TERMS)
    with torch.no_grad():
        made.log_variances.copy_(torch.tensor(variances))
    factors, additions = made.double()(torch.arange(3))
    (factors * (1 / factors).detach() + additions).sum().backward()
    torch.testing.assert_close(made.log_variances.grad, torch.zeros(3).double())


@given(st.data())
def test_calls_of_any_size_add_up_to_their_step(data):
    """Values and gradients of parts, each a share of the whole."""
    calls = data.draw(st.integers(1, 4))
    shares = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=calls, max_size=calls)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    values, rows = (
        torch.randn(calls, 2, *more, generator=generator).double() for more in ((), (3,))
    )
    whole = StepSums(3, gradients=True)
    terms = torch.tensor([0, 2])
    total = shares.sum()
    for i in range(calls):
        part = shares[i] / total.clamp_min(1)
        call = CallOfTerms(terms, values[i] * part, part.expand(2), [2.0, 3.0], rows[i] * part)
        whole.add(call)
    step = whole.statistics(torch.tensor([1.0, 5.0, 7.0]).double())
    if total == 0:
        assert step is None
        return
    mean = (values * shares[:, None]).sum(0) / total
    jacobian = (rows * shares[:, None, None]).sum(0) / total
    assert step.terms.tolist() == [0, 2]
    assert (step.priors.tolist(), step.factors.tolist()) == ([2.0, 3.0], [1.0, 7.0])
    torch.testing.assert_close(step.losses, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(step.gramian, jacobian @ jacobian.T, rtol=1e-6, atol=1e-6)
