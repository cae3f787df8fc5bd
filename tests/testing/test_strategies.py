"""What the kit draws: the shapes, numbers and masks that it promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st

from distillkit import LossSpec, errors, testing
from distillkit.testing import strategies


def spec(signature):
    return LossSpec("x", "x:x", signature=signature)


@given(testing.arguments(spec("(n,d),(n,e)->(n,n)"), side=(2, 3), leading=((), (0,), (2, 2))))
def test_shapes_follow_the_signature(call):
    n, d, e = (call.sizes[axis] for axis in "nde")
    assert call.student[0].shape == (*call.leading, n, d)
    assert call.teacher[0].shape == (*call.leading, n, e)
    assert {n, d, e} <= {2, 3}
    assert all(x.dtype == torch.float64 for x in call.tensors())


@pytest.mark.parametrize("values", strategies.EVERY)
def test_every_kind_of_numbers_is_finite_and_what_it_says(values):
    x = strategies.numbers(values, (50, 4), torch.Generator().manual_seed(0))
    assert x.dtype == torch.float64
    assert x.isfinite().all()
    expected = {
        "plain": (x * 8 == (x * 8).round()).all() and x.abs().max() <= 4,
        "generic": len(x.unique()) == 200,
        "constant": len(x.unique()) == 1,
        "one_hot": ((x == 1e4).sum(-1) == 1).all() and ((x == 0).sum(-1) == 3).all(),
        "extreme": set(x.unique().tolist()) == {-1e4, 0, 1e4},
        "tiny": x.abs().max() < 1e-5,
        "large": 1e4 < x.abs().max() <= 6e4 and len(x.unique()) > 190,
    }
    assert expected[values]
    assert (x.half().isfinite()).all(), "fits float16"


def test_an_unknown_kind_of_numbers():
    with pytest.raises(errors.UnknownNameError, match="did you mean 'extreme'"):
        strategies.numbers("extrem", (1,), torch.Generator())


def finds(strategy, wanted):
    return find(strategy, wanted)


def test_masks_have_empty_rows_full_ones_and_logits_of_minus_infinity():
    finds(testing.masks((2, 3)), lambda m: not m.any())
    finds(testing.masks((2, 3)), lambda m: m.all())
    finds(testing.masks((2, 3)), lambda m: m[0].any() and not m[1].any())
    finds(testing.logits((2, 3)), lambda x: (x == -torch.inf).all(-1).any() and x.isfinite().any())
    finds(testing.attentions(), lambda a: not a.valid_rows().any())
    finds(testing.attentions(), lambda a: a.valid_rows().all())


@given(testing.probabilities((2, 3), values=("plain", "one_hot")))
def test_probabilities_add_up(p):
    torch.testing.assert_close(p.sum(-1), torch.ones(2, dtype=torch.float64))


@given(testing.hidden_states((1, 2, 3), dtypes=strategies.DTYPES, values=strategies.EVERY))
def test_hidden_states_in_every_dtype(x):
    assert x.shape == (1, 2, 3)
    assert x.dtype in strategies.DTYPES


@given(testing.attentions(), st.data())
def test_attentions_have_queries_keys_masks_and_rows(attention, data):
    b, _, q, k = attention.shape
    assert attention.mask.shape == (b, 1, q, k)
    assert attention.rows.shape == (b, 1, q)


@given(testing.arguments(spec("attention")))
def test_a_call_maps_takes_swaps_and_prints(call):
    assert call.take(slice(0, 1)).leading == (1,)
    assert call.swapped().student == call.teacher
    same = call.identical()
    for one, other in zip(same.student, same.teacher, strict=True):
        assert torch.equal(one.query, other.query)
        assert one.query is not other.query
    assert repr(call).startswith("student=Attention(query=")
    copy, student, teacher = call.with_leaves()
    assert [x.requires_grad for x in (*student, *teacher)] == [True] * 4
    assert copy.student[0].query is student[0]


def test_long_inputs_are_shortened():
    call = testing.Arguments((torch.arange(1000.0),), (torch.zeros(1),), {"heads": 2})
    assert len(repr(call)) < 150
    assert repr(call).endswith("teacher=[0.0], heads=2")
