"""What the page shows, as data: examples, tokens, layers, and the codes of their maps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._backbone.signals import Signals
from .._objective.layer_choice import LayerChoice, layer_rule
from ..errors import OptionError, ShapeError, SignalError
from .coding import Coded, Layer, encoded
from .maps import Axes, Distances, distances_of, maps_of, on_same_tokens
from .pictures import Picture, pictures_of
from .sources import ALL, Sources, shown_names
from .steps import EXACT, Errors
from .tokens import Explained, Token, tokens_of

PAGE_BYTES = 5_000_000
"""How large a page may become before numbers are told apart less finely."""

LARGEST = 400_000_000
"""How many numbers of one signal a page takes."""

_FRAME_BYTES, _BLOCK_BYTES = 60_000, 200  # of the page without its data; beside one layer's text


class Contents(NamedTuple):
    """Everything that a page holds.

    Attributes:
        facts: what JSON says.
        texts: the coded layers, which ``facts`` name by their position.
        errors: no probability that the page shows is farther from the exact one.
    """

    facts: Mapping[str, Any]
    texts: Sequence[str]
    errors: Errors


class Scene(NamedTuple):
    """What a page shows, before its maps are coded.

    Attributes:
        facts: what JSON says.
        layers: what is coded, which ``facts`` name by their position.
    """

    facts: Mapping[str, Any]
    layers: Sequence[Layer]


class _Shown(NamedTuple):
    """One signal, before its maps are coded."""

    facts: dict[str, Any]
    layers: list[Layer]
    axes: Axes
    shape: tuple[int, int, int]  # examples, rows, keys


def scene_of(
    sources: Sources,
    *,
    asked: Sequence[str] | str | None,
    layers: LayerChoice,
    explained: Explained,
    images: Any,
    denormalise: Any,
) -> Scene:
    """What a page of both sides shows.

    Args:
        sources: both sides.
        asked: names of signals; None: those between modalities, or all.
        layers: which layers stand beside each other.
        explained: what tokens are named and placed by.
        images: the pictures, as :func:`view` takes them.
        denormalise: what their pixels were normalised by.
    """
    student = next(iter(sources.checkpoints.values()))
    names = shown_names(student, sources.teacher, asked)
    shown, notes = [], []
    coded_layers: list[Layer] = []
    for name in names:
        try:
            one = _shown(name, sources, layers, len(coded_layers))
        except (SignalError, ShapeError) as error:
            if asked not in (None, ALL) or isinstance(error, ShapeError):
                raise
            notes.append(f"{name} is not shown: {error}")
            continue
        shown.append(one)
        coded_layers += one.layers
        notes += one.facts.pop("notes")
    if not shown:
        raise SignalError("no attention can be shown. " + " ".join(notes))
    examples = {one.shape[0] for one in shown}
    if len(examples) > 1:
        raise ShapeError(
            "the signals of one page are of the same examples; got "
            + ", ".join(f"{one.facts['name']} of {one.shape[0]}" for one in shown)
        )
    (count,) = examples
    pictures = None
    if images is not None:
        pictures = pictures_of(images, count, sources.batch, denormalise)
    axes, signals = _Axes(), []
    for one in shown:
        ends = [
            axes.position(tokens_of(axis, count, size, explained), axis.modality, pictures)
            for axis, size in zip(one.axes, one.shape[1:], strict=True)
        ]
        signals.append({**one.facts, "rows": ends[0], "keys": ends[1]})
    listed, indices = _listed_pictures(pictures)
    facts = {
        "examples": count,
        "checkpoints": list(sources.checkpoints),
        "has_teacher": sources.teacher is not None,
        "pictures": [one._asdict() for one in listed],
        "shown": indices,
        "axes": axes.found,
        "signals": signals,
        "notes": notes,
    }
    return Scene(facts, coded_layers)


def contents_of(scene: Scene, off: Errors = EXACT) -> Contents:
    """The contents of a page.

    Args:
        scene: what it shows.
        off: how far the scene's own numbers are from the exact ones.
    """
    taken = len(json.dumps(scene.facts)) + _FRAME_BYTES + _BLOCK_BYTES * len(scene.layers)
    coded: Coded = encoded(scene.layers, PAGE_BYTES - taken)
    # numbers are float64 there and float32 here
    errors = Errors(
        *(one * (1 + 1e-6) + 1e-7 + before for one, before in zip(coded.errors, off, strict=True))
    )
    numbers = {"levels": coded.levels, "tolerance": errors.absolute, "relative": errors.relative}
    return Contents({**scene.facts, **coded.facts, **numbers}, coded.texts, errors)


def _shown(name: str, sources: Sources, choice: LayerChoice, first: int) -> _Shown:
    """One signal of all checkpoints and the teacher.

    Args:
        name: of the signal.
        sources: both sides.
        choice: which layers, as a term says it.
        first: the position of its first coded layer.
    """
    labels = list(sources.checkpoints)
    students = [_layers(sources.checkpoints[label], name) for label in labels]
    depths = {len(one) for one in students}
    if len(depths) > 1:
        raise ShapeError(f"{name}: the checkpoints have unequally many layers: {sorted(depths)}")
    theirs = None if sources.teacher is None else _layers(sources.teacher, name)
    depth = len(students[0])
    matched = layer_rule(choice).matched(name, depth, depth if theirs is None else len(theirs))
    axes = _axes(sources.checkpoints[labels[0]], name)
    both = (axes, axes if sources.teacher is None else _axes(sources.teacher, name))
    strides = (_stride(axes[0]), _stride(axes[1]))
    layers: list[Layer] = []
    listed: list[dict[str, Any]] = []
    notes: list[str] = []
    shape: tuple[int, ...] | None = None
    for pair in matched:
        number = range(depth)[pair.student]
        teacher_number = None if theirs is None else range(len(theirs))[pair.teachers[-1]]
        try:
            pairs = [_pair(one, number, theirs, teacher_number, both) for one in students]
        except SignalError as error:  # a cache holds the layers that its recipe asked for
            notes.append(f"{name}, layer {number + 1}, is not shown: {error}")
            continue
        shapes = {one.shape for one, _ in pairs} | ({shape} if shape else set())
        if len(shapes) > 1:
            raise ShapeError(
                f"{name}: layers and checkpoints of one page have the same examples, heads and "
                f"tokens; got {', '.join(map(str, sorted(shapes)))}"
            )
        (shape,) = shapes
        _check_size(name, shape, len(matched) * (len(students) + (theirs is not None)))
        entry = _layer_facts(number, teacher_number, same=theirs is None or depth == len(theirs))
        teacher = pairs[0][1]
        if teacher is not None:
            entry["teacher"] = first + len(layers)
            entry["teacher_heads"] = teacher.shape[1]
            layers.append(Layer(maps_of(teacher), None, f"{name}, teacher", None, strides))
        entry["students"], entry["means"] = [], []
        for student, other in pairs:
            distances = None if other is None else distances_of(student, other)
            before = (*layers[-1:],) if entry["students"] or teacher is not None else ()
            entry["students"].append(first + len(layers))
            entry["means"].append(None if distances is None else _rounded(distances))
            own = Layer(maps_of(student), distances, strides=strides)
            layers.append(followed(own, name, before, first + len(layers)))
        entry["student_heads"] = shape[1]
        listed.append(entry)
    if shape is None:
        raise SignalError(" ".join(notes) or f"{name} has no layers")
    if any(bool((one.maps.probabilities < 0).any()) for one in layers):
        notes.append(f"{name} has negative weights (heads that are mixed), shown as 0")
    last = layers[-1].distances
    facts: dict[str, Any] = {
        "name": name,
        "layers": listed,
        "notes": notes,
        "kl_heads": 0 if last is None else last.kl.shape[1],
    }
    return _Shown(facts, layers, axes, (shape[0], shape[2], shape[3]))


def followed(layer: Layer, name: str, before: Sequence[Layer], position: int) -> Layer:
    """A student's layer, of which the one before it may foretell the maps.

    Args:
        layer: the layer.
        name: of its signal.
        before: the teacher's layer, or the same of an earlier checkpoint; empty: neither is there.
        position: its own among all layers.
    """
    shape = layer.maps.probabilities.shape
    if not before or before[0].maps.probabilities.shape != shape:
        return layer._replace(family=f"{name}, alone")
    order = "first" if before[0].distances is None else "later"
    return layer._replace(family=f"{name}, {order}", reference=position - 1)


def _check_size(name: str, shape: Sequence[int], maps: int) -> None:
    """Refuse what no page can hold before it fills the memory."""
    total = math.prod(shape) * maps
    if total > LARGEST:
        raise OptionError(
            f"{name} is {maps} layers (b, h, q, k) = {tuple(shape)} of both sides, {total:.1e} "
            f"numbers; a page holds {LARGEST:.0e}. Show fewer examples, layers=[...], or other "
            "signals=[...]"
        )


def _stride(axis: TokenAxis) -> int:
    """How many tokens lie from one row of patches to the next; 2: there are no rows."""
    return max(2, axis.grid[1]) if isinstance(axis.grid, tuple) else 2


def _layer_facts(student: int, teacher: int | None, *, same: bool) -> dict[str, Any]:
    label = f"{student + 1}"
    if teacher is not None and (not same or teacher != student):
        label = f"{student + 1} of the student, {teacher + 1} of the teacher"
    return {"label": label}


def _rounded(distances: Distances) -> list[list[float | str | None]]:
    """The mean of each example and head, for JSON: NaN and infinity as text, None: no row."""
    counted = distances.counts.any(-1).tolist()
    return [
        [_number(x) if any_row else None for x, any_row in zip(*row, strict=True)]
        for row in zip(distances.means().tolist(), counted, strict=True)
    ]


def _number(x: float) -> float | str:
    return float(f"{x:.4g}") if math.isfinite(x) else str(x)


def _layers(signals: Signals, name: str) -> Sequence[Attention]:
    value = signals[name]
    if isinstance(value, Attention):
        return [value]
    if not isinstance(value, Sequence):
        raise SignalError(f"{name} is no attention but {type(value).__name__}")
    return value  # type: ignore[return-value]


def _axes(signals: Signals, name: str) -> Axes:
    axes = signals.axes(name)
    if len(axes) != 2 or any(not isinstance(axis, TokenAxis) for axis in axes):
        raise SignalError(
            f"nothing says what the rows and keys of {name} are; the viewer shows signals whose "
            "token axes are known, such as attention.text_to_image, or Signals(values, "
            f"axes={{{name!r}: (TokenAxis(...), TokenAxis(...))}})"
        )
    return axes[0], axes[1]  # type: ignore[return-value]


def _pair(
    student: Sequence[Attention],
    number: int,
    teacher: Sequence[Attention] | None,
    teacher_number: int | None,
    axes: tuple[Axes, Axes],
) -> tuple[Attention, Attention | None]:
    """One layer of both sides on the processor, over the student's tokens."""
    ours = student[number].detach().to("cpu")
    if teacher is None or teacher_number is None:
        return ours, None
    theirs = teacher[teacher_number].detach().to("cpu")
    return on_same_tokens(ours, theirs, axes)


