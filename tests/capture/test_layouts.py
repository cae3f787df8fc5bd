"""However a model lays out examples, heads, queries and keys, the record is (b, h, q, k)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillkit as dk
from distillkit._capture._read import axes

sizes = st.integers(1, 4)


class LaidOut(nn.Module):
    """One attention, its examples and heads in any order, folded into one axis or not."""

    def __init__(self, h, d, *, heads_first, folded, turned, opened):
        super().__init__()
        self.h, self.d = h, d
        self.heads_first, self.folded, self.turned, self.opened = (
            heads_first,
            folded,
            turned,
            opened,
        )
        self.q, self.k, self.v = (nn.Linear(6, h * d) for _ in range(3))

    def laid_out(self, x, layer):
        split = layer(x).view(*x.shape[:2], self.h, self.d)
        moved = split.permute(2, 0, 1, 3) if self.heads_first else split.permute(0, 2, 1, 3)
        return moved.reshape(-1, x.shape[1], self.d) if self.folded else moved

    def forward(self, x, y):
        q, k, v = self.laid_out(x, self.q), self.laid_out(y, self.k), self.laid_out(y, self.v)
        scores = k @ q.mT if self.turned else q @ k.mT
        scores = scores * 0.7
        if self.opened and self.folded:
            lead = (self.h, len(x)) if self.heads_first else (len(x), self.h)
            scores = scores.view(*lead, *scores.shape[1:])
            v = v.view(*lead, *v.shape[1:])
        p = scores.softmax(-2 if self.turned else -1)
        return p.mT @ v if self.turned else p @ v

    def truth(self, x, y):
        q, k = (
            layer(z).view(*z.shape[:2], self.h, self.d) for layer, z in ((self.q, x), (self.k, y))
        )
        return (0.7 * torch.einsum("bqhd,bkhd->bhqk", q, k)).softmax(-1)


@given(
    b=sizes, h=sizes, q=sizes, k=sizes, d=st.integers(2, 4),
    heads_first=st.booleans(), folded=st.booleans(), turned=st.booleans(), opened=st.booleans(),
)  # fmt: skip
def test_any_layout_is_read(b, h, q, k, d, heads_first, folded, turned, opened):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.attention = LaidOut(
        h, d, heads_first=heads_first, folded=folded, turned=turned, opened=opened
    )
    model.forward = lambda x, y: model.attention(x, y)
    x, y = torch.randn(b, q, 6), torch.randn(b, k, 6)
    with dk.capture(model, "attention") as record:
        model(x, y)
    attention, true = record["attention"], model.attention.truth(x, y)
    if 1 in (b, h, q, k):  # a single one cannot be told from another, but nothing is mixed up
        assert attention.probabilities().numel() == true.numel()
        if attention.shape != true.shape:
            return
    torch.testing.assert_close(attention.probabilities(), true, rtol=1e-5, atol=1e-6)
    value = model.attention.v(y).view(b, k, h, d).transpose(1, 2)
    torch.testing.assert_close(attention.value, value, rtol=1e-5, atol=1e-6)


@given(st.lists(sizes, min_size=1, max_size=4), st.data())
def test_axes_follow_a_tensor_through_views_and_permutations(shape, data):
    """Every axis says which entries of the first tensor lie along it: checked entry by entry."""
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    traced = axes.fresh_axes(shape)
    groups = tuple(traced)
    moved = x
    for _ in range(data.draw(st.integers(0, 4))):
        if data.draw(st.booleans()):
            order = data.draw(st.permutations(range(moved.ndim)))
            moved = moved.permute(order)
            traced = axes.apply_operation(traced, "permute", (order,), tuple(moved.shape))
        else:
            at = data.draw(st.integers(0, moved.ndim - 1))
            stop = data.draw(st.integers(at + 1, moved.ndim))
            moved = moved.flatten(at, stop - 1)
            traced = axes.apply_operation(traced, "flatten", (), tuple(moved.shape))
    assert torch.equal(axes.arrange(moved, traced, groups), x)


@pytest.mark.parametrize(
    ("equation", "left", "right", "out"),
    [
        ("bqhd,bkhd->bhqk", "bqhd", "bkhd", "bhqk"),
        ("...qd,...kd->...qk", "ABqd", "ABkd", "ABqk"),
        ("bqd,bkd", "bqd", "bkd", "kq"),  # in alphabetical order
    ],
)
def test_einsums_are_spelt_out(equation, left, right, out):
    labels = axes_of_einsum(equation, len(left), len(right))
    assert (labels.left, labels.right, labels.out) == (left, right, out)


def axes_of_einsum(equation, left, right):
    from distillkit._capture._read.products import einsum_labels

    return einsum_labels(equation, left, right)
