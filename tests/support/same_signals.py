"""Whether two sets of signals say the same, wherever padding is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import distillkit as dk
from distillkit.errors import DistillKitError


def assert_same(given: dk.Signals, expected: dk.Signals, names: Sequence[str], **tolerance: float):
    """Values, masks and token axes: of the positions that count."""
    for name in names:
        one, other = given[name], expected[name]
        if isinstance(other, (Tensor, dk.Attention)):
            one, other = [one], [other]
        assert len(one) == len(other), name
        for mine, theirs in zip(one, other, strict=True):
            if isinstance(theirs, dk.Attention):
                _same_attention(name, mine, theirs, tolerance)
            else:
                _same_tensor(name, mine, theirs, expected.mask(name), tolerance)
        _same_mask(name, given, expected)
        _same_axes(name, given.axes(name), expected.axes(name))


def offered(signals: dk.Signals) -> list[str]:
    """The names of the signals that can be computed."""
    found = []
    for name in signals:
        try:
            value = signals[name]
            if not isinstance(value, (Tensor, dk.Attention)):
                [layer.shape for layer in value]
        except DistillKitError:
            continue
        found.append(str(name))
    return found


def _same_attention(name: str, mine: Any, theirs: Any, tolerance: dict[str, float]) -> None:
    assert mine.shape == theirs.shape, name
    torch.testing.assert_close(mine.valid_rows(), theirs.valid_rows())
    torch.testing.assert_close(mine.probabilities(), theirs.probabilities(), **tolerance)


def _same_tensor(
    name: str, mine: Tensor, theirs: Tensor, mask: Tensor | None, tolerance: dict[str, float]
) -> None:
    assert mine.shape == theirs.shape, name
    assert mine.dtype == theirs.dtype, name
    if mask is not None and mask.shape == theirs.shape[:2]:
        mine, theirs = mine[mask], theirs[mask]
    torch.testing.assert_close(mine, theirs, **tolerance)


def _same_mask(name: str, given: dk.Signals, expected: dk.Signals) -> None:
    """None says that all count."""
    mine, theirs = given.mask(name), expected.mask(name)
    if theirs is None or bool(theirs.all()):
        assert mine is None or bool(mine.all()), name
    else:
        torch.testing.assert_close(mine, theirs)


def _same_axes(name: str, given: Any, expected: Any) -> None:
    known = [axis for axis in expected if axis is not None]
    assert len(given) == len(expected) or not known, name
    for mine, theirs in zip(given, expected, strict=False):
        if theirs is None:
            continue
        assert (mine.modality, mine.special, mine.grid) == (
            theirs.modality,
            theirs.special,
            theirs.grid,
        ), name
        if theirs.valid is not None and not bool(theirs.valid.all()):
            torch.testing.assert_close(mine.valid, theirs.valid)
