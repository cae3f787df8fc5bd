"""How a tensor goes elsewhere: to another device, into a copy, out of inference mode."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch_private import innermost, is_functorch_wrapped_tensor
from .errors import OptionError


class Destination(NamedTuple):
    """Where :meth:`torch.Tensor.to` brings tensors; only floating point ones change their dtype."""

    device: torch.device | None
    dtype: torch.dtype | None
    non_blocking: bool
    copy: bool

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Destination:
        """The destination that the arguments of ``tensor.to(...)`` name.

        Raises:
            OptionError: a dtype that is not floating point, a memory format.
            TypeError: arguments that ``tensor.to`` does not take.

        Examples:
            >>> Destination.of(("cpu", torch.float16), {"non_blocking": True})[:3]
            (device(type='cpu'), torch.float16, True)
        """
        rest = dict(kwargs)
        memory_format = rest.pop("memory_format", None)
        first = args[0] if args else rest.get("other")
        if isinstance(first, Tensor):
            found = _to_place_of(*args, **rest)
        elif isinstance(first, torch.dtype):
            found = _to_dtype(*args, **rest)
        else:
            found = _to_device(*args, **rest)
        dtype = found.dtype
        if dtype is not None and not dtype.is_floating_point:
            raise OptionError(f"to() takes floating point dtypes; got {dtype}")
        if memory_format is not None:
            raise OptionError(f"to() takes no memory format; got {memory_format}")
        return found

    def move(self, x: Tensor) -> Tensor:
        """The tensor there; itself if it is there already."""
        dtype = self.dtype if x.is_floating_point() else None
        return x.to(device=self.device, dtype=dtype, non_blocking=self.non_blocking, copy=self.copy)

    def move_scores(self, x: Tensor) -> Tensor:
        """Scores or a bias there: what their own dtype drops stays dropped, and nothing else is.

        An entry counts as dropped at or below half of its dtype's lowest number, which is another
        number after a conversion.
        """
        if self.dtype in (None, x.dtype) or not x.is_floating_point():
            return self.move(x)
        assert self.dtype is not None
        kept = x > torch.finfo(x.dtype).min / 2
        # clamped in the wider of both dtypes, so that the bound itself is a number
        wide = x.to(torch.promote_types(x.dtype, self.dtype))
        bounded = wide.clamp_min(torch.finfo(self.dtype).min / 4)
        return self.move(torch.where(kept, bounded, -torch.inf))


# the three ways to call ``tensor.to``; a wrong argument is Python's TypeError


def _to_device(
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002 (torch's own)
    copy: bool = False,  # noqa: FBT001, FBT002
) -> Destination:
    place = None if device is None else torch.device(device)
    if not (dtype is None or isinstance(dtype, torch.dtype)):
        raise TypeError(f"to(): dtype is a torch.dtype; got {dtype!r}")
    return Destination(place, dtype, non_blocking, copy)


def _to_dtype(
    dtype: torch.dtype,
    non_blocking: bool = False,  # noqa: FBT001, FBT002
    copy: bool = False,  # noqa: FBT001, FBT002
) -> Destination:
    return Destination(None, dtype, non_blocking, copy)


def _to_place_of(
    other: Tensor,
    non_blocking: bool = False,  # noqa: FBT001, FBT002
    copy: bool = False,  # noqa: FBT001, FBT002
) -> Destination:
    return Destination(other.device, other.dtype, non_blocking, copy)


def is_inference(x: Tensor) -> bool:
    """Whether a tensor was made under ``torch.inference_mode()``, inside of ``vmap`` too."""
    return innermost(x).is_inference()  # a mapped tensor itself always says no


def is_fleeting(x: Tensor) -> bool:
    """Whether a tensor is of use only where it was made: in a transform, or in inference mode."""
    return is_functorch_wrapped_tensor(x) or x.is_inference()


def trackable(x: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made under ``torch.inference_mode()``.

    Autograd refuses to save a tensor of inference mode for a backward. While a compiler traces,
    which refuses the question, and inside of inference mode every tensor is returned as it is.

    Examples:
        >>> with torch.inference_mode():
        ...     x = torch.ones(2)
        >>> x.is_inference(), trackable(x).is_inference()
        (True, False)
    """
    if torch.compiler.is_compiling() or not is_inference(x):
        return x
    return x if torch.is_inference_mode_enabled() else x.clone()


def portable(x: Tensor) -> Tensor:
    """A tensor for a copy or a file: without gradient, and without what it is only a view of."""
    x = x.detach()
    if x.layout != torch.strided:
        return x
    # a pickled view brings the whole storage along: that of a batch, for one of its examples
    partial = x.untyped_storage().nbytes() > x.numel() * x.element_size()
    return x.clone() if partial else x
