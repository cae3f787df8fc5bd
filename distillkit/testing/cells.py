"""Does every patch lie where the grid says? One pixel is changed, and one token may move.

The pixel lies in the middle of a cell. Where attention has mixed the patches before the tokens can
be seen, it is silenced first: what is left of the tower moves the patch's own token, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._backbone.layout import ModalityTokens
from ..errors import DistillKitError
from .adapter_case import AdapterCase, Run, forward
from .movement import movement
from .perturb import images_of_batch, other_by_its_spread
from .sequences import TokenSequence, places_of
from .verdicts import NotApplicable, UnmetError, Unverified
from .words import special_mask_of

_LOCAL = 0.5  # of the tokens at most moves noticeably, where patches have not been mixed
_NOTICEABLE = 0.05  # of the farthest mover
_CLEARLY = 0.5  # of the farthest mover: a token that moves less is not the one that was changed


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of one picture of one example.

    Attributes:
        example: of the batch.
        picture: the number of the grid among the example's.
        row: of the cell.
        column: of the cell.
        grid: rows and columns of that picture.
        token: the position in the sequence that the layout gives it.
    """

    example: int
    picture: int
    row: int
    column: int
    grid: tuple[int, int]
    token: int

    def __str__(self) -> str:
        of = f" of picture {self.picture}" if self.picture else ""
        return f"row {self.row}, column {self.column}{of} of example {self.example}"


@dataclass(frozen=True, eq=False)
class Probe:
    """What one pixel moved.

    Attributes:
        cell: in whose middle it lies.
        places: ``(m,)``: the positions of the image's tokens in the sequence.
        by: ``(m,)``: how far each of them moved.
    """

    cell: Cell
    places: Tensor
    by: Tensor

    @property
    def own(self) -> float:
        return float(self.by[self.places == self.cell.token].max())

    @property
    def farthest(self) -> float:
        return float(self.by.max())

    @property
    def mover(self) -> int:
        return int(self.places[int(self.by.argmax())])

    @property
    def is_right(self) -> bool:
        return self.farthest > 0 and self.own == self.farthest

    @property
    def is_wrong(self) -> bool:
        return self.farthest > 0 and self.own <= _CLEARLY * self.farthest

    @property
    def spread(self) -> float:
        """The part of the tokens that move noticeably."""
        return float((self.by > _NOTICEABLE * self.farthest).float().mean())


def check_cells(case: AdapterCase) -> str:
    """The grid of every stream that has one; what was seen, in words."""
    seen = [_check_grid(case, sequence) for sequence in _with_grid(case.run)]
    if not seen:
        raise NotApplicable("no patch grid is declared")
    return "; ".join(dict.fromkeys(seen))


def _with_grid(run: Run) -> Iterator[TokenSequence]:
    """The first sequence of each stream that has image tokens with a grid."""
    streams: set[str] = set()
    for one in run.sequences:
        has_grid = one.tokens and "image" in one.tokens and one.tokens["image"].grid is not None
        if has_grid and one.stream not in streams:
            streams.add(one.stream)
            yield one


def _check_grid(case: AdapterCase, sequence: TokenSequence) -> str:
    cells = list(_cells(sequence))
    name, entry = _image_entry(case)
    order_only = entry.ndim < 4
    targets = _vectors(name, entry, cells) if order_only else _pixels(case, name, entry, cells)
    stream = sequence.stream
    probes, silenced = _silenced_probes(case, sequence, name, targets)
    if not any(probe.farthest for probe in probes):
        probes, silenced = list(_probes(case, sequence, name, targets)), 0
    seen = _judged(sequence, probes)
    how = "alone" if all(float((p.by > 0).sum()) <= 1 for p in probes) else "the most"
    after = f", with {silenced} other attentions silenced" if silenced else ""
    if order_only:
        raise Unverified(
            f"{seen} patches of stream {stream!r} come in the order of {name!r}, but that holds "
            "patches and no picture: nothing shows how many rows and columns they make"
        )
    return f"{seen} cells of stream {stream!r}: each moves its own patch {how}{after}"


