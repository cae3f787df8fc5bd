"""One ``[[tokens.<stream>]]`` table of an adapter file, and what it cannot say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from .._tables import Table


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _pair(value: Any, what: str, *, entry: bool = True) -> Any:
    """Two numbers, or the name of a batch entry that has them."""
    if isinstance(value, str) and entry:
        return value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_count, value)):
        return tuple(value)
    or_entry = " or the batch entry that has them" if entry else ""
    raise ValueError(f"{what}{or_entry}; got {value!r}")


def _grid(value: Any) -> Any:
    return _pair(value, "[rows, columns] of patches, both at least 1,")


def _tiles(value: Any) -> Any:
    return _pair(value, "[rows, columns] of tiles, both at least 1,")


def _patch(value: Any) -> Any:
    sides = (value, value) if _is_count(value) else value
    return _pair(sides, "the side of a patch in pixels, or [height, width]", entry=False)


def _length(value: Any) -> Any:
    if isinstance(value, str) or _is_count(value):
        return value
    raise ValueError(
        f"a number of tokens, or the batch entry whose second axis is the length; got {value!r}"
    )


def _values(value: Any) -> Any:
    listed = [value] if isinstance(value, int) else value
    numbers = isinstance(listed, (list, tuple)) and all(type(one) is int for one in listed)
    if not numbers or not listed:
        raise ValueError(f"an integer or a list of them; got {value!r}")
    return tuple(listed)


def _several(value: Any) -> Any:
    if value is True or _is_count(value):
        return value
    raise ValueError(f"a number, or true for as many as the batch has; got {value!r}")


Pair = tuple[int, int]
_Box = tuple[float, float, float, float]


class TokenRun(Table):
    """A run of one modality's tokens in a sequence, as an adapter file states it."""

    what = "a token run"

    modality: str
    # which tokens they are
    length: Annotated[str | int | None, PlainValidator(_length)] = None
    where: str | None = Field(None, description="the batch entry that marks the tokens")
    equals: Annotated[tuple[int, ...] | None, PlainValidator(_values)] = Field(
        None, description="its value or values at these tokens"
    )
    # which of them are padding
    mask: str | None = Field(None, description="the batch entry that is true for real tokens")
    lengths: str | None = Field(None, description="the batch entry (b,): how many are real")
    padding: Literal["left", "right"] = Field("right", description="the side of it, by `lengths`")
    unmasked: bool = Field(
        default=False, description="the model is called without this mask and attends to padding"
    )
    # which of them stand for no word or patch
    special: Annotated[tuple[int, ...], BeforeValidator(_values)] = Field(
        (), description="positions in the run; -1 is its last"
    )
    special_ids: Annotated[tuple[int, ...], BeforeValidator(_values)] = Field(
        (), description="the vocabulary entries that are special"
    )
    newlines: bool = Field(default=False, description="a special token after each row of patches")
    ids: str | None = Field(None, description="the batch entry that holds the vocabulary entries")
    # the patches of an image
    grid: Annotated[Pair | str | None, PlainValidator(_grid)] = Field(
        None, description="rows and columns of patches, or the batch entry (images, 2 or 3)"
    )
    patch: Annotated[Pair | None, PlainValidator(_patch)] = Field(
        None, description="pixels of a patch: the grid follows from the image's size"
    )
    merge: int = Field(1, gt=0, strict=True, description="so many patches a side become a token")
    pixels: str | None = Field(None, description="the batch entry of the image, for `patch`")
    tiles: Annotated[Pair | str | None, PlainValidator(_tiles)] = Field(
        None, description="rows and columns of tiles, each with the grid, or their batch entry"
    )
    thumbnail: Literal["first", "last"] | None = Field(
        None, description="the whole image, with the same grid, before or after its tiles"
    )
    images: Annotated[int | None, PlainValidator(_several)] = Field(
        None, description="images of an example, or true for as many as the batch has"
    )
    frames: Annotated[int | None, PlainValidator(_several)] = Field(
        None, description="frames of a video, or true for as many as the batch says"
    )
    # where they lie in the raw input
    extents: str | None = Field(
        None,
        description="the batch entry that says it: character offsets (b, m, 2), boxes (b, m, 4), "
        "or of a grid what each image shows (images, 4)",
    )
    box: _Box | None = Field(None, description="what the grid shows of the image, as fractions")
    uncropped: bool = Field(default=False, description="the grid covers the whole image")
    nowhere: bool = Field(default=False, description="no place can be said of these tokens")

    @property
    def has_grid(self) -> bool:
        """Whether these tokens are patches in rows and columns."""
        return self.grid is not None or self.patch is not None

    @property
    def fixed_grid(self) -> Pair | None:
        """The grid, where the file itself says it."""
        return None if isinstance(self.grid, str) else self.grid

    @property
    def fixed_tiles(self) -> Pair | None:
        """The tiles, where the file itself says them."""
        return None if isinstance(self.tiles, str) else self.tiles

    @property
    def fixed_count(self) -> int | None:
        """The number of tokens, where the file itself says it."""
        if not self.has_grid:
            return self.length if isinstance(self.length, int) else None
        grid = self.fixed_grid
        by_batch = isinstance(self.tiles, str) or True in (self.images, self.frames)
        if grid is None or by_batch:
            return None
        rows, columns = grid
        tiles = self.fixed_tiles
        pictures = 1 if tiles is None else tiles[0] * tiles[1] + (self.thumbnail is not None)
        pictures *= (self.images or 1) * (self.frames or 1)
        return pictures * rows * (columns + self.newlines) + len(self.special)

    @property
    def has_place(self) -> bool:
        """Whether it is known where these tokens lie, or that they lie nowhere."""
        return self.extents is not None or self.shows is not None or self.nowhere

    @property
    def shows(self) -> _Box | None:
        """What the grid shows of the image, where the file itself says it."""
        return (0.0, 0.0, 1.0, 1.0) if self.uncropped else self.box

    @property
    def pixels_entry(self) -> str | None:
        """The batch entry whose size makes the grid."""
        if self.patch is None or self.grid is not None:
            return None
        return self.pixels or "pixel_values"

    @property
    def ids_entry(self) -> str | None:
        """The batch entry that holds the vocabulary entries of these tokens."""
        if self.ids is not None:
            return self.ids
        named = (self.length, self.where)
        return next((one for one in named if isinstance(one, str) and _says_ids(one)), None)

    @property
    def real_entry(self) -> str | None:
        """The batch entry that says which tokens are no padding."""
        return self.mask or self.lengths

    @property
    def arguments(self) -> frozenset[str]:
        """The batch entries that are the model's own: words, marks, masks and images."""
        length = self.length if isinstance(self.length, str) else None
        real = None if self.unmasked else self.real_entry
        named = (length, self.where, self.ids_entry, real, self.pixels_entry)
        return frozenset(name for name in named if name is not None)

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that are read."""
        shapes = [one for one in (self.grid, self.tiles) if isinstance(one, str)]
        named = (self.real_entry, self.extents, *shapes)
        return self.arguments.union(name for name in named if name is not None)

    @model_validator(mode="after")
    def _means_something(self) -> TokenRun:
        problem = next(_problems(self), None)
        if problem is not None:
            raise ValueError(problem)
        return self


def _says_ids(entry: str) -> bool:
    """Whether an entry's name says that it holds vocabulary entries: no token types, no places."""
    parts = entry.split("_")
    return bool({"ids", "id", "tokens"} & set(parts)) and not {"type", "position"} & set(parts)


