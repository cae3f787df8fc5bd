"""What is known beside a signal's values, and the names that remember it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._transfer import is_inference, trackable
from ..errors import ShapeError
from .axis import TokenAxis, joined_entries, valid_everywhere
from .layers import Refusal, attempt

TokenAxes: TypeAlias = "tuple[TokenAxis | None, ...]"


class Beside:
    """The mask of a signal's positions, and what is known of the tokens along its axes.

    Args:
        mask: boolean, the positions that count; None: all of them.
        axes: one entry for each token axis, or a function without arguments that says so when it
            is first asked.
    """

    __slots__ = ("_axes", "mask")

    def __init__(
        self, mask: Tensor | None = None, axes: TokenAxes | Callable[[], TokenAxes] = ()
    ) -> None:
        self.mask, self._axes = mask, axes

    def axes(self) -> TokenAxes:
        """The known facts about the tokens along each axis."""
        if callable(self._axes):
            found = self._axes()
            self._axes = tuple(None if axis is None else axis.trackable() for axis in found)
        return self._axes

    def map(
        self, of_mask: Callable[[Tensor], Tensor], of_axis: Callable[[TokenAxis], TokenAxis]
    ) -> Beside:
        """The same through functions; axes that nobody has asked for wait until somebody does."""

        def axes() -> TokenAxes:
            return tuple(None if axis is None else of_axis(axis) for axis in self.axes())

        mask = None if self.mask is None else of_mask(self.mask)
        return Beside(mask, axes if callable(self._axes) else axes())

    def to(self, device: torch.device) -> Beside:
        """The same on another device."""
        return self.map(lambda mask: mask.to(device), lambda axis: axis.to(device))

    def trackable(self) -> Beside:
        """The same, of which autograd may save every tensor."""
        return self.map(trackable, TokenAxis.trackable)

    def is_inference(self) -> bool:
        """Whether a known tensor of it was made under ``torch.inference_mode()``."""
        axes = () if callable(self._axes) else self._axes
        mask = self.mask is not None and is_inference(self.mask)
        return mask or any(axis is not None and axis.is_inference() for axis in axes)

    def attempt(self) -> TokenAxes | Refusal:
        """The axes, or a function that raises why there are none."""
        found: TokenAxes | Refusal = attempt(self.axes)
        return found

    @classmethod
    def concatenate(cls, parts: Sequence[Beside], examples: Sequence[int | None]) -> Beside:
        """The known facts of several forwards of so many ``examples``, one after another."""
        mask = _joined_masks([part.mask for part in parts], examples)
        axes = [part.attempt() for part in parts]
        refused = next((one for one in axes if isinstance(one, Refusal)), None)
        if refused is not None:
            return cls(mask, refused)
        known = [one for one in axes if isinstance(one, tuple)]
        if len({len(one) for one in known}) > 1:
            return cls(mask)
        return cls(mask, tuple(_joined_axis(one, examples) for one in zip(*known, strict=True)))


class Name(str):
    """A signal's name that remembers what is known beside its values.

    Libraries move what they are given by ``type(x)({name: f(value) for name, value in x.items()})``
    and know nothing of masks: the names are all that gets through. Such a name compares, hashes and
    pickles as the plain string. It holds masks and axes, and no values.
    """

    __slots__ = ("absent", "beside", "source")

    absent: Mapping[str, str]
    beside: Beside | None
    source: weakref.ref[Any]

    @classmethod
    def of(cls, name: str, source: Any, absent: Mapping[str, str], beside: Beside | None) -> Name:
        """One name of some signals."""
        made = cls(name)
        made.absent, made.beside, made.source = absent, beside, weakref.ref(source)
        return made

    def __copy__(self) -> Name:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Name:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def _joined_masks(masks: Sequence[Tensor | None], examples: Sequence[int | None]) -> Tensor | None:
    filled = valid_everywhere(masks, examples)
    joined = joined_entries(filled, examples)
    if joined is None and any(mask is not None for mask in masks):
        shapes = ", ".join(str(tuple(mask.shape)) for mask in filled if mask is not None)
        raise ShapeError(f"masks to concatenate are of one length; got {shapes}")
    return joined


def _joined_axis(
    parts: Sequence[TokenAxis | None], examples: Sequence[int | None]
) -> TokenAxis | None:
    known = [part for part in parts if part is not None]
    return TokenAxis.concatenate(known, examples) if len(known) == len(parts) else None
