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
- any other call that takes scores or weights is a step, to be replayed if it proves to matter;
- scores that weigh something without a softmax are noted too, to be named.

The code below also runs while ``torch.compile`` traces a model, so it keeps to plain tuples, lists
and ``is``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..._torch_private import is_functorch_wrapped_tensor
from .broadcast import COMPARISONS, MAY_PAIR, Pairings
from .calls import (
    ALONG_THE_WIDTH,
    CASTS,
    DROPOUTS,
    PRODUCTS,
    SOFTMAXES,
    Call,
    Operands,
    is_weight,
    operands,
    write_step,
)
from .followed import (
    Followed,
    Live,
    choose_source,
    common_owner,
    ends_with_keys,
    joins_several,
    may_be_softmax,
    note_write_into_view,
    refuse,
    swap_operands,
    weighings,
    weighs_values,
    with_write,
)
from .history import PIECES, History, same_source, tensors_among
from .memory import Memory
from .sighting import (
    Function,
    Owner,
    Product,
    Sighting,
    Step,
    Values,
    version_of,
)
from .softmaxes import BY_HAND, Found, softmax_by_hand, softmax_of

TRANSFORMED = "it runs inside torch.vmap or another transform, whose tensors end with it"
JOINED = "its scores are put together from several products"
_PICKING = frozenset({"topk", "sort", "kthvalue"})


