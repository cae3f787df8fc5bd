"""Classes by name: two sides that order them otherwise would train without complaint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from distillkit.errors import OptionError, did_you_mean

KNOWN_ORDERS = {
    "csarron/vilt-ve-ft": ("contradiction", "neutral", "entailment"),
    "Phando/snli-ve-shuffled": ("entailment", "neutral", "contradiction"),
}
"""Checkpoints and data sets of visual entailment that number the classes and do not name them."""


def normalized(name: object) -> str:
    """A class's name as it is compared.

    Examples:
        >>> normalized(True), normalized(" Entailment ")
        ('true', 'entailment')
    """
    return str(name).strip().lower()


def names_of_model(
    config: object, given: Sequence[str] | None = None, *, exact: bool = False
) -> tuple[str, ...]:
    """The names of a model's classes, in its order.

    Args:
        config: of the model.
        given: the names, where its configuration has none.
        exact: as they are written, as VQA's thousands of answers are compared; else in the form in
            which the few names of a task are.

    Raises:
        OptionError: nothing names them; the wrong number; two of one name.
    """
    id2label: Mapping[int, str] = config.id2label  # type: ignore[attr-defined]
    own = [id2label[i] for i in sorted(id2label)]
    if given is not None and len(given) != len(own):
        raise OptionError(f"the teacher has {len(own)} classes; got {len(given)} names, {given}")
    if given is None and all(normalized(x) == f"label_{i}" for i, x in enumerate(own)):
        raise OptionError(
            "the teacher numbers its classes and does not name them, so that their order cannot "
            "be compared: say it, --teacher-labels contradiction,neutral,entailment"
        )
    written = own if given is None else given
    names = tuple(written) if exact else tuple(map(normalized, written))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"two classes of the teacher are called {twice!r}")
    return names


def class_numbers(
    values: Iterable[object], model: Sequence[str], data: Sequence[str] | None
) -> list[int]:
    """The model's number of every label.

    Args:
        values: labels of the data: names, or numbers in the order of ``data``.
        model: the names of the model's classes, in its order.
        data: the names of the data's classes, in its order; None: the labels are names.

    Raises:
        OptionError: numbers without names; a label that one side does not know.

    Examples:
        >>> class_numbers(
        ...     [0, 2],
        ...     ("contradiction", "neutral", "entailment"),
        ...     ("entailment", "neutral", "contradiction"),
        ... )
        [2, 0]
    """
    if data is not None and {normalized(x) for x in data} != set(model):
        raise OptionError(
            f"the data's classes are {', '.join(data)}, the teacher's {', '.join(model)}: rename "
            "one side's, --data-labels or --teacher-labels, in the order of its numbers"
        )
    places = {name: place for place, name in enumerate(model)}
    found = []
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            if data is None:
                raise OptionError(
                    f"the data numbers its classes and does not name them (found {value}), so that "
                    "their order cannot be compared: say it, --data-labels "
                    "entailment,neutral,contradiction"
                )
            if not 0 <= value < len(data):
                raise OptionError(f"a label of the data is {value}, of {len(data)} classes")
            value = data[value]
        if normalized(value) not in places:
            raise OptionError(
                f"the teacher has no class {value!r}; {did_you_mean(normalized(value), places)}"
            )
        found.append(places[normalized(value)])
    return found