class _Axes:
    """Token axes for the page, each once: tokens that are the same stand for several signals."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def position(
        self,
        tokens: list[list[Token]],
        modality: str,
        pictures: list[list[Picture]] | None,
    ) -> int:
        _check_pictures(tokens, pictures)
        boxes: list[Any] = []
        example_boxes = []
        for row in tokens:
            own = [one.box for one in row]
            if own not in boxes:
                boxes.append(own)
            example_boxes.append(boxes.index(own))
        facts = {
            "modality": modality,
            "labels": [[one.label for one in row] for row in tokens],
            "kinds": ["".join(one.kind[0] for one in row) for row in tokens],
            "boxes": boxes,
            "example_boxes": example_boxes,
        }
        if facts not in self.found:
            self.found.append(facts)
        return self.found.index(facts)


def _check_pictures(tokens: list[list[Token]], pictures: list[list[Picture]] | None) -> None:
    if pictures is None:
        return
    for example, (row, own) in enumerate(zip(tokens, pictures, strict=True)):
        last = max((one.box[0] for one in row if one.box is not None), default=-1)
        if last >= len(own):
            raise ShapeError(
                f"the tokens of example {example} lie in {int(last) + 1} pictures, but images= has "
                f"{len(own)} for it: give a list of them"
            )


def _listed_pictures(
    pictures: list[list[Picture]] | None,
) -> tuple[list[Picture], list[list[int]] | None]:
    """Distinct pictures, and which of them each example shows."""
    if pictures is None:
        return [], None
    listed: dict[Picture, int] = {}
    indices = [[listed.setdefault(one, len(listed)) for one in row] for row in pictures]
    return list(listed), indices
