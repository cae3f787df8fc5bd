"""The ``[[tokens.<stream>]]`` tables of a sequence, from what was seen of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .entries import says_ids
from .facts import Facts, image_tokens
from .lines import Hint, Line, Table
from .rows import GridRun, Patch, UnknownOrderError, grid_runs
from .sizes import SizesFound, find_sizes
from .streams import LEARNED

_OF_IMAGES = ("image", "vision", "visual", "video", "img", "boi", "eoi", "im_", "media")
_SHOWN = Hint(
    "uncropped = true",
    "if the processor shows the model the whole image; else `box` or `extents`",
)


@dataclass(frozen=True)
class Marks:
    """The entry whose values say which tokens are the image's."""

    entry: str
    values: tuple[int, ...]
    tokens: Tensor


def run_tables(stream: str, facts: Facts) -> list[Table]:
    """The runs of one sequence, in their order."""
    header = f"[[tokens.{stream}]]"
    marks = _marks(facts)
    if marks is not None:
        found = _marked_image(facts, marks)
        found += [Table(lines=lines) for lines in [_markers(facts, marks)] if lines]
        found.append(Table(lines=_words(facts)))
    else:
        found = [Table(lines=lines) for lines in _positional(facts)]
    for table in found:
        table.header = header
    return found


def _marks(facts: Facts) -> Marks | None:
    """An entry of the sequence's length that has values of its own where the image's tokens are."""
    words = facts.words
    if words is None or words.problem or words.length != facts.length:
        return None
    entries = facts.probe.entries
    tensors = entries.tensors
    of_image = image_tokens(facts)
    if not facts.is_joint:
        return None
    if not bool(of_image.any()):
        of_image = torch.isin(words.words, entries.placeholders.to(words.words))
    candidates = [words.entry, *entries.masks, *entries.words]
    for entry in dict.fromkeys(candidates):
        x = tensors[entry]
        if x.shape != of_image.shape or not bool(of_image.any()):
            continue
        values = torch.unique(x[of_image].long())
        tokens = torch.isin(x.long(), values)
        others = tokens & ~of_image
        if not bool((others & entries.are_free(words.words)).any()):
            return Marks(entry, tuple(values.tolist()), tokens)
    return None


def _marked_image(facts: Facts, marks: Marks) -> list[Table]:
    values: int | list[int] = marks.values[0] if len(marks.values) == 1 else list(marks.values)
    if facts.probe.entries.tensors[marks.entry].is_floating_point():
        why = f"the image's tokens are where it is {values}, but `where` takes integers: give those"
        hint = Hint(f'where = "{marks.entry}"', why, is_missing=True)
        return [Table(lines=[Line("modality", "image"), hint])]
    where = [Line("modality", "image"), Line("where", marks.entry), Line("equals", values)]
    counts: list[int] = marks.tokens.sum(1).tolist()
    same = counts[0] if len(set(counts)) == 1 else None
    if not bool(image_tokens(facts).any()):
        where[2] = Line("equals", values, "by the name in the model's config: no image moves them")
        return [Table(lines=[*where, _no_grid("another image moves no token")])]
    lines, runs = _image_lines(facts, marks.tokens, counts, same)
    if runs is None:
        return [Table(lines=[*where, *lines])]
    return [Table(lines=[*where, *one]) for one in runs]


def _markers(facts: Facts, marks: Marks) -> list[Line | Hint]:
    """Tokens around an image that are no words, by their names in the model's config."""
    words = facts.words
    assert words is not None
    present = set(torch.unique(words.words[~marks.tokens]).tolist())
    named = facts.probe.entries.named
    found = {
        value: names
        for value, names in named.items()
        if value in present and any(part in name for name in names for part in _OF_IMAGES)
    }
    if not found:
        return []
    said = ", ".join(names[0] for names in found.values())
    return [Line("modality", "marker"), Line("where", words.entry),
            Line("equals", list(found), f"{said} of the model's config")]  # fmt: skip


def _words(facts: Facts) -> list[Line | Hint]:
    """The run of the words."""
    words = facts.words
    assert words is not None
    lines: list[Line | Hint] = [Line("modality", "text"), Line("length", words.entry)]
    if not says_ids(words.entry):
        lines.append(Line("ids", words.entry))
    lines += _padding(facts, words.start, words.length, words.entry)
    return [*lines, *_special_words(facts)]


