"""What a user may choose of the way in which a signal is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import CacheError
from .identity import check_same
from .reading import Piece
from .spec import Form, SignalSpec

Codings = Mapping[str, str]
"""Signal -> the coding that somebody has chosen for it."""

_OF_MAPS = {"map": "exact", "map:float16": "float16", "uint8": "uint8"}
_TOP = (8, 16, 32, 64, 128, 256, 512)


def codings_of(form: Form, pieces: Mapping[str, Piece], *, normalised: bool) -> dict[str, str]:
    """What a user may call a way to write this form -> its coding.

    ``normalised``: it is logits, and nothing but their probabilities is compared.
    """
    if form == "used":
        return {"exact": "exact", "float16": "float16"}
    if form == "log_probabilities":
        return _OF_MAPS
    found = ["exact", "float16", "bfloat16", "int8"]
    if normalised:
        classes = pieces[""].values.shape[-1]
        found += [f"top_k:{k}" for k in _TOP if k < classes]
    return {one: one for one in found}


def is_logits(name: str) -> bool:
    """Whether a signal's last axis is classes."""
    return name.partition(".")[0] == "logits"


def check_codings(place: str, signals: Sequence[SignalSpec], codings: Codings) -> None:
    """Refuse codings that are not those that a cache was filled with.

    Raises:
        CacheError: the signals, with both codings.
    """
    stored = {one.name: one for one in signals}
    check_named(codings, stored)
    names = {
        f"coding of {name!r}": (_called(stored[name]), chosen) for name, chosen in codings.items()
    }
    check_same(
        place,
        {name: one for name, (one, _) in names.items()},
        {name: chosen for name, (_, chosen) in names.items()},
    )


def _called(signal: SignalSpec) -> str:
    """What a user may call the way in which a signal was written."""
    coding = next(piece.coding for layer in signal.pieces for piece in layer.values())
    if signal.form == "log_probabilities":
        return next(name for name, one in _OF_MAPS.items() if one == coding)
    return coding


def check_named(codings: Codings, known: Iterable[str]) -> None:
    """Refuse codings of signals that are not stored."""
    unknown = set(codings) - set(known)
    if unknown:
        raise CacheError(
            f"a coding is given for {sorted(unknown)}, and the recipe needs {sorted(known)}"
        )
