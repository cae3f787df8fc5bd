"""masked_mean with a normalizer: parts of a batch give its value and gradient exactly."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from distillkit import losses, testing


@st.composite
def batches(draw):
    """Logits of student and teacher, a mask or weights, and how the batch is cut into parts."""
    n, v = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    student, teacher = (draw(testing.tensors((n, 3, v), values=("generic",))) for _ in "st")
    mask = draw(testing.masks((n, 3)))
    if draw(st.booleans()):
        mask = mask * draw(testing.tensors((n, 3), values=("generic",))).abs()
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=3)))
    edges = [0, *cuts, n]
    return student, teacher, mask, [slice(a, b) for a, b in itertools.pairwise(edges)]


def value_and_gradient(student, teacher, mask, weight, **options):
    loss = losses.masked_mean(losses.kl_divergence(student @ weight, teacher), mask, **options)
    (gradient,) = torch.autograd.grad(loss, weight)
    return loss.detach(), gradient


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@given(batches())
def test_accumulated_micro_batches_are_the_batch(drawn):
    student, teacher, mask, parts = drawn
    weight = torch.eye(student.shape[-1], dtype=torch.float64).requires_grad_()
    expected = value_and_gradient(student, teacher, mask, weight)
    if not mask.any():
        return close(expected[1], torch.zeros_like(weight))
    sums = [torch.zeros(()).double(), torch.zeros_like(weight)]
    for part in parts:  # some are empty, some have nothing kept
        found = value_and_gradient(
            student[part], teacher[part], mask[part], weight, normalizer=mask.sum()
        )
        sums = [total + one for total, one in zip(sums, found, strict=True)]
    for found, whole in zip(sums, expected, strict=True):
        close(found, whole)
    return None


@given(batches())
def test_shards_whose_gradients_are_averaged_are_the_batch(drawn):
    """DDP averages over processes: the normalizer is the mean of the shards' counts."""
    student, teacher, mask, parts = drawn
    if not mask.any():
        return
    weight = torch.eye(student.shape[-1], dtype=torch.float64).requires_grad_()
    expected = value_and_gradient(student, teacher, mask, weight)
    normalizer = mask.sum().double() / len(parts)
    shards = [
        value_and_gradient(student[part], teacher[part], mask[part], weight, normalizer=normalizer)
        for part in parts
    ]
    for found, whole in zip(zip(*shards, strict=True), expected, strict=True):
        close(torch.stack(found).mean(0), whole)


@given(batches(), st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_what_the_mask_drops_may_be_anything(drawn, rubbish):
    student, teacher, mask, _ = drawn
    values = losses.kl_divergence(student, teacher)
    dirty = torch.where(mask != 0, values, rubbish).requires_grad_()
    mean = losses.masked_mean(dirty, mask)
    close(mean, losses.masked_mean(values, mask))
    (gradient,) = torch.autograd.grad(mean, dirty)
    assert not gradient[mask == 0].any()