def _problems(run: TokenRun) -> Iterator[str]:
    """What a run says that nothing can mean; every message starts with the key."""
    if (run.where is None) != (run.equals is None):
        yield "`where` and `equals` go together: where = entry, equals = its value or values"
    if run.where is not None and isinstance(run.length, str):
        yield (
            f"`length` = {run.length!r} says nothing of tokens that `where` marks: a number is how "
            f"many they are, and ids = {run.length!r} says where their vocabulary entries are"
        )
    if run.length is None and not run.has_grid and run.where is None:
        yield (
            f"the {run.modality} tokens have no place: give `length` (a number or a batch entry), "
            "`grid` ([rows, columns] or a batch entry), `patch`, or `where` and `equals`"
        )
    yield from _problems_of_padding(run)
    yield from _problems_of_special(run)
    yield from _problems_of_grid(run)
    yield from _problems_of_place(run)


def _problems_of_padding(run: TokenRun) -> Iterator[str]:
    if run.mask is not None and run.lengths is not None:
        yield "`lengths` says the same as `mask`: give one of them"
    if run.unmasked and run.real_entry is None:
        yield "`unmasked` is about a `mask` (or `lengths`) that the model is not called with"
    if run.padding == "left" and run.lengths is None:
        yield "`padding` says on which side `lengths` leaves it; a `mask` says it itself"
    if run.where is not None and run.lengths is not None:
        yield "`lengths` counts from one end of a run: tokens that `where` marks take a `mask`"
    if run.length is not None and run.length == run.lengths:
        yield "`length` names an entry whose second axis is the length, `lengths` one of shape (b,)"


