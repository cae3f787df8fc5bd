"""Follows tensors from a product of queries and keys, through a softmax, to the values.

It is shown every torch call that the chosen modules make and writes down what it sees, as it
stands::

    q @ k.mT ──► * scale ──► + mask ──► softmax ──► dropout ──► @ v
    Product      Step        Step       Sighting    (no step)   Values

Three memories say what a tensor is at the moment: ``_scores`` (it goes on from a product),
``_weights`` (it goes on from a softmax) and ``_attended`` (it is made of values). A call that takes
a followed tensor either adds a step to it or ends it:

- a product of two tensors that nobody follows begins scores;
- a softmax of scores is a sighting, and begins weights;
- a product of weights with anything that sums over the softmax's axis weighs values: the end;
- any other call that takes scores or weights is a step, to be replayed if it proves to matter.

The code below also runs while ``torch.compile`` traces a model, so it keeps to plain tuples, lists
and ``is``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from .calls import (
    ALONG_THE_WIDTH,
    CASTS,
    DROPOUTS,
    PRODUCTS,
    SHIFTS,
    SOFTMAXES,
    Call,
    Operands,
    is_view_of,
    is_weight,
    operands,
    view_write_step,
    write_step,
)
from .history import PIECES, REORDERING, History, same_source, tensors_among
from .memory import Memory
from .sighting import Function, Owner, Product, Sighting, Step, Values, version_of, versions_of


class _Followed(NamedTuple):
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


_Live = Memory[_Followed]


class Follower:
    """Watches the calls of the chosen modules.

    Args:
        found: called with each sighting and its owner, when its softmax is seen.
        noticed: called with an owner and the reason why something of it cannot be followed.
        running: the chosen modules that are running, outermost first.
        keep_outputs: also hold what the values became, to check the reading against.
    """

    def __init__(
        self,
        found: Callable[[Owner, Sighting], None],
        noticed: Callable[[Owner, str], None],
        running: list[str],
        *,
        keep_outputs: bool = False,
    ) -> None:
        self._found, self._noticed, self._running = found, noticed, running
        self._keep_outputs = keep_outputs
        self.history = History(with_sources=keep_outputs)
        self._scores: _Live = Memory()
        self._weights: _Live = Memory()
        self._attended: Memory[Sighting] = Memory()
        self._follows = False  # any scores or probabilities
        self._order = 0

    def begin(self) -> None:
        """The outermost chosen module is entered: know nothing yet."""
        self._begin(tracing=torch.compiler.is_compiling())

    def forget(self) -> None:
        """The outermost chosen module has returned."""
        self._begin(tracing=False)

    def _begin(self, *, tracing: bool) -> None:
        self.history.begin(tracing=tracing)
        self._scores.begin(tracing=tracing)
        self._weights.begin(tracing=tracing)
        self._attended.begin(tracing=tracing)
        self._follows = False
        self._order = 0

    def saw(
        self,
        function: Function,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Take note of one call, which makes something new, and of its result."""
        if isinstance(result, Tensor):
            if name in PRODUCTS:
                self._note_product(Call(function, name, args, kwargs, result))
            elif self._follows or name in SOFTMAXES:
                self._follow_call(Call(function, name, args, kwargs, result))
            else:  # most calls, most of the time
                self.history.note(name, args, kwargs, result)
        elif name in PIECES and isinstance(result, (tuple, list)):
            self.history.note_pieces(name, args, kwargs, result)
        elif name == "__setitem__":
            self._write(args[0], write_step(*args))

    def _follow_call(self, call: Call) -> None:
        """Any call but a product, which scores or probabilities may take part in."""
        if self._weights and self._extend(self._weights, call):
            return
        if call.name in SOFTMAXES:
            self._note_softmax(call)
        elif self._scores:
            self._extend(self._scores, call)
        self.history.note(call.name, call.args, call.kwargs, call.result)

    # a product: of queries and keys, of probabilities and values, or with a weight

    def _note_product(self, call: Call) -> None:
        product = operands(call)
        if product is not None and self._note_values(call, product):
            return
        self.history.note("made", call.args, call.kwargs, call.result)
        if product is None:
            return
        left, right = product.left, product.right
        if self._mixes_heads(left, right) or self._mixes_heads(right, left):
            self._extend(self._scores, call)
        elif not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(left):
            self._notice("it runs inside torch.vmap, whose tensors end with it")
        elif left.ndim >= 2 and right.ndim >= 2:
            outer = not product.equation and left.shape[-1] <= 1
            doubtful = is_weight(left) or is_weight(right) or call.result.ndim < 3 or outer
            made = Product(
                left, right, product.equation, self.history.node(left), self.history.node(right),
                doubtful, tuple(self._running),
            )  # fmt: skip
            self._follow(self._scores, call.result, _Followed(made, product.steps, self._order))

    def _mixes_heads(self, scores: Tensor, weight: Tensor) -> bool:
        """Whether a product is of scores and a small matrix; else it is a product of its own."""
        followed = self._scores.get(scores)
        if followed is None or followed.source.doubtful:
            return False
        return is_weight(weight) or weight.ndim <= 2

    def _note_values(self, call: Call, product: Operands) -> bool:
        """A product in which probabilities take part; False where none do."""
        one, other = self._weights.get(product.left), self._weights.get(product.right)
        if one is not None and other is not None:  # probabilities with each other
            mixed = (*one.mixed, *other.mixed, one.source, other.source)
            both = one._replace(mixed=mixed, order=self._order)
            self._follow(self._weights, call.result, both)
            return True
        followed, turned = (one, False) if one is not None else (other, True)
        if followed is None:
            return False
        sighting: Sighting = followed.source
        values = product.left if turned else product.right
        equation = _swap_operands(product.equation) if turned else product.equation
        same_ndim = call.result.ndim == len(sighting.shape)
        if same_ndim and not _sums_over_softmax(followed, equation, values, turned=turned):
            return self._extend(self._weights, call)
        attended = self._attended.get(values)
        if followed.mixed or attended is not None:
            _refuse(sighting, *followed.mixed, *([] if attended is None else [attended]))
        node = self.history.node(values)
        if sighting.detached:
            values = values.detach()
        sighting.values = Values(values, equation, node, turned, followed.steps)
        sighting.versions = (*sighting.versions, *versions_of((values,)))
        if self._keep_outputs:
            sighting.output = call.result
        self._attended.put(call.result, sighting)
        self.history.note("made", (), {}, call.result)
        return True

    # from product to softmax, from softmax to values

    def _note_softmax(self, call: Call) -> None:
        scores = call.args[0] if call.args else call.kwargs.get("input")
        axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
        followed = self._scores.get(scores)
        if followed is None or scores is None or axis is None:
            self._notice("it takes a softmax of something that was not seen to be a product")
        elif followed.version != version_of(scores):
            self._notice("its scores were written into in a way that was not seen")
        else:
            product: Product = followed.source
            sighting = Sighting(product, followed.steps, int(axis), tuple(call.result.shape))
            if self._keep_outputs:
                sighting.same_source = same_source(product.left_node, product.right_node)
            self._found(_common_owner(product.owner, tuple(self._running)), sighting)
            self._follow(self._weights, call.result, _Followed(sighting, (), self._order))

    def _extend(self, live: _Live, call: Call) -> bool:
        """Follow the result of a call that took a followed tensor; False where none took part."""
        tensor, followed = _choose_source(live, call)
        if tensor is None or followed is None:
            return False
        if call.name in ALONG_THE_WIDTH and _ends_with_keys(followed):
            return False
        mixed, steps = followed.mixed, followed.steps
        if live is self._weights:
            for other in tensors_among(call.args, call.kwargs):
                met = live.get(other)
                if met is not None and met.source is not followed.source:
                    mixed = (*mixed, *met.mixed, met.source)
        if call.name not in DROPOUTS and not (live is self._weights and call.name in CASTS):
            steps = (*steps, call.step(tensor))
            if call.result is tensor:
                self._note_write_into_view(live, tensor, followed.steps, steps[-1])
        self._follow(live, call.result, followed._replace(steps=steps, mixed=mixed))
        return True

    def _follow(self, live: _Live, tensor: Tensor, followed: _Followed) -> None:
        """Follow a tensor; it replaces what an in-place step left of itself."""
        live.put(tensor, followed._replace(version=version_of(tensor)))
        self._follows = True
        self._order += 1

    # writes: the tensor stays, what it holds does not

    def _write(self, target: Tensor, step: Step) -> None:
        for live in (self._scores, self._weights):
            followed = live.get(target)
            if followed is not None:
                live.put(target, _with_write(target, followed, step))

    def _note_write_into_view(
        self, live: _Live, view: Tensor, of_view: tuple[Step, ...], write: Step
    ) -> None:
        """``scores[0].masked_fill_(...)``: what is written into a view is in the whole."""
        for whole, followed in live.pairs():
            n = len(followed.steps)
            shared = zip(of_view, followed.steps, strict=False)
            if is_view_of(view, whole) and n <= len(of_view) and all(a is b for a, b in shared):
                step = view_write_step(of_view[n:], write, whole)
                live.put(whole, _with_write(whole, followed, step))

    def _notice(self, reason: str) -> None:
        self._noticed(tuple(self._running), reason)


