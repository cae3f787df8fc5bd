"""A signal's layers, bottom to top, each computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from .._attention import Attention
from .._transfer import Destination, portable, trackable
from ..errors import DistillKitError

Layer = TypeVar("Layer", Tensor, Attention)


class Layers(Sequence[Layer]):
    """A signal's layers, bottom to top, each computed when it is first asked for.

    Outside of ``torch.inference_mode()`` every layer is one that autograd may save: what was made
    inside of it is copied. A deep copy and a pickle compute every layer, and hold tensors without
    gradient. A layer that cannot be computed raises why when it is asked for; a loop over all
    layers, a rebuild and a copy get a :class:`Refusal` in its place.

    Args:
        layers: tensors, attentions, or functions without arguments that compute them.
        device: where those that are not computed yet will be, where that is known.

    Examples:
        >>> layers = Layers([torch.zeros(2, 3), lambda: torch.ones(2, 3)])
        >>> layers.to(torch.float64)[-1].dtype
        torch.float64
    """

    def __init__(
        self,
        layers: Sequence[Callable[[], Layer] | Layer],
        *,
        device: torch.device | None = None,
    ) -> None:
        self._compute: list[Any] = list(layers)
        self._computed: dict[int, Layer] = {
            position: layer
            for position, layer in enumerate(self._compute)
            if isinstance(layer, (Tensor, Attention)) or not callable(layer)
        }
        self._device = device

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        position = range(len(self))[index]
        if position not in self._computed:
            self._computed[position] = make_trackable(self._compute[position]())
        return self._computed[position]

    def __len__(self) -> int:
        return len(self._compute)

    def __iter__(self) -> Iterator[Any]:
        return (attempt(partial(self.__getitem__, position)) for position in range(len(self)))

    @property
    def computed(self) -> Sequence[Layer]:
        """The layers that somebody has asked for."""
        return tuple(self._computed.values())

    @property
    def device(self) -> torch.device | None:
        """Where they are, or will be; None: that is not known before one is computed."""
        found = next(iter(self._computed.values()), None)
        return getattr(found, "device", self._device)

    def to(self, *args: Any, **kwargs: Any) -> Layers[Layer]:
        """The same layers on another device or in another dtype, as :meth:`Attention.to`.

        Those that are not computed yet are moved when they are.
        """
        destination = Destination.of(args, kwargs)
        return self.map(partial(move_value, destination=destination), device=destination.device)

    def pin_memory(self) -> Layers[Layer]:
        """The same layers in page-locked memory, from where they move without waiting."""
        return self.map(lambda layer: layer.pin_memory())

    def detach(self) -> Layers[Layer]:
        """The same layers without gradient."""
        return self.map(lambda layer: layer.detach())

    def trackable(self) -> Layers[Layer]:
        """The same layers, of which autograd may save every tensor; as of an ``Attention``."""
        if torch.is_inference_mode_enabled() or not self.is_inference():
            return self
        return self.map(make_trackable, later=True)

    def is_inference(self) -> bool:
        """Whether a computed layer was made under ``torch.inference_mode()``."""
        return any(map(made_in_inference, self._computed.values()))

    def map(
        self,
        function: Callable[[Any], Any],
        *,
        later: bool = False,
        device: torch.device | None = None,
    ) -> Layers[Layer]:
        """Every layer through a function: now where it is computed, unless all are to be later.

        Args:
            function: of a tensor or an attention.
            later: compute nothing now.
            device: where the function brings layers; None: it leaves them where they are.
        """
        return Layers(
            [
                partial(_through, function, self, position)
                if later or position not in self._computed
                else function(self._computed[position])
                for position in range(len(self))
            ],
            device=device or self.device,
        )

    def __copy__(self) -> Layers[Layer]:
        return self.map(lambda layer: layer)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(map(make_portable, self)),)


class Refusal:
    """In place of a value that could not be computed: whatever is asked of it raises the error.

    Libraries walk through all that a model returns, also what nobody compares and nobody recorded;
    they find nothing in it, and leave it as it is.

    Args:
        error: what was raised; its traceback, which holds a forward's tensors, is not kept.

    Examples:
        >>> from distillkit.errors import CaptureError
        >>> refusal = Refusal(CaptureError("the image tower did not run"))
        >>> hasattr(refusal, "dtype")
        False
        >>> refusal.scores()
        Traceback (most recent call last):
        distillkit.errors.CaptureError: the image tower did not run
    """

    def __init__(self, error: DistillKitError) -> None:
        self._kind, self._message = type(error), str(error)

    def __call__(self) -> NoReturn:
        raise self._kind(self._message)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _as_attribute_error(self._kind)(self._message)


def _as_attribute_error(kind: type[DistillKitError]) -> type[DistillKitError]:
    """The kind of error, from which ``hasattr`` also learns that there is no such attribute."""
    return type(kind.__name__, (kind, AttributeError), {"__module__": kind.__module__})


def attempt(compute: Callable[[], Any]) -> Any:
    """Call a function; return its result, or a :class:`Refusal`."""
    try:
        return compute()
    except DistillKitError as error:
        return Refusal(error)


def as_layers(value: Sequence[Any]) -> Layers[Any]:
    """Any sequence of layers as ``Layers``; nothing is computed for it."""
    if isinstance(value, Layers):
        return value
    if isinstance(value, (list, tuple)):
        return Layers(value)
    return Layers([partial(value.__getitem__, position) for position in range(len(value))])


def move_value(value: Any, destination: Destination) -> Any:
    """A tensor or an attention at a destination."""
    return (
        destination.move(value) if isinstance(value, Tensor) else value.to(**destination._asdict())
    )


def make_trackable(value: Any) -> Any:
    """A value of which autograd may save every tensor, outside of inference mode."""
    if isinstance(value, Tensor):
        return trackable(value)
    if isinstance(value, (list, tuple)):
        return Layers(value).trackable() if any(map(made_in_inference, value)) else value
    return value.trackable() if isinstance(value, (Attention, Layers)) else value


def made_in_inference(value: Any) -> bool:
    """Whether what is computed of a value holds a tensor of ``torch.inference_mode()``."""
    if isinstance(value, (list, tuple)):
        return any(map(made_in_inference, value))
    return isinstance(value, (Tensor, Attention, Layers)) and value.is_inference()


def make_portable(value: Any) -> Any:
    """The value as a copy or a pickle holds it."""
    return portable(value) if isinstance(value, Tensor) else value


def _through(function: Callable[[Any], Any], layers: Layers[Any], position: int) -> Any:
    return function(layers[position])