class Follower:
    """Watches the calls of the chosen modules.

    Args:
        found: called with each sighting (or weighing without a softmax) and its owner.
        noticed: called with an owner and the reason why something of it cannot be followed.
        running: the chosen modules that are running, outermost first.
        keep_outputs: also hold what the values became, to check the reading against.
    """

    def __init__(
        self,
        found: Callable[[Owner, Any], None],
        noticed: Callable[[Owner, str], None],
        running: list[str],
        *,
        keep_outputs: bool = False,
    ) -> None:
        self._found, self._noticed, self._running = found, noticed, running
        self._keep_outputs = keep_outputs
        self.history = History(with_sources=keep_outputs)
        self._scores: Live = Memory()
        self._weights: Live = Memory()
        self._attended: Memory[Sighting] = Memory()
        self._pairings = Pairings()
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
        self._pairings.begin(tracing=tracing)
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
                call = Call(function, name, args, kwargs, result)
                self._note_product(call, operands(call))
            elif name in MAY_PAIR and self._pairings.concern(name, args):
                self._note_pairing(Call(function, name, args, kwargs, result))
            elif self._follows or name in SOFTMAXES:
                self._follow_call(Call(function, name, args, kwargs, result))
            else:  # most calls, most of the time
                self.history.note(name, args, kwargs, result)
        elif name in PIECES and isinstance(result, (tuple, list)):
            self.history.note_pieces(name, args, kwargs, result)
        elif name in _PICKING and args:
            self._note_picked(name, args[0], result[0])
        elif name == "__setitem__":
            self._write(args[0], write_step(*args))

    def _follow_call(self, call: Call) -> None:
        """Any call but a product, which scores or probabilities may take part in."""
        if self._weights and self._extend(self._weights, call):
            return
        if call.name in SOFTMAXES:
            self._note_softmax(call)
        elif self._scores and not self._note_softmax_by_hand(call):
            self._extend(self._scores, call)
        self.history.note(call.name, call.args, call.kwargs, call.result)

    # a product: of queries and keys, of probabilities and values, or with a weight

    def _note_pairing(self, call: Call) -> None:
        """A product by hand, the beginning of one, or scores of another kind."""
        product = self._pairings.product_of(call)
        if product is not None:
            self._note_product(call, product)
        elif call.name not in COMPARISONS or any(map(self._is_followed, call.args[:2])):
            self._follow_call(call)
        else:
            self._begin_opaque(call, call.args[0], call.args[1])
            self.history.note(call.name, call.args, call.kwargs, call.result)

    def _is_followed(self, tensor: Tensor) -> bool:
        return self._scores.get(tensor) is not None or self._weights.get(tensor) is not None

    def _note_picked(self, name: str, scores: Tensor, picked: Tensor) -> None:
        """The best of the scores, whose keys are others in every row."""
        followed = self._scores.get(scores)
        if followed is not None:
            self._follow_opaque(picked, followed, f"its scores are picked by {name}, key by key")

    def _follow_opaque(self, tensor: Tensor, followed: Followed, why: str) -> None:
        """Follow what was made of scores in a way that cannot be done again."""
        made = followed.source._replace(doubtful=True, opaque=followed.source.opaque or why)
        self._follow(self._scores, tensor, Followed(made, (), self._order))

    def _begin_opaque(self, call: Call, left: Tensor, right: Tensor, why: str = "") -> None:
        """Follow what may become scores, of which nothing can be rebuilt."""
        why = why or f"its scores are made by {call.name}, which is not followed as a product"
        made = Product(
            left, right, "", self.history.node(left), self.history.node(right),
            doubtful=True, owner=tuple(self._running), opaque=why,
        )  # fmt: skip
        self._follow(self._scores, call.result, Followed(made, (), self._order))

    def _note_product(self, call: Call, product: Operands | None) -> None:
        if product is not None and self._note_values(call, product):
            return
        self.history.note("made", call.args, call.kwargs, call.result)
        if product is None:
            self._note_other_product(call)
            return
        left, right = product.left, product.right
        if self._mixes_heads(left, right) or self._mixes_heads(right, left):
            self._extend(self._scores, call)
        elif not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(left):
            self._notice(TRANSFORMED)
            self._begin_opaque(call, left, right, TRANSFORMED)
        elif left.ndim >= 2 and right.ndim >= 2:
            for weighing in weighings(self._scores, left, right):
                self._found(common_owner(weighing.owner, tuple(self._running)), weighing)
            outer = not product.equation and left.shape[-1] <= 1
            doubtful = is_weight(left) or is_weight(right) or call.result.ndim < 3 or outer
            made = Product(
                left, right, product.equation, self.history.node(left), self.history.node(right),
                doubtful, tuple(self._running),
            )  # fmt: skip
            self._follow(self._scores, call.result, Followed(made, product.steps, self._order))

    def _note_other_product(self, call: Call) -> None:
        """An einsum of one tensor moves its axes; one of three makes scores of another kind."""
        given = [t for t in tensors_among(call.args, call.kwargs) if not is_weight(t)]
        if len(given) > 1:
            self._begin_opaque(call, given[0], given[1])
        elif not self._extend(self._weights, call):
            self._extend(self._scores, call)

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
        equation = swap_operands(product.equation) if turned else product.equation
        same_ndim = call.result.ndim == len(sighting.shape)
        if same_ndim and not weighs_values(followed, equation, values, turned=turned):
            return self._extend(self._weights, call)
        attended = self._attended.get(values)
        if followed.mixed or attended is not None:
            refuse(sighting, *followed.mixed, *([] if attended is None else [attended]))
        elif sighting.product.opaque:
            sighting.refused = sighting.product.opaque
        owner = sighting.product.owner
        if sighting.values is not None and common_owner(owner, tuple(self._running)) != owner:
            self._notice("it weighs its values with the probabilities of another module")
            return True
        node = self.history.node(values)
        sighting.weigh(Values(values, equation, node, turned, followed.steps))
        if self._keep_outputs:
            sighting.output = call.result
        self._attended.put(call.result, sighting)
        self.history.note("made", (), {}, call.result)
        return True

    # from product to softmax, from softmax to values

    def _note_softmax(self, call: Call) -> None:
        scores = call.args[0] if call.args else call.kwargs.get("input")
        followed = self._scores.get(scores)
        found = None if followed is None else softmax_of(call, followed.steps)
        if followed is None or found is None or scores is None:
            self._notice("it takes a softmax of something that was not seen to be a product")
        elif followed.version != version_of(scores):
            self._notice("its scores were written into in a way that was not seen")
        else:
            self._begin_weights(call, followed.source, found)

    def _begin_weights(self, call: Call, product: Product, found: Found) -> None:
        shape = tuple(call.result.shape)
        sighting = Sighting(product, found.steps, found.axis, shape, found.division)
        if self._keep_outputs:
            sighting.same_source = same_source(product.left_node, product.right_node)
        self._found(common_owner(product.owner, tuple(self._running)), sighting)
        self._follow(self._weights, call.result, Followed(sighting, (), self._order))

    def _note_softmax_by_hand(self, call: Call) -> bool:
        """The call that makes a softmax of scores, written otherwise; False: it does not."""
        if call.name not in BY_HAND:
            return False
        given = tensors_among(call.args, call.kwargs)
        followed = self._scores.get(given[0]) if given else None
        other = self._scores.get(given[1]) if len(given) > 1 else None
        if followed is None or (other is not None and other.source is not followed.source):
            return False
        steps_of_other = () if other is None else other.steps
        found = softmax_by_hand(call, call.step(given[0]), followed.steps, steps_of_other)
        if isinstance(found, Step):
            steps = (*followed.steps, found)
            self._follow(self._scores, call.result, followed._replace(steps=steps))
            return True
        if found is None or not may_be_softmax(followed.source, found):
            return False
        self._begin_weights(call, followed.source, found)
        return True

    def _extend(self, live: Live, call: Call) -> bool:
        """Follow the result of a call that took a followed tensor; False where none took part."""
        tensor, followed = choose_source(live, call, self._running)
        if tensor is None or followed is None:
            return False
        if call.name in ALONG_THE_WIDTH and ends_with_keys(followed):
            return False
        if live is self._scores and joins_several(live, call):
            self._follow_opaque(call.result, followed, JOINED)
            return True
        mixed, steps = followed.mixed, followed.steps
        if live is self._weights:
            for other in tensors_among(call.args, call.kwargs):
                met = live.get(other)
                if met is not None and met.source is not followed.source:
                    mixed = (*mixed, *met.mixed, met.source)
        if call.name not in DROPOUTS and not (live is self._weights and call.name in CASTS):
            steps = (*steps, call.step(tensor))
            if call.result is tensor:
                note_write_into_view(live, tensor, followed.steps, steps[-1])
        self._follow(live, call.result, followed._replace(steps=steps, mixed=mixed))
        return True

    def _follow(self, live: Live, tensor: Tensor, followed: Followed) -> None:
        """Follow a tensor; it replaces what an in-place step left of itself."""
        live.put(tensor, followed._replace(version=version_of(tensor)))
        self._follows = True
        self._order += 1

    # writes: the tensor stays, what it holds does not

    def _write(self, target: Tensor, step: Step) -> None:
        for live in (self._scores, self._weights):
            followed = live.get(target)
            if followed is not None:
                live.put(target, with_write(target, followed, step))
        piece = self._scores.get(step.args[-1])
        if piece is not None and not self._is_followed(target):
            self._follow_opaque(target, piece, JOINED)

    def _notice(self, reason: str) -> None:
        self._noticed(tuple(self._running), reason)
