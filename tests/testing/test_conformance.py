"""The kit as a stranger meets it: specs as objects, clear results, strict expected failures."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import numpy
import pytest
import torch
from pydantic import Field

from distillkit import LossSpec, errors, losses, testing

SPEC = LossSpec(
    "halved_l1", "unused:unused", signature="(d),(d)->()", tags=("nonnegative", "symmetric")
)


def halved_l1(student, teacher):
    student, teacher = losses.checked_pair("halved_l1", "(d),(d)->()", student, teacher)
    return (student - teacher).abs().sum(-1) / 2


def spec_of(function, **changes):
    return dataclasses.replace(SPEC, function=function, **changes)


def by_name(results):
    return {result.name: result for result in results}


def test_a_good_loss_given_as_an_object_passes_everything():
    results = testing.check_loss(spec_of(halved_l1), examples=5)
    assert [result.name for result in results if not result.passed] == []
    assert {"nonnegative", "symmetric", "gradcheck", "compiles"} <= set(by_name(results))
    assert "bounded" not in by_name(results)
    assert by_name(results)["nonnegative"].seen == "5 examples"
    assert by_name(results)["gradcheck"].seen == "2 examples"


def test_a_failure_says_what_was_seen_and_the_smallest_input():
    def negative(student, teacher):
        return halved_l1(student, teacher) - 1

    result = by_name(testing.check_loss(spec_of(negative), examples=20))["nonnegative"]
    assert not result.passed
    assert result.seen.startswith("value -")
    assert result.failing.startswith("student=[")
    assert result.failing.count(",") == 1, "one number on each side"


def test_a_loss_that_raises_fails_every_check_and_says_how():
    def broken(student, teacher):
        raise KeyError("weight")

    results = testing.check_loss(spec_of(broken), examples=2)
    # bad input may raise anything but a ShapeError there, good input nothing
    assert all(not result.passed for result in results)
    assert by_name(results)["shape"].seen == "KeyError: 'weight'"


def test_an_argument_that_the_signature_does_not_name_asks_for_an_example():
    def weighted(student, teacher, *, weights):
        return (halved_l1(student, teacher)) * weights.abs()

    result = by_name(testing.check_loss(spec_of(weighted), examples=2))["shape"]
    assert "LossSpec(example=...)" in result.seen

    def example(draw):
        keywords = {"weights": draw.tensor()}
        return testing.Arguments((draw.tensor("d"),), (draw.tensor("d"),), keywords)

    results = testing.check_loss(spec_of(weighted, example=example), examples=5)
    failed = [result.name for result in results if not result.passed]
    assert failed == []


def test_a_third_input_belongs_to_the_teacher():
    def weighted(student, teacher, weights):
        losses.checked_pair("weighted", "(d),(d)->()", student, weights)
        student, teacher = losses.checked_pair("weighted", "(d),(d)->()", student, teacher)
        return ((student - teacher).square() * weights.square()).sum(-1)

    tags = ("symmetric", "exactly_zero_at_identity", "nonnegative")
    spec = spec_of(weighted, signature="(d),(d),(d)->()", tags=tags)
    failed = [result for result in testing.check_loss(spec, examples=5) if not result.passed]
    assert [result.name for result in failed] == ["low_precision"], "weights stay in half precision"


def test_an_example_asks_for_axes_that_exist():
    def example(draw):
        return testing.Arguments((draw.tensor("w"),), (draw.tensor("d"),))

    result = testing.check_loss(spec_of(halved_l1, example=example), examples=1)[0]
    assert "no axis of the signature is called 'w'" in result.seen


class TestSmallestSizes:
    """A loss may refuse one of what it normalises over; anything else is met with one."""

    @staticmethod
    def sizes(function, check, **changes):
        seen = set()

        def watched(student, teacher):
            seen.add(student.shape[-1])
            return function(student, teacher)

        spec = spec_of(watched, **{"signature": "(v),(v)->()", **changes})
        (chosen,) = [one for one in testing.CHECKS if one.name == check]
        result = chosen.run(testing.Loss.of(spec), 20)
        return seen, result

    @pytest.mark.parametrize("check", ["shape", "edge_sizes", "gradcheck", "functional"])
    def test_a_softmax_that_refuses_one_class_is_given_two_and_more(self, check):
        loss = testing.Loss.of(spec_of(losses.total_variation, signature="(v),(v)->()"))
        assert loss.least == {"v": 2}
        seen, result = self.sizes(losses.total_variation, check)
        assert result.passed, result
        assert 2 in seen
        seen.discard(1)  # of the question itself
        assert min(seen) == 2

    def test_a_loss_that_takes_one_class_is_given_one(self):
        seen, result = self.sizes(losses.soft_binary_cross_entropy, "edge_sizes")
        assert result.passed
        assert 1 in seen
        assert testing.Loss.of("soft_binary_cross_entropy").least == {}

    def test_one_number_may_be_refused_under_any_name_but_no_lonely_example(self):
        def correlated(student, teacher):
            losses.checked_pair("correlated", "(d),(d)->()", student, teacher)
            if student.shape[-1] < 2 or student.shape[0] < 2:
                raise errors.ShapeError(f"too few: {tuple(student.shape)}")
            return (student - teacher).square().mean(-1)

        loss = testing.Loss.of(spec_of(correlated))
        assert loss.least == {"d": 2}
        failed = by_name(testing.check_loss(loss.spec, examples=10))
        assert not failed["edge_sizes"].passed, "one example is no reason"

        def of_tokens(student, teacher):
            losses.checked_pair("of_tokens", "(n,d),(n,d)->(n)", student, teacher)
            if student.shape[-2] < 2:
                raise errors.ShapeError("one token")
            return (student - teacher).square().mean(-1)

        assert testing.Loss.of(spec_of(of_tokens, signature="(n,d),(n,d)->(n)")).least == {}

    def test_what_is_broken_anyway_refuses_nothing(self):
        def broken(student, teacher):
            raise errors.ShapeError("never")

        assert testing.Loss.of(spec_of(broken)).least == {}


@pytest.mark.parametrize(
    "signature",
    ["(v),(v)", "(v),(v)->", "v,v->()", "(v)(v)->()", "(v),(v)->(w)", "(1),(1)->()", "(v)->()"],
)
def test_signatures_that_are_none(signature):
    message = r"\(n,d\),\(n,e\)->\(n,n\)|which no input has|a student and a teacher"
    with pytest.raises(errors.OptionError, match=message):
        testing.check_loss(spec_of(halved_l1, signature=signature))


def test_unknown_names_suggest_the_right_one():
    with pytest.raises(errors.UnknownNameError, match="did you mean 'nonnegative'"):
        testing.check_loss(spec_of(halved_l1, tags=("nonegative",)))
    with pytest.raises(errors.UnknownNameError, match="did you mean 'kl_divergence'"):
        testing.check_loss("kl_divergense")
    with pytest.raises(errors.UnknownNameError, match="did you mean 'gradcheck'"):
        testing.parametrize_with_loss_checks(["mse"], expected_failures={"gradchek": "why"})


def test_every_tag_chooses_a_check_and_every_check_can_be_chosen():
    chosen = set()
    for spec in ("kl_divergence", "reverse_kl_divergence", "cosine_distance", "nkd", "mse"):
        chosen |= {check.name for check in testing.checks_for(spec)}
    assert chosen == {check.name for check in testing.CHECKS}
    always = len(testing.checks_for(spec_of(halved_l1, tags=())))
    for tag in testing.TAGS:
        assert len(testing.checks_for(spec_of(halved_l1, tags=(tag,)))) == always + 1, tag


def test_every_check_says_in_one_line_what_it_asks():
    for check in testing.CHECKS:
        assert check.summary.endswith((".", ":")) or check.function.__doc__.count("\n"), check.name
        assert 10 < len(check.summary) < 100


RUN = """
import torch
from distillkit import LossSpec, losses, testing

