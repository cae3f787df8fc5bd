"""Where both sides of a term differ, and which aligner would fix it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._backbone.signals import TokenAxes
from ..errors import ShapeError
from ..losses import shared_rows
from .comparison import Comparison
from .term import Term

_EXTENTS = (
    "align = [\"overlap\"] carries the teacher's attention onto the student's tokens by where both "
    "lie in the raw input"
)
_SPECIAL = (
    'align = ["drop_special"] leaves out the special tokens ([CLS]) that one side has and the '
    "other has not"
)
_SAME_WIDTH = {"(d),(d)": "projector", "(v),(v)": "universal_logit_distance"}


def has_pairs(comparison: Comparison) -> bool:
    """Whether a batch has anything to compare: a real query and a real key, or a position.

    A batch of words alone has no pairs of words and patches on either side. Where only one side
    has none, both sides differ.
    """
    for pair in comparison.pairs:
        for i, sides in enumerate(zip(pair.students, pair.teachers, strict=True)):
            axes, masks = comparison.axes(i), comparison.masks(i)
            if isinstance(sides[0], Attention):
                real = [_has_rows(*side) for side in zip(sides, axes, strict=True)]
            else:
                real = [_has_positions(*side) for side in zip(sides, masks, strict=True)]
            if not any(real):
                return False
    return True


def _has_rows(attention: Attention, axes: TokenAxes) -> bool:
    """Whether some example has a real query and a real key."""
    examples, _, queries, keys = attention.shape
    if 0 in (examples, queries, keys):
        return False
    known = [axis.valid for axis in axes if axis is not None and axis.valid is not None]
    real = [valid.any(-1) for valid in known]
    if attention.rows is not None:
        real.append(attention.rows.flatten(1).any(-1))
    return _some_meets(real)


def _has_positions(signal: Tensor, mask: Tensor | None) -> bool:
    return 0 not in signal.shape[:-1] and (mask is None or bool(mask.any()))


def _some_meets(conditions: list[Tensor]) -> bool:
    """Whether an example meets every condition, each ``(b,)``, or ``(1,)`` for all of them."""
    met: Tensor | None = None
    for one in conditions:
        met = one if met is None else met & one.to(met.device)
    return met is None or bool(met.any())


def differences(term: Term, comparison: Comparison) -> list[str]:
    """List the differences of both sides after the term's aligners, each with its fix."""
    found: list[str] = []
    for index, pair in enumerate(comparison.pairs):
        try:
            students, teachers = comparison.aligned(index)
        except ShapeError as error:
            found.append(str(error).removeprefix(f"term {term.name!r}: "))
            continue
        for i, name in enumerate(map(str, term.on)):
            sides = students[i], teachers[i]
            axes = comparison.aligned_axes(i)
            if all(isinstance(side, Attention) for side in sides):
                as_it_was = sides[0] is pair.students[i] and sides[1] is pair.teachers[i]
                known = axes if as_it_was or axes != comparison.axes(i) else ((), ())
                found += _attention_differences(term, name, sides, known)
            elif all(isinstance(side, Tensor) for side in sides):
                found += _tensor_differences(term, name, sides, axes)
                found += _mask_differences(name, *comparison.masks(i))
    return list(dict.fromkeys(found))


def _attention_differences(
    term: Term, name: str, sides: tuple[Any, Any], axes: tuple[TokenAxes, TokenAxes]
) -> list[str]:
    ours, theirs = (side.shape for side in sides)
    shapes = f"student {ours}, teacher {theirs}, each (b, h, q, k)"
    if ours[0] != theirs[0]:
        return [f"{name} is of {ours[0]} examples and {theirs[0]}: {shapes}"]
    found = []
    for axis, what in ((2, "queries"), (3, "keys")):
        known = [side[axis - 2] if len(side) == 2 else None for side in axes]
        if ours[axis] != theirs[axis]:
            fix = _SPECIAL if _differ_in_special(known, (ours[axis], theirs[axis])) else _EXTENTS
            found.append(f"{name} has unequal {what}: {shapes}. {fix}")
        else:
            found += _token_differences(name, what, *known)
    if ours[1] != theirs[1] and not _averages_heads(term):
        found.append(
            f'{name} has unequal heads: {shapes}. The option heads="mean" compares the average '
            'over each side\'s heads; align = ["head_map"] learns a mixture of them'
        )
    if not found and not bool(shared_rows(*sides).any()):
        found.append(
            f"{name}: no row of this batch counts, so nothing would be learned from it: the "
            "teacher has no key left for any row that both sides keep (a causal decoder's image "
            "never sees its text; an image that shows nothing of what the other side sees)"
        )
    return found


def _averages_heads(term: Term) -> bool:
    return bool(term.options.get("heads") or term.options.get("relation_heads"))