def _silenced_probes(
    case: AdapterCase, sequence: TokenSequence, name: str, targets: list[Target]
) -> tuple[list[Probe], int]:
    """What each pixel moves where nothing else attends; nothing, where the model cannot run so."""
    with case.silenced(sequence.stream) as silenced:
        try:
            return list(_probes(case, sequence, name, targets)), silenced
        except (Unverified, DistillKitError):
            raise
        except Exception:  # a model may not take zeros; then its attention stays
            return [], 0


def _judged(sequence: TokenSequence, probes: list[Probe]) -> int:
    """How many cells move their own tokens.

    Raises:
        UnmetError: a cell moves another one's.
        Unverified: the patches are mixed, so that nothing can be said.
    """
    wrong = [probe for probe in probes if probe.is_wrong]
    spread = sum(probe.spread for probe in probes) / max(1, len(probes))
    if wrong and (spread <= _LOCAL or _moves_few(wrong)):
        first = wrong[0]
        raise UnmetError(
            f"a pixel in the middle of {first.cell} moves position {first.mover} of the "
            f"{sequence}, but the {first.cell.grid[0]} x {first.cell.grid[1]} grid has that cell "
            f"at position {first.cell.token}: {len(wrong)} of {len(probes)} cells are elsewhere"
        )
    still = [probe for probe in probes if not probe.farthest]
    if still:
        raise Unverified(
            f"a pixel in the middle of {still[0].cell} moves no token of the {sequence}: nothing "
            "shows where that cell is"
        )
    unclear = [probe for probe in probes if not probe.is_right]
    if unclear:
        raise Unverified(
            f"the image's tokens have been mixed before the {sequence} can be seen: a pixel in the "
            f"middle of {unclear[0].cell} moves {unclear[0].spread:.0%} of them, and others "
            f"farther than its own ({len(unclear)} of {len(probes)} cells)"
        )
    return len(probes)


def _moves_few(probes: list[Probe]) -> bool:
    """Whether each pixel moves one token and no other at all: nothing is mixed."""
    return all(int((probe.by > 0).sum()) == 1 for probe in probes)


def _cells(sequence: TokenSequence) -> Iterator[Cell]:
    """Every cell of every grid of every example, in the layout's order."""
    assert sequence.tokens is not None
    tokens = sequence.tokens["image"]
    places = places_of(sequence, "image")
    special = special_mask_of(tokens, torch.zeros_like(places, dtype=torch.bool))
    for example in range(len(places)):
        patches = places[example][~special[example]].tolist()
        grids = [(rows, columns) for rows, columns in _grids(tokens, example) if rows * columns]
        start = 0
        for picture, (rows, columns) in enumerate(grids):
            if start + rows * columns > len(patches):
                raise UnmetError(
                    f"the grids {grids} of example {example} have more cells than the "
                    f"{len(patches)} patches of the {sequence}"
                )
            for cell in range(rows * columns):
                row, column = divmod(cell, columns)
                token = patches[start + cell]
                yield Cell(example, picture, row, column, (rows, columns), token)
            start += rows * columns


def _grids(tokens: ModalityTokens, example: int) -> list[tuple[int, int]]:
    """The grids of one example's pictures."""
    grid = tokens.grid
    if isinstance(grid, Tensor):
        own: list[tuple[int, int]] = grid[example % len(grid)].tolist()
        return own
    return [] if grid is None else [grid]


def _image_entry(case: AdapterCase) -> tuple[str, Tensor]:
    backbone, batch = case.made
    entries = images_of_batch(batch, backbone.adapter)
    pictures = {name: x for name, x in entries.items() if x.ndim in (4, 5)}
    return next(iter((pictures or entries).items()))


Target = tuple[Cell, tuple[Any, ...]]
"""A cell, and where the entry is changed for it."""


def _pixels(case: AdapterCase, name: str, entry: Tensor, cells: list[Cell]) -> list[Target]:
    """The middle pixel of each cell."""
    pictures = _pictures(name, entry, cells)
    shown = _shown(case, entry)
    if len({cell.grid for cell in cells}) > 1 and len(shown) == 1:
        raise Unverified(
            f"the pictures have unequal grids, and {name!r} {tuple(entry.shape)} gives all of them "
            "one size: nothing says which part of it each fills"
        )
    found: list[Target] = []
    for cell in cells:
        at = pictures[cell.example][cell.picture]
        height, width = shown[cell.example % len(shown)]
        rows, columns = cell.grid
        y = int((cell.row + 0.5) * height / rows)
        x = int((cell.column + 0.5) * width / columns)
        found.append((cell, (*at, slice(None), y, x)))
    return found