def _padding(facts: Facts, start: int, length: int, about: str) -> list[Line | Hint]:
    fitting = [one for one in facts.padding if (one.start, one.length) == (start, length)]
    if fitting:
        one = fitting[0]
        if not one.by_count:
            return [Line("mask", one.entry)]
        side = [Line("padding", "left")] if one.side == "left" else []
        return [Line("lengths", one.entry), *side]
    entries = facts.probe.entries
    shape = entries.tensors[about].shape[:2] if about in entries.tensors else None
    words = facts.words
    if words is not None and words.entry == about and words.moved is not None:
        for name, mask in entries.masks.items():
            real = mask != 0
            if real.shape != shape or bool(real.all()):
                continue
            if torch.equal(words.moved, real & entries.are_free(words.words)):
                return [Line("mask", name, "other words where it is 0 move nothing")]
    alike = [n for n, x in entries.masks.items() if x.shape == shape and "mask" in n]
    if alike:
        return [Hint(f'mask = "{alike[0]}"', "taking a token out of it hides no key here")]
    return []


def _special_words(facts: Facts) -> list[Line | Hint]:
    words = facts.words
    assert words is not None
    named = facts.probe.entries.named
    present = set(torch.unique(words.words).tolist())
    by_name = {
        value: names
        for value, names in named.items()
        if value in present
        and not (facts.is_joint and any(part in one for one in names for part in _OF_IMAGES))
    }
    if by_name:
        said = ", ".join(names[0] for names in by_name.values())
        return [Line("special_ids", sorted(by_name), f"{said} of the model's config")]
    first = words.words[:, 0]
    alone = int((words.words == first[0]).sum()) == len(words.words)
    starts_all = alone and bool((first == first[0]).all()) and int(first[0]) not in named
    if len(first) > 1 and starts_all:
        if len(first) > 2:
            return [Line("special", [0], f"vocabulary entry {int(first[0])} starts every text")]
        why = f"if vocabulary entry {int(first[0])}, which starts both texts, is no word"
        return [Hint("special = [0]", why)]
    return []


def _no_grid(why: str) -> Hint:
    return Hint("grid = [rows, columns]", f"{why}: say how the patches lie", is_missing=True)


def _image_lines(
    facts: Facts, tokens: Tensor, counts: Sequence[int], same: int | None
) -> tuple[list[Line | Hint], list[list[Line | Hint]] | None]:
    """What is said of the image's tokens: of one run that cannot be divided, or of each run."""
    patches = facts.patches
    assert patches is not None
    length: list[Line | Hint] = [] if same is None else [Line("length", same)]
    if bool((patches.picture < 0).all()):
        if patches.mixed is None or not bool((patches.mixed | ~tokens).all()):
            return [*length, _no_grid("another image moves only some of these tokens")], None
        made = "attention makes each of them of all patches"
        return [*length, Line("nowhere", value=True, comment=made)], None
    if facts.is_shuffled:
        why = "the image's tokens come in another order in every forward, which no file can say: "
        why += "write a class, whose `returns` names the method that knows the order"
        return [*length, Hint("positions", why, is_missing=True)], None
    if bool((patches.cell < 0).all()):
        return [*length, _no_grid(patches.problem)], None
    try:
        runs = [_example_runs(facts, tokens, i) for i in range(len(tokens))]
    except UnknownOrderError as error:
        return [*length, _no_grid(str(error))], None
    sizes = find_sizes(facts.probe.entries.sizes, patches, counts)
    if sizes is not None:
        return [], [_by_sizes(runs, sizes, len(counts))]
    if patches.grids is None:
        vectors = [Line("length", patches.entry)] if len(patches.shape) == 3 and same else length
        return [*vectors, *_of_vectors(facts)], None
    if any(one != runs[0] for one in runs):
        why = f"examples have unequal images ({_told(runs)}): name the entry that says their sizes"
        return [Hint('grid = "<entry>"', why, is_missing=True)], None
    return [], [_fixed(run, facts) for run in runs[0]]


