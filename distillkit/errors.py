"""Every error and warning that the library raises on purpose; each message says the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 50  # of the known names, where none is near


class DistillKitError(Exception):
    """The common ancestor: one ``except`` clause catches them all."""


class UnknownNameError(DistillKitError, ValueError):
    """A name that nothing provides: a loss, a recipe, an adapter, a signal, an option."""


class PluginConflictError(DistillKitError, ValueError):
    """Two distributions provide one name."""


class SpecError(DistillKitError, ValueError):
    """A plugin hands over something that describes nothing: a name, a field, a reference."""


class ShapeError(DistillKitError, ValueError):
    """Tensors whose shapes or dtypes do not fit together."""


class OptionError(DistillKitError, ValueError):
    """An option outside its range."""


class CaptureError(DistillKitError):
    """A capture that would be empty, ambiguous or wrong."""


class SignalError(DistillKitError):
    """A signal that a model does not expose, or not in a usable way."""


class RecipeError(DistillKitError, ValueError):
    """A recipe that does not say what it means."""


class CacheError(DistillKitError):
    """A signal cache that is damaged, lacks something, or is of another teacher or recipe."""


class LogError(DistillKitError):
    """A run log that is missing, damaged, of another version, or written by somebody else."""


class CacheWarning(UserWarning):
    """A signal cache that may not be what it seems."""


class CaptureWarning(UserWarning):
    """Modules that look like attention, and show none that can be read."""


class PluginLoadWarning(UserWarning):
    """A plugin that was left out, and why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known ones, or all of them.

    Examples:
        >>> did_you_mean("kl_divergance", ["kl_divergence", "mse"])
        "did you mean 'kl_divergence'?"
        >>> did_you_mean("x", ["mse", "kl_divergence"])
        "known: 'kl_divergence', 'mse'"
    """
    names = sorted(known)
    folded = {one.casefold(): one for one in names}
    near = [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, n=3)]
    near = near or [one for one in names if len(name) > 1 and name.casefold() in one.casefold()]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    if not names:
        return "there are none"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"known: {', '.join(map(repr, names[:_LISTED]))}{more}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that nothing provides, with the nearest names that exist."""
    return UnknownNameError(f"no {kind} is called {name!r}; {did_you_mean(name, known)}")
