"""Means over steps: of parts that add up, of parts of a mean, of terms that come and go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors

values = st.floats(-100, 100, width=32)
steps_of_parts = st.lists(st.lists(values, min_size=1, max_size=4), min_size=1, max_size=4)


def distilled(value, weight):
    nothing = dk.Signals({})
    part = torch.tensor(value, requires_grad=True)
    return dk.Distilled(part * weight, {"a": part}, {"a": weight}, nothing, nothing, {})


@given(steps_of_parts, st.booleans())
def test_a_mean_over_steps_of_any_number_of_parts(steps, summed):
    meter = dk.Meter()
    for parts in steps:
        for value in parts:
            meter.add(distilled(value, 2.0), parts=len(parts), summed=summed)
    means = meter.means()
    of_steps = [sum(parts) / (1 if summed else len(parts)) for parts in steps]
    expected = sum(of_steps) / len(steps)
    assert means["a"] == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert means["loss"] == pytest.approx(2 * expected, rel=1e-4, abs=1e-3)
    assert means["weight/a"] == pytest.approx(2.0)
    assert meter.means() == {}


@given(st.lists(st.tuples(values, st.integers(1, 9)), min_size=1, max_size=5))
def test_a_mean_over_examples(batches):
    meter = dk.Meter()
    for value, examples in batches:
        meter.add({"a": value}, weight=examples)
    expected = sum(value * n for value, n in batches) / sum(n for _, n in batches)
    assert meter.means()["a"] == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_term_that_is_off_is_averaged_over_the_steps_in_which_it_was_on():
    meter = dk.Meter()
    for result in ({"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 5.0, "b": 7.0}):
        meter.add(result)
    assert meter.means() == {"a": 3.0, "b": 6.0}


def test_it_holds_no_graph():
    meter, leaf = dk.Meter(), torch.ones((), requires_grad=True)
    meter.add({"a": leaf * 2})
    assert not meter._sums["a"].requires_grad


def test_a_step_has_a_part():
    with pytest.raises(errors.OptionError, match="parts=0"):
        dk.Meter().add({"a": 1.0}, parts=0)
