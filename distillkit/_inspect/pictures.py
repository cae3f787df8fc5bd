"""Which token of a sequence is which patch of which picture, and how many rows they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..testing.perturb import other_by_its_spread
from .entries import other_numbers
from .probe import Probe, codes

_PICTURES = 32  # so many are changed one by one
_DEEP = 4  # axes of a picture: examples, channels, height, width


@dataclass(frozen=True, eq=False)
class PatchesFound:
    """The image's tokens in a sequence.

    Attributes:
        entry: the batch entry that holds the image.
        shape: of that entry.
        picture: which picture each token is of, ``(b, n)``; -1: of none.
        cell: which of its picture's patches, in the order of the entry, ``(b, n)``; -1: of none.
        grids: rows and columns of each picture; None where the entry is patches, not a picture.
        merged: so many vectors of the entry become one token.
        size: height and width of a picture in pixels.
        mixed: tokens that only all patches together move: attention has made them, ``(b, n)``.
        follows: whether a larger picture has more patches of the same size.
        problem: what could not be seen; empty: nothing.
    """

    entry: str
    shape: tuple[int, ...]
    picture: Tensor
    cell: Tensor
    grids: tuple[tuple[int, int], ...] | None = None
    merged: int = 1
    size: tuple[int, int] | None = None
    mixed: Tensor | None = None
    follows: bool = False
    problem: str = ""


def find_patches(probe: Probe, mixed: Tensor) -> PatchesFound | None:
    """The patches of a sequence; None: the image moves none of its tokens.

    Args:
        probe: the sequence.
        mixed: the tokens that another image moves while everything attends, ``(b, n)``.
    """
    for entry, x in probe.entries.images.items():
        moved = probe.moved({**probe.entries.batch, entry: other_numbers(x)}) > 0
        if not bool(moved.any()) and not bool(mixed.any()):
            continue
        nothing = torch.full(moved.shape, -1)
        base = PatchesFound(entry, tuple(x.shape), nothing, nothing, mixed=mixed & ~moved)
        if not bool(moved.any()):
            return base
        if x.ndim >= _DEEP:
            return _pictures(probe, base, x, moved)
        return _vectors(probe, base, x, moved)
    return None


def _with(base: PatchesFound, **changes: Any) -> PatchesFound:
    return PatchesFound(**{**vars(base), **changes})


def _pictures(probe: Probe, base: PatchesFound, x: Tensor, moved: Tensor) -> PatchesFound:
    height, width = x.shape[-2:]
    places = list(_leading(x))
    if x.shape[-3] > 4:
        return _with(base, picture=torch.where(moved, 0, -1), problem=(
            f"{base.entry!r} {tuple(x.shape)} is no (..., channels, height, width)"
        ))  # fmt: skip
    picture = _picture_of(probe, base.entry, x, places, moved)
    if picture is None:
        return _with(base, picture=torch.where(moved, 0, -1), problem=(
            "a picture moves tokens of several examples, or two move the same token"
        ))  # fmt: skip
    counts = [int((picture == i).sum()) for i in range(len(places))]
    base = _with(base, picture=picture, size=(height, width))
    for grids in _candidates(counts, height, width):
        cell = _cells(probe, base.entry, x, places, grids, picture)
        if cell is not None:
            follows = x.ndim == _DEEP and _follows(probe, base.entry, x, grids)
            return _with(base, cell=cell, grids=grids, follows=follows)
    return _with(base, problem="no pixel moves one patch alone")


def _follows(probe: Probe, entry: str, x: Tensor, grids: tuple[tuple[int, int], ...]) -> bool:
    """Whether a picture that is one patch higher has a row of patches more."""
    rows, columns = grids[0]
    side, rest = divmod(x.shape[2], rows)
    if rest or x.shape[3] != side * columns or len(set(grids)) > 1:
        return False
    higher = torch.cat([x, x[:, :, :side]], 2)
    try:
        seen = probe.watched.forward({**probe.entries.batch, entry: higher})
    except Exception:  # the model takes one size
        return False
    return seen.entering[probe.tower].of(probe.side).shape[2] == probe.length + columns


def _leading(x: Tensor) -> Iterator[tuple[int, ...]]:
    """Where each picture is in the entry."""
    shape = x.shape[:-3]
    for i in range(shape.numel()):
        yield tuple(int(one) for one in torch.unravel_index(torch.tensor(i), shape))


def _picture_of(
    probe: Probe, entry: str, x: Tensor, places: Sequence[tuple[int, ...]], moved: Tensor
) -> Tensor | None:
    """Which picture each token is of; one for each example, or each changed on its own."""
    if len(places) == probe.examples and len(places) > _PICTURES:
        return torch.where(moved, torch.arange(len(places))[:, None], -1)
    found = torch.full(moved.shape, -1)
    for i, place in enumerate(places[:_PICTURES]):
        changed = x.clone()
        changed[place] = other_numbers(x[place])
        own = probe.moved({**probe.entries.batch, entry: changed}) > 0
        if int(own.any(1).sum()) > 1 or bool((found[own] >= 0).any()):
            return None
        found[own] = i
    return found if bool(((found >= 0) == moved).all()) else None


def _candidates(
    counts: Sequence[int], height: int, width: int
) -> Iterator[tuple[tuple[int, int], ...]]:
    """Rows and columns of all pictures, the most alike to their sides first."""
    most = max(counts)
    shapes = [(r, most // r) for r in range(1, most + 1) if most % r == 0]
    for rows, columns in sorted(shapes, key=lambda s: abs(s[0] * width - s[1] * height)):
        grids = []
        for count in counts:
            fits = count == most or not count
            grids.append((rows, columns) if fits else _alike(count, rows / columns))
        yield tuple(grids)


def _alike(count: int, ratio: float) -> tuple[int, int]:
    shapes = [(r, count // r) for r in range(1, count + 1) if count % r == 0]
    return min(shapes, key=lambda s: abs(s[0] / s[1] - ratio))


def _cells(
    probe: Probe,
    entry: str,
    x: Tensor,
    places: Sequence[tuple[int, ...]],
    grids: tuple[tuple[int, int], ...],
    picture: Tensor,
) -> Tensor | None:
    """Which cell each token is, by the pixel in its middle; None: it is another grid."""
    height, width = x.shape[-2:]
    most = max(rows * columns for rows, columns in grids)
    other = other_by_its_spread(x, x)

    def change(cells: Tensor) -> dict[str, Any]:
        changed = x.clone()
        for place, (rows, columns) in zip(places, grids, strict=True):
            for cell in cells[: rows * columns].nonzero()[:, 0].tolist():
                row, column = divmod(cell, columns)
                y, z = int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)
                changed[place][:, y, z] = other[place][:, y, z]
        return {**probe.entries.batch, entry: changed}

    found = codes(probe, most, change)
    if found is None or bool(((found < 0) & (picture >= 0)).any()):
        return None
    found = torch.where(picture >= 0, found, -1)
    for i, (rows, columns) in enumerate(grids):
        own = found[picture == i]
        if len(own) and sorted(own.tolist()) != list(range(rows * columns)):
            return None
    return found


def _vectors(probe: Probe, base: PatchesFound, x: Tensor, moved: Tensor) -> PatchesFound:
    """Patches that the entry holds one after another, ``(b, p, d)`` or ``(p, d)``."""
    rows = x.flatten(0, -2)
    tokens = int(moved.sum())
    per_example = x.shape[1] if x.ndim == 3 else None
    merged = 1 if per_example is not None else len(rows) // tokens
    picture = torch.where(moved, 0, -1)
    if per_example is None and len(rows) % tokens:
        return _with(base, picture=picture, problem=(
            f"{tokens} tokens are no whole part of the {len(rows)} vectors of {base.entry!r}"
        ))  # fmt: skip

    def change(groups: Tensor) -> dict[str, Any]:
        chosen = groups.repeat_interleave(merged)
        if per_example is not None:
            chosen = chosen.repeat(len(x))
        changed = torch.where(chosen[:, None], other_by_its_spread(rows, rows), rows)
        return {**probe.entries.batch, base.entry: changed.view_as(x)}

    cell = codes(probe, per_example or tokens, change)
    if cell is None or bool(((cell >= 0) != moved).any()):
        return _with(base, picture=picture, problem="no patch moves one token alone")
    if per_example is not None and len(x) == probe.examples:
        picture = torch.where(moved, torch.arange(len(x))[:, None], -1)
    return _with(base, picture=picture, cell=cell, merged=merged)
