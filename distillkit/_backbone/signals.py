"""What two models both expose, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from .._attention import Attention
from ..errors import SignalError, unknown_name
from .tokens import TokenAxis

Layer = TypeVar("Layer", Tensor, Attention)
Signal: TypeAlias = "Tensor | Attention | Sequence[Tensor] | Sequence[Attention]"
Axes: TypeAlias = "tuple[TokenAxis | None, ...]"


class Layers(Sequence[Layer]):
    """A signal's layers, bottom to top, each computed when it is first asked for."""

    def __init__(self, layers: Sequence[Callable[[], Layer]]) -> None:
        self._compute: list[Callable[[], Layer]] = list(layers)
        self._computed: dict[int, Layer] = {}

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        position = range(len(self))[index]
        if position not in self._computed:
            self._computed[position] = self._compute[position]()
        return self._computed[position]

    def __len__(self) -> int:
        return len(self._compute)


class Signals(Mapping[str, Signal]):
    """An immutable mapping from name to value, with masks.

    Names are ``logits``, ``hidden.<stream>``, ``embedding.<modality>``,
    ``attention.text_to_image``, ``attention.image_to_text`` and ``attention.<stream>``; hidden and
    attention signals are sequences, one entry for each layer, bottom to top.

    Args:
        values: name -> tensor, attention or sequence of them; or a function without arguments
            that computes it when it is first asked for.
        masks: name -> boolean mask of the positions that count, ``(b, n)`` for hidden states.
        axes: name -> what is known of the tokens along each of its token axes: (queries, keys) of
            an attention; or a function without arguments that says so.
        absent: name of a signal that this backbone cannot have -> why.

    Examples:
        >>> import torch
        >>> signals = Signals({"logits": torch.zeros(2, 5)})
        >>> signals["logits"].shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        values: Mapping[str, Signal | Callable[[], Signal]],
        masks: Mapping[str, Tensor] | None = None,
        *,
        axes: Mapping[str, Axes | Callable[[], Axes]] | None = None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self._absent = dict(absent or {})
        self._values = {name: v for name, v in values.items() if name not in self._absent}
        self._masks = dict(masks or {})
        self._axes = dict(axes or {})

    def __getitem__(self, name: str) -> Signal:
        if name in self._absent:
            raise SignalError(f"there is no signal {name!r}: {self._absent[name]}")
        if name not in self._values:
            raise unknown_name("signal", name, self._values)
        value = self._values[name]
        if not isinstance(value, (Tensor, Attention, Sequence)):
            value = self._values[name] = value()
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def mask(self, name: str) -> Tensor | None:
        """The positions of a signal that count; None: all do."""
        return self._masks.get(name)

    def axes(self, name: str) -> Axes:
        """What is known of the tokens along a signal's token axes; nothing: ``()``."""
        found = self._axes.get(name, ())
        if callable(found):
            found = self._axes[name] = found()
        return found

    @property
    def absent(self) -> Mapping[str, str]:
        """Signals that this backbone cannot have -> why."""
        return self._absent

    def detach(self) -> Signals:
        """The same signals without gradient."""
        return self._map(lambda x: x.detach(), lambda axis: axis)

    def take(self, index: Tensor | slice) -> Signals:
        """Examples of the batch, of every signal and mask."""
        return self._map(
            lambda x: x.take(index) if isinstance(x, Attention) else x[index],
            lambda axis: axis.take(index),
        )

    def with_values(self, values: Mapping[str, Signal | Callable[[], Signal]]) -> Signals:
        """These signals and some more, which replace those of the same name."""
        absent = {name: why for name, why in self._absent.items() if name not in values}
        return Signals({**self._values, **values}, self._masks, axes=self._axes, absent=absent)

    def only(self, *names: str) -> Signals:
        """These signals alone: what is worth keeping of a forward."""
        masks = {name: mask for name, mask in self._masks.items() if name in names}
        axes = {name: found for name, found in self._axes.items() if name in names}
        return Signals({name: self[name] for name in names}, masks, axes=axes)

    @classmethod
    def concatenate(cls, parts: Sequence[Signals]) -> Signals:
        """The examples of several forwards, one after another: a whole data set's signals."""
        first = parts[0]
        values = {name: _concatenated([part[name] for part in parts]) for name in first}
        masks = {name: torch.cat([part._masks[name] for part in parts]) for name in first._masks}
        axes = {
            name: tuple(map(_concatenated_axis, zip(*(p.axes(name) for p in parts), strict=True)))
            for name in first._axes
        }
        return cls(values, masks, axes=axes)

    def _map(
        self, function: Callable[[Any], Any], of_axis: Callable[[TokenAxis], TokenAxis]
    ) -> Signals:
        def later(name: str) -> Callable[[], Signal]:
            def value() -> Signal:
                found: Any = self[name]
                if isinstance(found, (Tensor, Attention)):
                    return function(found)  # type: ignore[no-any-return]
                return Layers([_deferred(function, found, i) for i in range(len(found))])

            return value

        masks = {name: function(mask) for name, mask in self._masks.items()}
        axes = {name: self._axes_later(name, of_axis) for name in self._axes}
        return Signals({name: later(name) for name in self}, masks, axes=axes, absent=self._absent)

    def _axes_later(
        self, name: str, function: Callable[[TokenAxis], TokenAxis]
    ) -> Callable[[], Axes]:
        return lambda: tuple(None if one is None else function(one) for one in self.axes(name))

    def __repr__(self) -> str:
        return f"Signals({', '.join(self._values)})"


def _concatenated(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if isinstance(values[0], Attention):
        return Attention.concatenate(values)
    return [_concatenated(layer) for layer in zip(*values, strict=True)]


def _concatenated_axis(parts: tuple[TokenAxis | None, ...]) -> TokenAxis | None:
    known = tuple(part for part in parts if part is not None)
    return TokenAxis.concatenate(known) if len(known) == len(parts) else None


def _deferred(
    function: Callable[[Any], Any], layers: Sequence[Any], index: int
) -> Callable[[], Any]:
    return lambda: function(layers[index])