def l1(student, teacher):
    student, teacher = losses.checked_pair("l1", "(d),(d)->()", student, teacher)
    return (student - teacher).abs().sum(-1)

SPEC = LossSpec("l1", l1, signature="(d),(d)->()", tags=("nonnegative", "smooth"))

@testing.parametrize_with_loss_checks([SPEC], expected_failures=EXPECTED)
def test_loss(loss, check):
    check(loss)
"""


@pytest.mark.parametrize(
    ("expected", "outcomes"),
    [
        ({}, {"passed": 1, "failed": 1}),
        ({"smooth": "it has a kink"}, {"passed": 1, "xfailed": 1}),
        ({"l1-smooth": "a kink", "nonnegative": "?"}, {"xfailed": 1, "failed": 1}),
    ],
)
def test_parametrised_in_a_strangers_tests(pytester, expected, outcomes):
    pytester.makeini("[pytest]\naddopts = --strict-markers\n")
    pytester.makepyfile(RUN.replace("EXPECTED", repr(expected)))
    result = pytester.runpytest_subprocess(
        "-q", "-k", "smooth or nonneg", "--distillkit-examples=3"
    )
    counts = result.parseoutcomes()
    assert counts.pop("deselected") > 10
    assert counts == outcomes


def test_the_marker_selects_checks_and_examples_are_at_least_one(pytester):
    pytester.makepyfile(RUN.replace("EXPECTED", "None") + "\n\ndef test_other():\n    pass\n")
    result = pytester.runpytest_subprocess("-q", "-m", "distillkit_check", "-k", "nonnegative")
    assert result.parseoutcomes()["passed"] == 1
    result = pytester.runpytest_subprocess("--distillkit-examples=0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_the_plugin_loads_nothing_before_a_check_is_used(pytester, monkeypatch):
    # what else is installed for pytest loads what it likes; ours is asked for by its entry point
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        import sys

        def test_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("distillkit")
            heavy = {"torch", "hypothesis", "numpy", "pydantic", "distillkit.testing.conformance"}
            assert not heavy & set(sys.modules)
        """
    )
    options = "-q", "-p", "distillkit", "--distillkit-examples=7"
    assert pytester.runpytest_subprocess(*options).parseoutcomes() == {"passed": 1}