def _pictures(name: str, entry: Tensor, cells: list[Cell]) -> list[list[tuple[int, ...]]]:
    """Where in the entry each picture of each example is."""
    examples = max(cell.example for cell in cells) + 1
    counts = [0] * examples
    for cell in cells:
        counts[cell.example] = max(counts[cell.example], cell.picture + 1)
    if entry.ndim == 5 and len(entry) == examples and max(counts) <= entry.shape[1]:
        return [[(i, k) for k in range(count)] for i, count in enumerate(counts)]
    if entry.ndim == 4 and len(entry) == sum(counts):
        order = iter(range(len(entry)))
        return [[(next(order),) for _ in range(count)] for count in counts]
    raise Unverified(
        f"{name!r} is {tuple(entry.shape)}, and the layout has {counts} pictures in the examples: "
        "which picture is which grid's cannot be told"
    )


def _shown(case: AdapterCase, entry: Tensor) -> list[tuple[int, int]]:
    """Height and width in pixels that each example's picture fills."""
    _, batch = case.made
    size = entry.shape[-2:]
    for x in batch.values():
        if isinstance(x, Tensor) and x.shape == (len(entry), *size) and not x.is_floating_point():
            real = x != 0
            heights, widths = real.any(2).sum(1).tolist(), real.any(1).sum(1).tolist()
            return list(zip(heights, widths, strict=True))
    return [(size[0], size[1])]


def _vectors(name: str, entry: Tensor, cells: list[Cell]) -> list[Target]:
    """The patch of each cell, where the entry holds patches one after another."""
    examples = max(cell.example for cell in cells) + 1
    numbers = [0] * examples
    found: list[Target] = []
    for cell in cells:
        number = numbers[cell.example]
        numbers[cell.example] += 1
        found.append((cell, (cell.example, number)))
    if entry.ndim == 3 and entry.shape[:2] == (examples, max(numbers)):
        return found
    if entry.ndim == 2 and len(entry) % len(cells) == 0:
        merged = len(entry) // len(cells)  # so many patches become one token
        return [(cell, (i * merged,)) for i, cell in enumerate(cells)]
    raise Unverified(
        f"{name!r} is {tuple(entry.shape)}, which is neither a picture nor one row for each of "
        f"{len(cells)} cells: where they lie in it cannot be told"
    )


def _probes(
    case: AdapterCase, sequence: TokenSequence, name: str, targets: list[Target]
) -> Iterator[Probe]:
    """One forward for each cell of the example that has the most, all examples at once."""
    backbone, batch = case.made
    before = forward(backbone, batch)
    index = case.run.sequences.index(sequence)
    places = places_of(sequence, "image")
    for group in _at_once(targets):
        changed = batch[name].clone()
        for cell, at in group:
            if not _is_inside(changed, at):
                raise Unverified(f"{cell} lies outside of {name!r} {tuple(changed.shape)}")
            changed[at] = other_by_its_spread(changed[at], batch[name])
        after = forward(backbone, {**batch, name: changed})
        moved = movement(before.sequences[index], after.sequences[index])
        of_image = moved.take_along_dim(places, 1)
        for cell, _ in group:
            yield Probe(cell, places[cell.example], of_image[cell.example])


def _at_once(targets: list[Target]) -> Iterator[list[Target]]:
    """Cells that are changed in one forward: one of each example."""
    by_example: dict[int, list[Target]] = {}
    for target in targets:
        by_example.setdefault(target[0].example, []).append(target)
    longest = max(map(len, by_example.values()))
    for number in range(longest):
        yield [own[number] for own in by_example.values() if number < len(own)]


def _is_inside(x: Tensor, at: tuple[Any, ...]) -> bool:
    sizes = zip(at, x.shape, strict=False)
    return all(isinstance(one, slice) or one < size for one, size in sizes)
