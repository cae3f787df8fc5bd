"""What is still known of a signal once another value stands under its name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._attention import Attention
from ..errors import SignalError
from .beside import Beside, Name
from .joining import first_computed
from .layers import Layers


def known_after_rebuild(name: Name, old: Any, value: Any) -> Beside:
    """The facts that a name remembers, for a new value under it.

    Args:
        name: with what is known of the old value.
        old: the value that was there; None: it is gone.
        value: the new one.

    Raises:
        SignalError: the value is of other examples than those of which it is known.
    """
    assert name.beside is not None
    if old is value:
        return name.beside
    before, after = first_computed(old), first_computed(value)
    if before is not None and after is not None and _form(before) != _form(after):
        raise SignalError(
            f"{str(name)!r} was {tuple(before.shape)} and is now {tuple(after.shape)}, so what is "
            "known of its padding and tokens is wrong. signals.take(index) chooses examples, "
            "Signals.concatenate(parts) joins forwards (a DataLoader's collate_fn), and "
            "signals.with_values({...}) replaces a value; plain names, str(name), forget the masks"
        )
    return _beside(name.beside, value)


def known_after_change(name: str, known: Beside, old: Any, value: Any) -> Beside | None:
    """The facts about a signal, for a value that somebody puts in its place on purpose.

    Args:
        name: what errors call the signal.
        known: what is known of the old value.
        old: the value that was there.
        value: the new one; one that is not computed is taken to have the same tokens.

    Returns:
        What holds; None: nothing, the value has no token axes any more.

    Raises:
        SignalError: the new value has other examples or tokens.
    """
    before, after = first_computed(old), first_computed(value)
    if after is None:
        return known
    attends = isinstance(after, Attention)
    if before is not None and _kind(before) != _kind(after):
        return None
    sizes = None if before is None else before.shape
    if before is None and known.mask is not None and not attends:
        sizes = known.mask.shape
        if len(after.shape) < len(sizes):
            return None
    if sizes is not None:
        places = (0, 2, 3) if attends else range(min(2, len(sizes)))
        if any(sizes[i] != after.shape[i] for i in places):
            raise SignalError(
                f"{name!r} was {tuple(sizes)} and is now {tuple(after.shape)}, so what is known of "
                "its padding and tokens is wrong: say what is known of the new ones, "
                f"with_values({{...}}, masks={{{name!r}: ...}}, axes={{{name!r}: ...}}); "
                f"axes={{{name!r}: ()}} says that nothing is"
            )
    return _beside(known, value)


def _beside(known: Beside, value: Any) -> Beside:
    """The same on the device of a new value."""
    source = value if isinstance(value, Layers) else first_computed(value)
    device = getattr(source, "device", None)
    return known if device is None else known.to(device)


def _kind(value: Tensor | Attention) -> tuple[bool, int]:
    return isinstance(value, Attention), len(value.shape)


def _form(value: Tensor | Attention) -> tuple[int, ...]:
    """The number of axes and of examples."""
    return (len(value.shape), *value.shape[:1])
