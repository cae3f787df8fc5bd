"""Terms that gather: two processes with unequal parts are one with the whole batch."""

from __future__ import annotations

import functools

import pytest
from torch.testing import assert_close

from tests.distributed import gather_terms
from tests.distributed.gather_terms import CUTS, SCENARIOS
from tests.distributed.two_processes import run_in_two_processes

pytestmark = pytest.mark.xdist_group("gather_terms")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes found, for all scenarios."""
    return run_in_two_processes("gather_terms", tmp_path_factory.mktemp("ranks"))


@functools.cache
def alone(name):
    return gather_terms.value(SCENARIOS[name], slice(None))


@pytest.mark.parametrize("normalized", ["", ", normalized"])
@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_loss_gradient_and_counts_are_those_of_one_process(name, how, normalized, two):
    expected = alone(name)
    assert expected[1].abs().max() > 1e-3, "there is something to learn"
    for found in two:
        assert_close(found[f"{name}: {how}{normalized}"], expected, rtol=1e-12, atol=1e-12)


def test_any_batch_cut_anywhere(two):
    expected = [
        gather_terms.value(scenario, slice(None), seed=seed)
        for scenario, seed, _ in gather_terms.drawn()
    ]
    assert len({cut for _, _, cut in gather_terms.drawn()}) == 6
    for found in two:
        assert_close(found["drawn"], expected, rtol=1e-11, atol=1e-12)


def test_what_the_batch_alone_tells_is_what_counts(two):
    for found in two:
        assert found["counted"]["info_nce/logits"] == 2.5, "of 5 examples, averaged over 2"


@pytest.mark.parametrize("name", gather_terms.TEXTS)
def test_tokens_are_padded_to_the_longest_and_the_padding_does_not_count(name, two):
    expected = gather_terms.value(gather_terms.TEXTS[name], slice(None))
    for found in two:
        assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


def test_compiled_code_gathers(two):
    for found in two:
        assert_close(found["compiled"], alone("two layers"), rtol=1e-12, atol=1e-12)


def test_a_distiller_trains_accumulates_and_evaluates_as_in_one_process(two):
    distiller = gather_terms.distiller_of()
    expected = gather_terms.trained(distiller, distiller, slice(None))
    for found in two:
        assert_close(found["trained"], expected, rtol=1e-5, atol=1e-6)


def test_a_look_at_one_process_is_about_its_own_examples(two):
    assert two[0]["check"] == ["2 of 2 examples", "4 of 4 positions", "2 of 2 examples", "-"]


def test_what_cannot_be_joined_is_an_error_in_every_process(two):
    for found in two:
        one, other = found["refusals"]
        assert "one shape on every process; got (2, 3), (2, 4)" in one
        assert "got torch.float32 (2, 3), torch.float32 (2,)" in other
