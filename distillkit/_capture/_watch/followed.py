"""What a tensor in the hands of the model goes on from, and which of several it goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from .calls import SHIFTS, Call, is_view_of, is_weight, view_write_step
from .history import REORDERING, tensors_among
from .memory import Memory
from .sighting import Owner, Product, Sighting, Step, Weighing, version_of
from .softmaxes import EXPONENTIALS, Found


class Followed(NamedTuple):
    """Scores or probabilities in the hands of the model.

    Attributes:
        source: the product of scores, the sighting of probabilities.
        steps: from there to here.
        order: when it was first seen.
        mixed: other softmaxes that had a part in it.
        version: how often it had been written into when it was last seen.
    """

    source: Any
    steps: tuple[Step, ...]
    order: int
    mixed: tuple[Sighting, ...] = ()
    version: int = 0


Live = Memory[Followed]


def choose_source(
    live: Live, call: Call, running: list[str]
) -> tuple[Tensor | None, Followed | None]:
    """Which of the followed arguments the result goes on from.

    One as large as the result comes first (a mask may itself be a product), then one whose entries
    stayed in their places (terms of relative positions are shifted), then one of the module that
    runs (scores may be handed on from layer to layer), then the oldest.
    """
    tensor: Tensor | None = None
    best: Followed | None = None
    best_rank = (False, False, False, False, 0, 0)
    for given in tensors_among(call.args, call.kwargs):
        followed = live.get(given)
        if followed is None:
            continue
        source = followed.source
        product = source if type(source) is Product else source.product
        doubtful = product is source and product.doubtful
        shifted = any(step.name in SHIFTS for step in followed.steps)
        elsewhere = product.owner != tuple(running)
        n = given.numel()
        rank = (n != call.result.numel(), doubtful, shifted, elsewhere, followed.order, -n)
        if best is None or rank < best_rank:
            tensor, best, best_rank = given, followed, rank
    return tensor, best


def joins_several(live: Live, call: Call) -> bool:
    """Whether a call puts scores of several products next to each other."""
    if call.name not in _JOINS:
        return False
    found = [live.get(tensor) for tensor in tensors_among(call.args, call.kwargs)]
    sources = [one.source for one in found if one is not None]
    return any(source is not sources[0] for source in sources[1:])


_JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"})


def may_be_softmax(product: Product, found: Found) -> bool:
    """Whether a division makes probabilities; weights of an interpolation are divided as well."""
    if not product.opaque or found.division is None:
        return True
    return any(step.name in EXPONENTIALS for step in found.steps)


def weighings(scores: Live, left: Tensor, right: Tensor) -> Iterator[Weighing]:
    """Scores among the factors of a product, which meet what may be their values: no softmax."""
    for tensor, other in ((left, right), (right, left)):
        followed, beside = scores.get(tensor), scores.get(other)
        if followed is None or (beside is not None and beside.source is followed.source):
            continue
        if not followed.source.doubtful and not is_weight(other):
            yield Weighing(followed.source, tuple([step.name for step in followed.steps]))


def weighs_values(followed: Followed, equation: str, values: Tensor, *, turned: bool) -> bool:
    """Whether a product sums over keys, as weighing values does, and not over heads, to mix them.

    Keys are what the softmax runs over. Where it runs over the queries, as that of slots, what is
    multiplied tells: a mixing of heads has no axes but theirs.
    """
    sighting: Sighting = followed.source
    if values.ndim > 2 and not is_weight(values):
        return True
    n = len(sighting.shape)
    if followed.steps:  # its axes may have moved: a product with a plain weight mixes heads
        return not is_weight(values)
    axis = sighting.axis % n
    if equation:
        inputs, _, out = equation.replace(" ", "").partition("->")
        labels = inputs.partition(",")[0]
        return "..." in labels or len(labels) != n or labels[axis] not in out
    return axis == (n - 2 if turned else n - 1)


def swap_operands(equation: str) -> str:
    """The same einsum with its operands in the other order."""
    inputs, arrow, out = equation.partition("->")
    first, comma, second = inputs.partition(",")
    return f"{second}{comma}{first}{arrow}{out}"


def ends_with_keys(followed: Followed) -> bool:
    """Whether the last axis is still the one that the product left there."""
    return not any(step.name in REORDERING for step in followed.steps)


def refuse(*several: Sighting) -> None:
    for sighting in several:
        sighting.refused = (
            "it multiplies or adds several softmaxes with each other, so that none of them is its "
            "attention"
        )


def with_write(tensor: Tensor, followed: Followed, step: Step) -> Followed:
    return followed._replace(steps=(*followed.steps, step), version=version_of(tensor))


def common_owner(one: Owner, other: Owner) -> Owner:
    """The modules that were running both times."""
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return one[:common]


def note_write_into_view(live: Live, view: Tensor, of_view: tuple[Step, ...], write: Step) -> None:
    """``scores[0].masked_fill_(...)``: what is written into a view is in the whole."""
    for whole, followed in live.pairs():
        n = len(followed.steps)
        shared = zip(of_view, followed.steps, strict=False)
        if is_view_of(view, whole) and n <= len(of_view) and all(a is b for a, b in shared):
            step = view_write_step(of_view[n:], write, whole)
            live.put(whole, with_write(whole, followed, step))