def _problems_of_special(run: TokenRun) -> Iterator[str]:
    if len(set(run.special)) < len(run.special):
        yield f"`special` = {list(run.special)} names a position twice"
    if run.special_ids and run.ids_entry is None:
        yield (
            "`special_ids` looks at vocabulary entries: say which batch entry holds them, "
            'ids = "input_ids"'
        )
    count = run.fixed_count
    if count is None:
        return
    if any(not -count <= one < count for one in run.special):
        yield f"`special` = {list(run.special)}: this run has {count} tokens, 0 to {count - 1}"
    if len({one % count for one in run.special}) < len(run.special):
        yield f"`special` = {list(run.special)} names a position twice, of {count} tokens"


def _problems_of_grid(run: TokenRun) -> Iterator[str]:
    if run.patch is not None and run.fixed_grid is not None:
        yield "`patch` divides the pixels of an image, and `grid` says the patches: give one"
    if run.merge > 1 and (not run.has_grid or run.fixed_grid is not None):
        yield "`merge` divides a `grid` from the batch or the image; write the merged grid itself"
    if run.pixels is not None and run.pixels_entry is None:
        yield "`pixels` names the image whose size `patch` divides: it needs `patch` and no `grid`"
    for key in ("tiles", "images", "frames", "newlines", "box"):
        if getattr(run, key) not in (None, False) and not run.has_grid:
            yield f"`{key}` is about a grid of patches: it needs `grid` or `patch`"
    if run.thumbnail is not None and run.tiles is None:
        yield "`thumbnail` stands beside `tiles`: it needs them"
    count = run.fixed_count
    if run.has_grid and count is not None and isinstance(run.length, int) and run.length != count:
        yield f"`length` = {run.length}, but the patches and special tokens are {count}"


def _problems_of_place(run: TokenRun) -> Iterator[str]:
    given = [
        key
        for key in ("extents", "box", "uncropped", "nowhere")
        if getattr(run, key) not in (None, False)
    ]
    if run.uncropped and not run.has_grid:
        yield "`uncropped` says that `grid` covers the whole image: it needs `grid`"
    if len(given) > 1:
        named = ", ".join(f"`{key}`" for key in given)
        yield f"{named} each say where the tokens lie: give one of them"
    if run.nowhere and run.has_grid:
        yield "`nowhere` says that no place is known, and a grid says one: give `length` instead"
    if run.box is not None:
        top, left, bottom, right = run.box
        if not (top < bottom and left < right):
            yield f"`box` is top, left, bottom, right as fractions; got {list(run.box)}"