def test_every_public_name_of_the_kit_is_there():
    import ast
    import inspect

    for name in testing.__all__:
        assert getattr(testing, name) is not None
    assert dir(testing) == testing.__all__
    with pytest.raises(AttributeError, match="no attribute 'check_los'"):
        testing.check_los  # noqa: B018
    tree = ast.parse(inspect.getsource(testing))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    listed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert listed == testing._HOMES


def test_a_parameter_of_a_module_must_learn():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, student, teacher):
            return halved_l1(student, teacher) * self.scale

    spec = spec_of(Scaled())
    (check,) = [c for c in testing.CHECKS if c.name == "gradient_reaches_student"]
    check(spec)


def test_a_module_is_tested_on_copies():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, student, teacher):
            self.calls += 1
            return halved_l1(student, teacher) * self.scale

    module = Scaled()
    testing.check_loss(spec_of(module, tags=()), examples=2)
    assert module.calls == 0
    assert module.scale.dtype == torch.float32
    assert module.scale.grad is None


@pytest.mark.parametrize("tags", [["smooth"], {"smooth"}, iter(["smooth"]), ("smooth",)])
def test_tags_are_any_iterable_and_stay(tags):
    spec = spec_of(halved_l1, tags=tags)
    assert spec.tags == ("smooth",)
    assert dataclasses.replace(spec, name="other").tags == ("smooth",)
    assert "smooth" in {check.name for check in testing.checks_for(spec)}


@pytest.mark.parametrize("tags", ["smooth", 3, None, [1], b"smooth"])
def test_tags_that_are_none(tags):
    with pytest.raises(errors.SpecError, match="tags are strings in a tuple or another iterable"):
        spec_of(halved_l1, tags=tags)


