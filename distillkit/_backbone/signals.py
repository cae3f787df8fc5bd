"""What two models both expose, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping, Sequence, ValuesView
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._attention import Attention
from .._transfer import Destination
from ..errors import SignalError, unknown_name
from .axis import TokenAxis
from .beside import Beside, Name
from .beside import TokenAxes as TokenAxes
from .head import PARAMETERS
from .joining import check_same_names, concatenate, count_examples
from .layers import Layers as Layers
from .layers import as_layers, attempt, made_in_inference, make_portable, make_trackable, move_value
from .replacing import known_after_change, known_after_rebuild
from .tokens import chosen

Signal: TypeAlias = "Tensor | Attention | Sequence[Tensor] | Sequence[Attention]"


class Signals(Mapping[str, Signal]):
    """An immutable mapping from name to value, with masks.

    Names are ``logits``, ``hidden.<stream>``, ``embedding.<modality>``,
    ``attention.text_to_image``, ``attention.image_to_text`` and ``attention.<stream>``; hidden and
    attention signals are sequences, one entry for each layer, bottom to top.

    The names that it iterates over remember masks, axes and reasons. So whoever rebuilds it as any
    mapping, ``type(signals)({name: f(value) for name, value in signals.items()})``, keeps them, on
    the device that ``f`` chose. ``copy.copy`` shares the values; a deep copy and a pickle compute
    every signal, and hold tensors without gradient: keep what you need, ``signals.only("logits")``,
    before. What cannot be computed raises the same error in them, when it is used.

    Args:
        values: name -> tensor, attention or sequence of them; or a function without arguments
            that computes it when it is first asked for.
        masks: name -> boolean mask of the positions that count, ``(b, n)`` for hidden states.
        axes: name -> what is known of the tokens along each of its token axes: (queries, keys) of
            an attention; or a function without arguments that says so.
        absent: name of a signal that this backbone cannot have -> why.

    Raises:
        SignalError: a rebuild with other examples, whose masks are not known.

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
        axes: Mapping[str, TokenAxes | Callable[[], TokenAxes]] | None = None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        given: Mapping[str, Any] = values._values if isinstance(values, Signals) else values
        names = [name for name in values if isinstance(name, Name)]
        absent = dict(absent or {})
        remembered = {n: why for name in names for n, why in name.absent.items() if n not in given}
        self._absent: dict[str, str] = {**remembered, **absent}
        self._values: dict[str, Any] = {str(n): v for n, v in given.items() if n not in absent}
        beside = {
            str(name): known_after_rebuild(name, _old_value(name), given[name])
            for name in names
            if name.beside is not None
        }
        for name in {**(masks or {}), **(axes or {})}:
            known = beside.get(name, Beside())
            beside[name] = Beside(
                (masks or {}).get(name, known.mask), (axes or {}).get(name, known.axes)
            )
        self._beside: dict[str, Beside] = beside
        self._derived: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Signal:
        if name in self._absent:
            raise SignalError(f"there is no signal {name!r}: {self._absent[name]}")
        held = self._values if name in self._values else self._derived
        if name not in held:
            raise unknown_name("signal", name, [*self._values, *self._derived])
        value: Any = held[name]
        if _is_later(value):
            value = held[str(name)] = make_trackable(value())
        return value  # type: ignore[no-any-return]

    def __contains__(self, name: object) -> bool:
        return name in self._values or name in self._derived

    def __iter__(self) -> Iterator[str]:
        beside = self._beside
        return (Name.of(name, self, self._absent, beside.get(name)) for name in self._values)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> ItemsView[str, Signal]:
        """Names and values; what cannot be computed is a value that raises why when it is used."""
        return _Items(self)

    def values(self) -> ValuesView[Signal]:
        """The values, as :meth:`items` has them."""
        return _Values(self)

    def mask(self, name: str, *, of_axes: bool = True) -> Tensor | None:
        """The positions of a signal that count; None: all do.

        Args:
            name: of the signal.
            of_axes: where no mask was given, look for one in what is known of its tokens.
        """
        known = self._beside.get(name)
        if known is None or known.mask is not None or not of_axes:
            return None if known is None else known.mask
        axes = known.axes()  # of what is computed late, the axis alone knows
        return axes[0].valid if len(axes) == 1 and axes[0] is not None else None

    def axes(self, name: str) -> TokenAxes:
        """The known facts about the tokens along a signal's axes; none: ``()``."""
        return self._beside[name].axes() if name in self._beside else ()

    @property
    def derived(self) -> frozenset[str]:
        """Signals that are not listed, since they are made of the others when they are asked for.

        Whoever rebuilds the mapping, pickles or concatenates it keeps those alone that are listed.
        """
        return frozenset(self._derived)

    @property
    def absent(self) -> Mapping[str, str]:
        """Signals that this backbone cannot have -> why."""
        return self._absent

    def detach(self) -> Signals:
        """The same signals without gradient."""
        return self._map(lambda x: x.detach(), TokenAxis.detach)

    def to(self, *args: Any, **kwargs: Any) -> Signals:
        """The same signals, with masks and axes, on another device or in another dtype.

        Only floating point values change their dtype. What is not computed yet is moved when it is.

        Args:
            args: as of :meth:`torch.Tensor.to`: a device, a dtype, both, or a tensor.
            kwargs: ``device``, ``dtype``, ``non_blocking``, ``copy``.

        Raises:
            OptionError: a dtype that is not floating point.

        Examples:
            >>> signals = Signals({"logits": torch.zeros(2, 5)})
            >>> signals.to("cpu", torch.float16)["logits"].dtype
            torch.float16
        """
        destination = Destination.of(args, kwargs)
        move = partial(move_value, destination=destination)
        return self._map(move, move, device=destination.device)

    def pin_memory(self) -> Signals:
        """The same signals in page-locked memory, from where they move without waiting."""
        return self._map(lambda x: x.pin_memory(), TokenAxis.pin_memory)

    def trackable(self) -> Signals:
        """The same signals, of which autograd may save every tensor for a backward.

        What a teacher made under ``torch.inference_mode()`` autograd refuses to save; such tensors
        are copied when they are asked for. Itself, where there are none, and inside of inference
        mode. A signal that is first computed outside of it is trackable anyway.

        Examples:
            >>> with torch.inference_mode():
            ...     signals = Signals({"logits": torch.zeros(2, 5)})
            >>> signals.trackable()["logits"].is_inference()
            False
        """
        if torch.is_inference_mode_enabled():
            return self
        beside = any(known.is_inference() for known in self._beside.values())
        if not beside and not any(map(made_in_inference, self._values.values())):
            return self
        return self._map(make_trackable, TokenAxis.trackable, later=True)

    def take(self, index: Tensor | slice) -> Signals:
        """Examples of the batch, of every signal and mask."""
        return self._map(
            lambda x: x.take(index) if isinstance(x, Attention) else x[index],
            lambda axis: axis.take(index),
            of_mask=lambda mask: chosen(mask, index),
            later=True,
            of_examples=True,
        )

    def with_values(
        self,
        values: Mapping[str, Signal | Callable[[], Signal]],
        masks: Mapping[str, Tensor] | None = None,
        *,
        axes: Mapping[str, TokenAxes | Callable[[], TokenAxes]] | None = None,
    ) -> Signals:
        """These signals and some more, which replace those of the same name.

        A value of the same examples and tokens keeps the mask and the axes of the one that it
        replaces. One without token axes, such as a mean over them, has none any more.

        Args:
            values: name -> value, or a function that computes it.
            masks: masks of the new values, in place of those that were known.
            axes: their token axes; ``()`` says that nothing is known.

        Raises:
            SignalError: a value of other examples or tokens, without its own masks and axes.

        Examples:
            >>> real = torch.ones(2, 5, dtype=torch.bool)
            >>> signals = Signals({"hidden.text": torch.zeros(2, 5, 8)}, {"hidden.text": real})
            >>> signals.with_values({"hidden.text": torch.ones(2, 5, 4)}).mask("hidden.text").shape
            torch.Size([2, 5])
        """
        more = Signals(values, masks, axes=axes)
        beside = dict(self._beside)
        for name, value in more._values.items():
            known = beside.pop(name, None)
            if known is not None and name not in more._beside:
                known = known_after_change(name, known, self._values.get(name), value)
                if known is not None:
                    beside[name] = known
        absent = {name: why for name, why in self._absent.items() if name not in more}
        return Signals._made({**self._values, **more._values}, {**beside, **more._beside}, absent)

    def with_derived(
        self,
        values: Mapping[str, Callable[[], Signal]],
        axes: Mapping[str, Callable[[], TokenAxes]],
        *,
        listed: Collection[str] = (),
    ) -> Signals:
        """These signals, and some that are made of them when they are asked for by name.

        Args:
            values: name -> a function that computes it.
            axes: name -> a function that says what is known of its token axes.
            listed: those that are listed with the others, and live as they do.
        """
        beside = {**self._beside, **{name: Beside(None, axes[name]) for name in axes}}
        more = {name: values[name] for name in listed if name in values}
        made = Signals._made({**self._values, **more}, beside, self._absent)
        made._derived = {name: one for name, one in values.items() if name not in more}
        return made

    def only(self, *names: str) -> Signals:
        """These signals alone: what is worth keeping of a forward."""
        beside = {name: known for name, known in self._beside.items() if name in names}
        return Signals._made({str(name): self[name] for name in names}, beside, self._absent)

    @classmethod
    def concatenate(cls, parts: Sequence[Signals]) -> Signals:
        """The examples of several forwards, one after another: a whole data set's signals.

        Reasons of absent signals are kept; what one part cannot compute, the whole cannot.

        Raises:
            SignalError: no parts, or parts with signals of other names.
            ShapeError: a signal of other sizes in one part than in another.

        Examples:
            >>> parts = [Signals({"logits": torch.zeros(b, 5)}) for b in (1, 2)]
            >>> Signals.concatenate(parts)["logits"].shape
            torch.Size([3, 5])
        """
        parts = list(parts)
        check_same_names([part._values for part in parts], [part._absent for part in parts])
        computed = [part._attempts() for part in parts]
        joined, beside = {}, {}
        for name in parts[0]._values:
            values = [found[name] for found in computed]
            joined[name] = concatenate(name, values)
            if any(name in part._beside for part in parts):
                known = [part._beside.get(name, Beside()) for part in parts]
                beside[name] = Beside.concatenate(
                    known, [count_examples(value) for value in values]
                )
        absent = {name: why for part in parts for name, why in part._absent.items()}
        return cls._made(joined, beside, absent)

    @classmethod
    def _made(
        cls,
        values: Mapping[str, Any],
        beside: Mapping[str, Beside],
        absent: Mapping[str, str],
    ) -> Signals:
        made = cls(values, absent=absent)
        made._beside = dict(beside)
        return made

    def _map(
        self,
        function: Callable[[Any], Any],
        of_axis: Callable[[TokenAxis], TokenAxis],
        *,
        of_mask: Callable[[Tensor], Tensor] | None = None,
        later: bool = False,
        device: torch.device | None = None,
        of_examples: bool = False,
    ) -> Signals:
        """Every signal through a function: now where it is computed, unless all are to be later.

        ``device`` is where the function brings them; None: it leaves them where they are. One
        ``of_examples`` leaves a head's parameters as they are.
        """

        def through(value: Any) -> Any:
            if isinstance(value, Sequence):
                return as_layers(value).map(function, later=later, device=device)
            return function(value)

        values = {
            name: partial(_through, through, self, name)
            if later or not isinstance(value, (Tensor, Attention, Layers, list, tuple))
            else through(value)
            for name, value in self._values.items()
        }
        beside = {
            name: known.map(of_mask or function, of_axis) for name, known in self._beside.items()
        }
        made = Signals._made(values, beside, self._absent)
        kept = PARAMETERS if of_examples else frozenset[str]()
        made._derived = {
            name: partial(_through, _same if name in kept else through, self, name)
            for name in self._derived
        }
        return made

    def _attempts(self) -> dict[str, Any]:
        """Every signal and layer, computed; a ``Refusal`` in place of one that cannot be."""

        def whole(value: Any) -> Any:
            return list(as_layers(value)) if isinstance(value, Sequence) else value

        return {str(name): attempt(partial(whole, value)) for name, value in self.items()}

    def __copy__(self) -> Signals:
        made = Signals.__new__(type(self))
        made.__dict__.update(self.__dict__)  # what one computes, the other need not
        return made

    def __getstate__(self) -> dict[str, Any]:
        """The contents of a deep copy or a pickle: every signal, without gradient."""
        values = {
            name: Layers(value) if isinstance(value, list) else make_portable(value)
            for name, value in self._attempts().items()
        }
        beside = {
            name: (make_portable(known.mask), known.attempt())
            for name, known in self._beside.items()
            if name in values
        }
        return {"values": values, "beside": beside, "absent": self._absent}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._values, self._absent = state["values"], state["absent"]
        self._derived = {}
        self._beside = {name: Beside(*known) for name, known in state["beside"].items()}

    def __repr__(self) -> str:
        return f"Signals({', '.join(self._values)})"


class _Items(ItemsView[str, Signal]):
    _mapping: Signals

    def __iter__(self) -> Iterator[tuple[str, Signal]]:
        for name in self._mapping:
            yield name, attempt(partial(self._mapping.__getitem__, name))


class _Values(ValuesView[Signal]):
    _mapping: Signals

    def __iter__(self) -> Iterator[Signal]:
        return (value for _, value in self._mapping.items())


def _is_later(value: Any) -> bool:
    """Whether a value is computed when it is first asked for."""
    return callable(value) and not isinstance(value, (Tensor, Attention, Sequence))


def _same(value: Any) -> Any:
    return value


def _through(function: Callable[[Any], Any], signals: Signals, name: str) -> Any:
    return function(signals[name])


def _old_value(name: Name) -> Any:
    """The value of which a name remembers something; None: it is gone."""
    source = name.source()
    return None if source is None else source._values.get(str(name))