def _choose_source(live: _Live, call: Call) -> tuple[Tensor | None, _Followed | None]:
    """Which of the followed arguments the result goes on from.

    One as large as the result comes first (a mask may itself be a product), then one whose entries
    stayed in their places (terms of relative positions are shifted), then the oldest.
    """
    tensor: Tensor | None = None
    best: _Followed | None = None
    best_rank = (False, False, False, 0, 0)
    for given in tensors_among(call.args, call.kwargs):
        followed = live.get(given)
        if followed is None:
            continue
        doubtful = type(followed.source) is Product and followed.source.doubtful
        shifted = any(step.name in SHIFTS for step in followed.steps)
        n = given.numel()
        rank = (n != call.result.numel(), doubtful, shifted, followed.order, -n)
        if best is None or rank < best_rank:
            tensor, best, best_rank = given, followed, rank
    return tensor, best


def _sums_over_softmax(followed: _Followed, equation: str, values: Tensor, *, turned: bool) -> bool:
    """Whether a product contracts the axis of the softmax, as weighing values does."""
    sighting: Sighting = followed.source
    n = len(sighting.shape)
    if followed.steps:  # its axes may have moved: a product with a plain weight mixes heads
        return not is_weight(values)
    axis = sighting.axis % n
    if equation:
        inputs, _, out = equation.replace(" ", "").partition("->")
        labels = inputs.partition(",")[0]
        return "..." in labels or len(labels) != n or labels[axis] not in out
    return axis == (n - 2 if turned else n - 1)


def _swap_operands(equation: str) -> str:
    """The same einsum with its operands in the other order."""
    inputs, arrow, out = equation.partition("->")
    first, comma, second = inputs.partition(",")
    return f"{second}{comma}{first}{arrow}{out}"


def _ends_with_keys(followed: _Followed) -> bool:
    """Whether the last axis is still the one that the product left there."""
    return not any(step.name in REORDERING for step in followed.steps)


def _refuse(*several: Sighting) -> None:
    for sighting in several:
        sighting.refused = (
            "it multiplies or adds several softmaxes with each other, so that none of them is its "
            "attention"
        )


def _with_write(tensor: Tensor, followed: _Followed, step: Step) -> _Followed:
    return followed._replace(steps=(*followed.steps, step), version=version_of(tensor))


def _common_owner(one: Owner, other: Owner) -> Owner:
    """The modules that were running both times."""
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return one[:common]