def _token_differences(
    name: str, what: str, ours: TokenAxis | None, theirs: TokenAxis | None
) -> list[str]:
    """Equally many tokens that are nevertheless others."""
    if ours is None or theirs is None:
        return []
    if ours.extents is not None and theirs.extents is not None:
        if _close(ours.extents, theirs.extents):
            return []
        return [f"{name}: the {what} lie elsewhere in the raw input on each side. {_EXTENTS}"]
    grids = ours.grid is not None and theirs.grid is not None
    if grids and _differ(ours.grid, theirs.grid):
        shapes = f"{_shown(ours.grid)} and {_shown(theirs.grid)}"
        return [f"{name}: the {what} are patches of different grids, {shapes}. {_EXTENTS}"]
    special = [_is_any(side.special) for side in (ours, theirs)]
    if all(special) and _differ(ours.special, theirs.special):
        places = f"{_shown(ours.special)} and {_shown(theirs.special)}"
        return [f"{name}: the {what} have their special tokens at {places}. {_SPECIAL}"]
    if special[0] != special[1] and grids:
        return [f"{name}: only one side's {what} have a special token. {_SPECIAL}"]
    for of, one, other in (("text", ours.ids, theirs.ids), ("padding", ours.valid, theirs.valid)):
        if one is not None and other is not None and one is not other and not _equal(one, other):
            why = f"{of} on each side (another tokenizer, or another padding side)"
            return [f"{name}: the {what} differ in {why}. {_EXTENTS}"]
    return []


def _differ_in_special(axes: Sequence[TokenAxis | None], counts: Sequence[int]) -> bool:
    """Whether special tokens are all that one side has more than the other."""
    specials = [() if axis is None else axis.special for axis in axes]
    # those that differ between examples are no fixed number of tokens
    numbers = [len(one) for one in specials if isinstance(one, tuple)]
    if None in axes or len(numbers) < 2 or specials[0] == specials[1]:
        return False
    return counts[0] - numbers[0] == counts[1] - numbers[1]


def _is_any(special: tuple[int, ...] | Tensor) -> bool:
    return bool(special.any()) if isinstance(special, Tensor) else bool(special)


def _differ(one: Any, other: Any) -> bool:
    """Whether two facts differ, of which both are plain or differ between examples."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        size = max(len(one), len(other))
        sides = [x.expand(size, *x.shape[1:]) if len(x) == 1 else x for x in (one, other)]
        return not _equal(*sides)
    return isinstance(one, Tensor) or isinstance(other, Tensor) or bool(one != other)


def _shown(fact: Any) -> str:
    return f"others in each example {tuple(fact.shape)}" if isinstance(fact, Tensor) else f"{fact}"


def _tensor_differences(
    term: Term, name: str, sides: tuple[Any, Any], axes: tuple[TokenAxes, TokenAxes]
) -> list[str]:
    ours, theirs = sides
    shapes = f"student {tuple(ours.shape)}, teacher {tuple(theirs.shape)}"
    consumed = term.signature.partition("->")[0]
    if ours.shape[1:-1] != theirs.shape[1:-1] and consumed in _SAME_WIDTH:
        known = [side[0] if side else None for side in axes]
        by_special = _differ_in_special(known, (ours.shape[1], theirs.shape[1]))
        fix = _SPECIAL if by_special else "No aligner carries hidden states"
        return [f"{name} has unequal tokens: {shapes}. {fix}"]
    if ours.shape[-1:] == theirs.shape[-1:] or consumed not in _SAME_WIDTH:
        return []
    if consumed == "(d),(d)":
        widths = f"student_width = {ours.shape[-1]}, teacher_width = {theirs.shape[-1]}"
        fix = f'align = [{{ name = "projector", {widths} }}] learns a map between the widths'
        return [f"{name} has unequal widths: {shapes}. {fix}"]
    fix = (
        'align = ["truncate"] or ["mask"] keeps what both have, where one vocabulary extends the '
        'other; loss = "universal_logit_distance" compares unrelated ones'
    )
    sizes = f"one side has {ours.shape[-1]} and the other {theirs.shape[-1]}"
    return [f"{name} has unequal classes: {shapes}: {sizes}. {fix}"]


def _mask_differences(name: str, ours: Tensor | None, theirs: Tensor | None) -> list[str]:
    """Paddings that leave nothing which is real on both sides."""
    if ours is None or theirs is None or ours is theirs:
        return []
    if ours.shape != theirs.shape:
        shapes = f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
        return [f"{name}: the sides know the padding of other positions, {shapes}"]
    theirs = theirs.to(ours.device)
    if not ours.any() or not theirs.any() or bool((ours & theirs).any()):
        return []
    return [f"{name}: no position is real on both sides (another padding side): nothing counts"]


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape[1:] != other.shape[1:]:
        return False
    other = other.to(one.device)
    return bool(torch.isclose(one.double(), other.double(), atol=1e-4).all())


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one.device))