def _of_vectors(facts: Facts) -> list[Line | Hint]:
    """Regions, or patches whose rows no entry says."""
    boxes = [
        name
        for name, x in facts.probe.entries.tensors.items()
        if x.ndim == 3 and x.shape[-1] == 4 and x.is_floating_point()
    ]
    if boxes:
        return [Hint(f'extents = "{boxes[0]}"', "if it is top, left, bottom, right as fractions")]
    return [Hint("grid = [rows, columns]", "if these are the patches of an image in rows")]


def _told(runs: Sequence[Sequence[GridRun]]) -> str:
    return "; ".join(", ".join(str(run.grid) for run in own) or "none" for own in runs)


def _example_runs(facts: Facts, tokens: Tensor, example: int) -> list[GridRun]:
    patches = facts.patches
    assert patches is not None
    own = tokens[example].nonzero()[:, 0].tolist()
    pictures, cells = patches.picture[example].tolist(), patches.cell[example].tolist()
    listed = [Patch(pictures[i], cells[i]) if pictures[i] >= 0 else None for i in own]
    return grid_runs(listed, patches.grids)


def _by_sizes(
    runs: Sequence[Sequence[GridRun]], sizes: SizesFound, examples: int
) -> list[Line | Hint]:
    first = runs[0][0]
    alike = "" if sizes.varies else "its images are of one size here: take others to see more"
    lines: list[Line | Hint] = [Line("grid", sizes.entry, alike)]
    if sizes.merge > 1:
        lines.append(Line("merge", sizes.merge))
    if first.newlines:
        lines.append(Line("newlines", value=True))
    if first.special:
        lines.append(Line("special", list(first.special)))
    if sizes.images != examples:
        lines.append(Line("images", value=True))
    return [*lines, _SHOWN]


def _fixed(run: GridRun, facts: Facts) -> list[Line | Hint]:
    assert run.grid is not None
    patches = facts.patches
    assert patches is not None
    sides = [side / n for side, n in zip(patches.size or (), run.grid, strict=False)]
    is_square = len(set(sides)) == 1 and sides[0] == int(sides[0])
    lines: list[Line | Hint] = [Line("grid", list(run.grid))]
    if patches.follows and is_square and run.images == 1:
        lines = [Line("patch", int(sides[0]), "a larger image makes more of them")]
        if patches.entry != "pixel_values":
            lines.append(Line("pixels", patches.entry))
    elif is_square:
        lines[0] = Line("grid", list(run.grid), f"each of {int(sides[0])} x {int(sides[0])} pixels")
    if run.special:
        lines.append(Line("special", list(run.special)))
    if run.newlines:
        lines.append(Line("newlines", value=True))
    if run.images > 1:
        lines.append(Line("images", run.images, "or `frames`, or `tiles` of one image"))
    return [*lines, _SHOWN]


def _positional(facts: Facts) -> list[list[Line | Hint]]:
    """Runs one after another: the words, and what stands before and after them."""
    words, n = facts.words, facts.length
    if words is not None and words.problem:
        why = f"{words.problem}: say where the words of {words.entry!r} are"
        return [[Line("modality", "text"), Hint("length", why, is_missing=True)]]
    spans = [(0, n)] if words is None else [(0, words.start), (words.stop, n)]
    found = []
    for i, (start, stop) in enumerate(spans):
        if stop > start:
            found += _part(facts, start, stop)
        if i == 0 and words is not None:
            found.append(_words(facts))
    return found


def _part(facts: Facts, start: int, stop: int) -> list[list[Line | Hint]]:
    """The tokens beside the words: the image's, or learned ones."""
    inside = torch.zeros(facts.probe.examples, facts.length, dtype=torch.bool)
    inside[:, start:stop] = True
    if not bool((image_tokens(facts) & inside).any()):
        return [[Line("modality", LEARNED, "no input moves them"), Line("length", stop - start)]]
    count = stop - start
    lines, runs = _image_lines(facts, inside, [count] * len(inside), count)
    modality = Line("modality", "image")
    if runs is None:
        about = next((x.value for x in lines if isinstance(x, Line) and x.key == "length"), "")
        return [[modality, *lines, *_padding(facts, start, count, str(about))]]
    padding = _padding(facts, start, count, "")
    by_entry = any(isinstance(x, Line) and x.key == "grid" and isinstance(x.value, str)
                   for x in runs[0])  # fmt: skip
    if by_entry:
        padding = [Line("length", facts.patches.entry if facts.patches else ""), *padding]
    return [[modality, *padding, *one] for one in runs]
