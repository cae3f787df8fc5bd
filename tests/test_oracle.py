"""The oracle against scipy and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import oracle
from scipy.special import rel_entr, softmax


def test_kl_against_scipy():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 4, 7)) * 3
    expected = rel_entr(softmax(teacher, -1), softmax(student, -1)).sum(-1)
    np.testing.assert_allclose(oracle.kl_divergence(student, teacher), expected, rtol=1e-12)


def test_kl_by_hand():
    # p = (1/4, 3/4), q = (1/2, 1/2): 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812...
    value = oracle.kl_divergence(np.zeros((1, 2)), np.array([[0.0, math.log(3)]]))
    np.testing.assert_allclose(value, [0.25 * math.log(0.5) + 0.75 * math.log(1.5)], rtol=1e-12)


def test_attention_rows_by_hand():
    query = np.array([[[[2.0, 0.0]], [[0.0, 2.0]]]])  # (1, 2, 1, 2)
    key = np.array([[[[1.0, 0.0], [0.0, 3.0]]]])  # one key head for both query heads
    rows = oracle.attention_rows(query, key, scale=0.5)
    assert rows[0, 0, 0] == {0: 1.0, 1: 0.0}
    assert rows[0, 1, 0] == {0: 0.0, 1: 3.0}


def test_a_missing_key_of_the_student_is_infinite():
    counted = np.ones((1, 1, 1), bool)
    full, half = {(0, 0, 0): {0: 0.0, 1: 0.0}}, {(0, 0, 0): {0: 0.0}}
    assert oracle.attention_kl(half, full, counted)[0, 0, 0] == math.inf
    np.testing.assert_allclose(oracle.attention_kl(full, half, counted), math.log(2))
