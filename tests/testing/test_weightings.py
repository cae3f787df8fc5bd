"""The kit of weightings passes those of the library, and finds what is wrong with others."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import distillkit as dk
from distillkit import testing

OPTIONS = {
    "uncertainty": {},
    "dynamic_average": {"steps": 1},
    "gradnorm": {"alpha": 0.5, "lr": 0.2},
    "gradient_ratio": {"ratios": {"one": 0.5, "two": 2.0}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_those_of_the_library_pass(name):
    results = testing.check_weighting(name, options=OPTIONS[name])
    assert [str(one) for one in results if not one.passed] == []


@pytest.mark.skipif(
    importlib.util.find_spec("torchjd") is None,
    reason="TorchJD is not installed (distillkit[torchjd])",
)
@pytest.mark.parametrize("aggregator", ["UPGrad", "MGDA", "DualProj", "AlignedMTL"])
def test_those_of_torchjd_pass(aggregator):
    results = testing.check_weighting("torchjd", options={"aggregator": aggregator})
    assert [str(one) for one in results if not one.passed] == []


class Right:
    reads = "losses"

    def __init__(self, terms):
        self.terms = terms

    def start(self):
        return {"steps": torch.zeros(1)}

    def settle(self, step, state):
        return torch.ones(len(step.terms)), {"steps": state["steps"] + 1}


class Negative(Right):
    def settle(self, step, state):
        return step.losses - step.losses.max() - 1, state


class NotFinite(Right):
    def settle(self, step, state):
        return 1 / step.losses, state


class TooMany(Right):
    def settle(self, step, state):
        return torch.ones(3), state


class Random(Right):
    def settle(self, step, state):
        return torch.rand(len(step.terms)), state


class InPlace(Right):
    def settle(self, step, state):
        state["steps"] += 1
        return torch.ones(len(step.terms)), state


class Hidden(Right):
    def __init__(self, terms):
        super().__init__(terms)
        self.steps = 0

    def settle(self, step, state):
        self.steps += 1
        return torch.full((len(step.terms),), float(self.steps)), state


class Growing(Right):
    def settle(self, step, state):
        return torch.ones(len(step.terms)), {"steps": torch.cat([state["steps"], torch.ones(1)])}


class Deaf(torch.nn.Module):
    def __init__(self, terms):
        super().__init__()
        self.factors, self.unused = (torch.nn.Parameter(torch.ones(len(terms))) for _ in "ab")

    def forward(self, terms):
        return self.factors[terms], torch.zeros(len(terms))


@pytest.mark.parametrize(
    ("factory", "check", "seen"),
    [
        (Negative, "factors", "a weight is at least 0"),
        (NotFinite, "factors", "not finite"),
        (TooMany, "factors", "factors of the step's terms, (2,); got (3,)"),
        (Random, "repeats", "two runs over the same steps differ"),
        (InPlace, "leaves_its_inputs", "return a new state"),
        (Hidden, "goes_on", "after a checkpoint it goes on with other factors"),
        (Growing, "factors", "keeps the names and shapes of its state"),
        (Deaf, "learns", "the gradient of unused is None"),
        (lambda terms: 3, "factors", "its factory returned 3"),
    ],
)
def test_faults_are_found(factory, check, seen):
    results = {
        one.name: one for one in testing.check_weighting(dk.WeightingSpec("x", factory=factory))
    }
    assert results[check].failed
    assert seen in results[check].seen


def test_a_right_one_passes():
    results = testing.check_weighting(dk.WeightingSpec("x", factory=Right))
    assert all(one.passed for one in results)
