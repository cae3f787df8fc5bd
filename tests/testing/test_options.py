"""What the kit reads off a loss's signature, and which values of its options it tries."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Optional

import annotated_types
import pytest
from pydantic import Field, PositiveFloat

from distillkit import LossSpec, losses, testing
from distillkit.testing.options import Bounds

VECTORS = "(d),(d)->()"


def options_of(function, signature=VECTORS):
    return testing.Loss.of(LossSpec("x", function, signature=signature)).options


@pytest.mark.parametrize(
    ("annotation", "bounds"),
    [
        (Annotated[float, Field(gt=0)], Bounds(low=0, low_included=False)),
        (Annotated[float, Field(gt=0, lt=1)], Bounds(0, 1, False, False)),
        (Annotated[float, Field(ge=0, le=1)], Bounds(0, 1)),
        (Annotated[float, annotated_types.Gt(0)], Bounds(low=0, low_included=False)),
        (Annotated[float, annotated_types.Interval(ge=0, lt=1)], Bounds(0, 1, True, False)),
        (Annotated[float, Field(gt=0)] | None, Bounds(low=0, low_included=False)),
        (Optional[PositiveFloat], Bounds(low=0, low_included=False)),  # noqa: UP045
        (Annotated[PositiveFloat, Field(gt=-1, le=3)], Bounds(0, 3, False, True)),
        (Annotated[float, "the softness"], Bounds()),
    ],
)
def test_bounds_are_read_however_they_are_written(annotation, bounds):
    def loss(s, t, *, option=0.5):
        return s

    loss.__annotations__["option"] = annotation
    (option,) = options_of(loss).values()
    assert option.bounds == bounds
    assert option.promised == bounds.stated
    assert option.inside
    assert all(bounds.hold(x) for x in (*option.inside, *option.edges))
    assert not any(bounds.hold(x) for x in option.outside)
    assert any(map(math.isnan, option.outside)) == bounds.stated
    assert 0.5 not in option.inside, "the default is tried anyway"


@pytest.mark.parametrize(
    ("default", "inside"),
    [
        (1.0, (0.25, 0.5, 2.0, 4.0)),
        (0.5, (0.125, 0.25, 0.625, 0.75)),
        (0.0, (0.1, 0.5)),
        (-2.0, (-0.5, -1.0, -4.0, -8.0)),
        (1e-8, (0.25e-8, 0.5e-8, 2e-8, 4e-8)),
        (2, (3, 1, 4)),
        (1, (2,)),
    ],
)
def test_without_bounds_values_around_the_default_are_guessed(default, inside):
    def loss(s, t, *, option=default):
        return s

    (option,) = options_of(loss).values()
    assert option.inside == pytest.approx(inside)
    assert not option.promised
    assert not option.outside


def test_what_is_no_number_is_not_drawn():
    def loss(s, t, *, on=True, word="mean", labels=None, of: Literal["a", "b"] = "a", far=math.inf):
        return s

    assert options_of(loss) == {}


def test_a_bound_that_belongs_to_the_range_is_an_edge():
    def loss(s, t, *, share: Annotated[float, Field(ge=0, lt=1)] = 0.5):
        return s

    (option,) = options_of(loss).values()
    assert option.edges == (0, pytest.approx(0.999))
    assert option.outside[:2] == (-1, 1)


class TestHeads:
    @staticmethod
    def values(function):
        found = options_of(function, "attention")
        return found["heads"].inside if "heads" in found else None

    def test_averaged_heads_are_tried_where_a_loss_of_attentions_takes_them(self):
        assert self.values(losses.attention_kl) == ("mean",)
        assert self.values(lambda s, t, *, heads=None: s) == ("mean",)

    def test_a_number_of_heads_and_other_words_are_something_else(self):
        def of_other_words(s, t, *, heads: Literal["max"] | None = None):
            return s

        assert self.values(lambda s, t, *, heads=8: s) is None
        assert self.values(of_other_words) is None
        assert options_of(lambda s, t, *, heads=None: s) == {}, "no loss of attentions"


def seen_by(check, function, signature=VECTORS, examples=20):
    """The options that a loss gets in a check."""
    seen = []

    def watched(s, t, *, temperature: Annotated[float, Field(gt=0, lt=9)] = 3.0):
        seen.append(temperature)
        return function(s, t)

    (chosen,) = [one for one in testing.CHECKS if one.name == check]
    spec = LossSpec("watched", watched, signature=signature, bound=1e12, tags=("symmetric",))
    result = chosen.run(testing.Loss.of(spec), examples)
    assert result.passed, result
    return set(seen)


def test_every_check_sees_the_default_and_most_see_other_values():
    for check in ("shape", "gradcheck", "same_twice"):
        seen = seen_by(check, losses.mse)
        assert 3.0 in seen
        assert len(seen) > 1
    assert seen_by("symmetric", losses.mse) == {3.0}
    assert seen_by("bounded", losses.mse) == {3.0}


def test_the_edges_are_seen_where_only_shape_and_finiteness_are_asked():
    edges = {0.009, 8.991}
    assert edges & {round(x, 6) for x in seen_by("shape", losses.mse, examples=60)}
    assert not edges & {round(x, 6) for x in seen_by("padding", losses.mse, examples=60)}


def test_a_failure_shows_the_option():
    def loss(s, t, *, temperature: Annotated[float, Field(gt=0)] = 1.0):
        return losses.mse(s, t) if temperature == 1 else s

    results = testing.check_loss(LossSpec("x", loss, signature=VECTORS), examples=20)
    (shape,) = [result for result in results if result.name == "shape"]
    assert "temperature=" in shape.failing


def test_a_refused_guess_is_left_out_and_a_refused_promise_is_a_failure():
    def guessed(s, t, *, weight=1.0):
        if weight != 1:
            raise ValueError("weight is 1")
        return losses.mse(s, t)

    def promised(s, t, *, weight: Annotated[float, Field(gt=0)] = 1.0):
        return guessed(s, t, weight=weight)

    (shape,) = [one for one in testing.CHECKS if one.name == "shape"]
    assert shape.run(testing.Loss.of(LossSpec("x", guessed, signature=VECTORS)), 20).passed
    result = shape.run(testing.Loss.of(LossSpec("x", promised, signature=VECTORS)), 20)
    assert result.seen == "ValueError: weight is 1"


def test_options_of_one_side_are_the_other_sides_where_both_are_equal():
    call = testing.Arguments((), (), options={"student_t": 2, "teacher_t": 3, "cap": 1})
    alone = testing.Arguments((), (), options={"student_t": 2, "cap": 1})
    assert call.identical().options == {"student_t": 2, "teacher_t": 2, "cap": 1}
    assert alone.identical().options == {"cap": 1}
