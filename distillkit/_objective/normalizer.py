"""What the sums of a batch's part are divided by, so that the parts add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import OptionError, RecipeError, unknown_name

Number: TypeAlias = "float | Tensor"
Normalizer: TypeAlias = "Number | Mapping[str, Number]"


def normalizer_of_terms(
    given: Normalizer | None, terms: Iterable[str], computed: Iterable[str]
) -> Mapping[str, Number]:
    """Term -> its normalizer; nothing where none was given.

    Args:
        given: one for each term by its name, or one for all.
        terms: the names of all terms.
        computed: those that are computed now, without the task: each needs one.

    Raises:
        RecipeError: a name that no term has; a term that is computed and has none.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(computed, given)
    known = list(terms)
    for name in given:
        if name not in known:
            raise RecipeError(f"normalizer: {unknown_name('term', name, known)}")
    for name in computed:
        if given.get(name) is None:
            raise RecipeError(
                f"normalizer has none for the term {name!r}, which is computed: give what its "
                "`counts` add up to over the whole batch"
            )
    return given


def check_number(what: str, number: Number) -> None:
    """Refuse a number of things that nobody can have counted.

    Nothing, 0, is a count, too: a tensor may hold it, of a batch in which nothing counts. Who
    writes a 0 means something else. A tensor on an accelerator is taken as it is: looking at it
    would make the host wait.

    Raises:
        OptionError: no number, or one that is not finite, or too small.
    """
    if isinstance(number, Tensor):
        good = number.device.type != "cpu" or all(0 <= x < math.inf for x in _listed(number))
    else:
        good = isinstance(number, Real) and 0 < number < math.inf
    if not good:
        raise OptionError(_message(what, number))


def check_nothing_counts(what: str, number: Number, amount: Tensor) -> None:
    """Refuse a whole batch in which nothing counts, of which a part has something.

    Raises:
        OptionError: a normalizer of 0, on the CPU, and an amount that is not.
    """
    if isinstance(number, Tensor) and number.device.type == "cpu" and not number and amount:
        raise OptionError(_message(what, number))


def _listed(number: Tensor) -> list[float]:
    found: list[float] = number.detach().flatten().tolist()
    return found


def _message(what: str, number: Number) -> str:
    return f"{what} is a finite number above 0: how much counts in the whole batch; got {number}"


def divisor(number: Number) -> Number:
    """The number that divides the sum: 1 where nothing counts, since the sum is 0 then."""
    return torch.where(number == 0, 1, number) if isinstance(number, Tensor) else number


def of_layer(what: str, number: Number, index: int, layers: int) -> Number:
    """The normalizer of one of the student's layers.

    Raises:
        OptionError: neither one number nor one for each layer.
    """
    if not isinstance(number, Tensor):
        return number
    if number.shape not in ((), (layers,)):
        raise OptionError(
            f"{what} is one number, or one for each of {layers} pairs of layers, ({layers},); got "
            f"shape {tuple(number.shape)}"
        )
    return number.detach()[index] if number.ndim else number.detach()


def share_of_task(value: Tensor, items: Number | None, normalizer: Number | None) -> Tensor:
    """The student's own mean loss over ``items`` as a part of the sum over the whole batch.

    Without both numbers it stays what it is. A mean over nothing may be NaN; where that is known,
    the share is 0 and leaves no gradient.

    Raises:
        OptionError: numbers that nobody can have counted.
    """
    if items is None or normalizer is None:
        return value
    known = not isinstance(items, Tensor) or items.device.type == "cpu"
    if known and items == 0:
        return torch.zeros_like(value).requires_grad_(value.requires_grad)
    check_number("task_items", items)
    check_number("the task's normalizer", normalizer)
    check_nothing_counts("the task's normalizer", normalizer, torch.ones(()))
    share = value * (items / normalizer)
    # on an accelerator nobody looks at the number, and NaN times 0 is NaN
    return torch.where(items == 0, 0.0, share) if isinstance(items, Tensor) else share
