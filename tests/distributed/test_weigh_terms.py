"""Two processes settle the weights that one has with the whole batch."""

from __future__ import annotations

import pytest

from tests.distributed import weigh_terms
from tests.distributed.two_processes import run_in_two_processes
from tests.support import weighted


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_in_two_processes("weigh_terms", tmp_path_factory.mktemp("ranks"))


def alone(name):
    distiller = weighted.distiller_of(weigh_terms.WEIGHTINGS[name])
    return weighted.train(distiller, weigh_terms.STEPS)


@pytest.mark.parametrize("wrapped", ["distiller", "student"])
def test_unequal_parts_on_two_ranks_are_the_whole(ranks, wrapped):
    assert len(ranks[0][wrapped]) >= 6
    for name, first in ranks[0][wrapped].items():
        assert first == ranks[1][wrapped][name], name
        weighted.close(first, alone(name))


def test_every_rank_weighs_as_the_first_one_that_loaded_a_state(ranks):
    for name, weights in ranks[0]["loaded"].items():
        assert weights == ranks[1]["loaded"][name], name
        assert weights != dict(zip(weighted.NAMES, (2.0, 1.0, 0.5), strict=True))


def test_sharded_students_take_a_learned_weighting_alone(ranks):
    for one in ranks:
        weighted.close(one["sharded"]["uncertainty"], alone("uncertainty"))
        assert "which are sharded here" in one["sharded"]["gradnorm"]