@pytest.mark.parametrize("bound", [2, 2.0, torch.tensor(2.0), numpy.float32(2)])
def test_a_bound_is_any_number(bound):
    assert spec_of(halved_l1, bound=bound).bound == 2.0
    assert type(spec_of(halved_l1, bound=bound).bound) is float


@pytest.mark.parametrize("bound", ["2", (0, 2), float("inf"), float("nan"), True])
def test_a_bound_that_is_none(bound):
    with pytest.raises(errors.SpecError, match="bound is the largest value.*a finite number"):
        spec_of(halved_l1, bound=bound)


@pytest.mark.parametrize(
    "printed", ["(2, 3) and (3, 3)", "torch.Size([2, 3]) and torch.Size([3, 3])", "[2,3] / [3,3]"]
)
def test_shapes_are_found_however_they_are_printed(printed):
    from distillkit.testing.checks import _printed

    for shape in ((2, 3), (3, 3)):
        assert re.search(_printed(shape), printed)
    assert not re.search(_printed((2,)), printed)
    assert re.search(_printed(()), "torch.Size([])")
    assert re.search(_printed((2,)), "(2,)")


def test_a_temperature_that_is_hot_by_default_and_one_that_is_not_there():
    def hot(student, teacher, *, temperature=3.0):
        return losses.kl_divergence(student, teacher, temperature=temperature)

    rows = {"signature": "(v),(v)->()", "tags": ("temperature_squared",)}
    results = by_name(testing.check_loss(spec_of(hot, **rows), examples=4))
    assert results["temperature_squared"].passed
    results = by_name(testing.check_loss(spec_of(halved_l1, **rows), examples=2))
    assert results["temperature_squared"].seen == "the loss takes no number `temperature`"


def test_bounds_that_only_the_annotation_states_are_the_librarys_to_check():
    def bounded(student, teacher, *, weight: Annotated[float, Field(gt=0)] = 1.0):
        return weight * halved_l1(student, teacher)

    def vague(student, teacher, *, weight: Annotated[float, Field(gt=0)] = 1.0):
        if not weight > 0:
            raise ValueError("out of range")
        return weight * halved_l1(student, teacher)

    found = by_name(testing.check_loss(spec_of(bounded), examples=1))["option_bounds"]
    assert found.passed, found
    found = by_name(testing.check_loss(spec_of(vague), examples=1))["option_bounds"]
    assert found.seen == "weight = 0.0: the error does not name it: out of range"


class TestLowPrecision:
    """float32 is asked as much as the inputs allow, half precision what float32 gives."""

    @staticmethod
    def result(function, **changes):
        (check,) = [one for one in testing.CHECKS if one.name == "low_precision"]
        return check.run(testing.Loss.of(spec_of(function, **changes)), 20)

    def test_an_ill_conditioned_loss_may_be_off_in_float32_alone(self):
        def phase(student, teacher):
            student, teacher = losses.checked_pair("phase", "(d),(d)->()", student, teacher)
            return 100 * ((7.3 * student).sin() - (7.3 * teacher).sin()).abs().mean(-1)

        assert self.result(phase).passed

        def with_a_rounded_factor(student, teacher):
            low = student.dtype in (torch.float16, torch.bfloat16)
            factor = 7.3 if not low else 7.3125
            student, teacher = losses.checked_pair("phase", "(d),(d)->()", student, teacher)
            return 100 * ((factor * student).sin() - (factor * teacher).sin()).abs().mean(-1)

        assert "value of float16 inputs" in self.result(with_a_rounded_factor).seen

    def test_an_unstable_formula_of_a_well_conditioned_loss_is_seen(self):
        def spread(student, teacher):
            student, teacher = losses.checked_pair("spread", "(d),(d)->()", student, teacher)
            far = 1e4 + student - teacher
            return (far - 1e4).square().mean(-1)

        assert "of float32 inputs" in self.result(spread).seen
