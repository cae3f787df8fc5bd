"""Follows tensors from a product of queries and keys, through a softmax, to the values.

It is shown every torch call that the chosen modules make and writes down what it sees, as it
stands; what that means is worked out when somebody asks (``reading``), outside of the model's own
time. The code below also runs while ``torch.compile`` traces a model, so it keeps to plain tuples,
lists and ``is``.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from .axes import ORDER_KEEPING, REORDERING, Node, kwargs_as_args

Function = Callable[..., Any]
Owner = tuple[str, ...]


class _Place:
    """Stands for the followed tensor among the arguments of a recorded call."""


PLACE = _Place()


class Step(NamedTuple):
    """One call on the way from product to softmax, or from softmax to values."""

    function: Function
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]


class Product(NamedTuple):
    """A product of two tensors whose result may become scores.

    Attributes:
        left: for a matrix product ``(..., q, d)``.
        right: for a matrix product ``(..., d, k)``.
        equation: of an einsum; empty for a matrix product.
        left_node: how the left tensor was made.
        right_node: how the right one was made.
        doubtful: it may be a weight, an outer product or a similarity matrix; only the values that
            it later weighs make an attention of it.
        owner: the chosen modules that were running, outermost first.
    """

    left: Tensor
    right: Tensor
    equation: str
    left_node: Node
    right_node: Node
    doubtful: bool
    owner: Owner


class Values(NamedTuple):
    """The product of probabilities and values.

    Attributes:
        tensor: the values.
        equation: of an einsum whose operands are probabilities and values, in this order; empty
            for ``probabilities @ values``.
        node: how the values were made.
        turned: the probabilities stood on the right, ``values @ probabilities``.
        steps: from the softmax to this product, dropout left out.
    """

    tensor: Tensor
    equation: str
    node: Node
    turned: bool
    steps: tuple[Step, ...]


class Sighting:
    """A softmax over scores, as the model wrote it."""

    def __init__(
        self, product: Product, steps: tuple[Step, ...], axis: int, shape: tuple[int, ...]
    ) -> None:
        self.product = product
        self.steps = steps
        self.axis = axis
        self.shape = shape
        self.values: Values | None = None
        self.output: Tensor | None = None
        self.detached = False
        self.same_source = same_source(product.left_node, product.right_node)
        self.refused = ""  # why it is no attention after all
        terms = tuple(a for step in steps for a in step.args)
        self.versions = versions_of((product.left, product.right, *terms))

    @property
    def has_lost_gradient(self) -> bool:
        """Whether queries or keys are part of a graph that this attention is outside of."""
        return any(t.grad_fn is not None for t in (self.product.left, self.product.right))

    def detach(self) -> None:
        """Keep the numbers, let go of the graph; what is seen later stays out of it as well."""
        self.detached = True
        left, right = self.product.left.detach(), self.product.right.detach()
        self.product = self.product._replace(left=left, right=right)
        self.steps = tuple(_detached(step) for step in self.steps)


class _Followed(NamedTuple):
    """Scores or probabilities in the hands of the model."""

    source: Any  # Product of scores, Sighting of probabilities
    steps: tuple[Step, ...]
    order: int
    mixed: tuple[Sighting, ...] = ()  # other softmaxes that had a part in it
    version: int = 0


_PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "mm"})
_SUMMED_PRODUCTS = frozenset({"baddbmm", "baddbmm_"})
_SOFTMAXES = frozenset({"softmax", "_softmax", "special_softmax", "_safe_softmax"})
_DROPOUTS = frozenset({"dropout", "dropout_", "feature_dropout", "alpha_dropout"})
# changes neither what a tensor holds nor how it is laid out, but for its precision
_CASTS = frozenset({
    "to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone",
})  # fmt: skip
# reading a shape, a flag or a number makes nothing new
_LOOKS = frozenset({
    "size", "dim", "stride", "numel", "is_contiguous", "is_floating_point", "all", "any", "isnan",
    "isinf", "max", "min", "amax", "amin", "item", "detach", "requires_grad_", "__len__", "ndimension",
    "data_ptr", "get_device", "tolist", "numpy", "logsumexp", "__bool__", "is_complex",
    "element_size", "storage_offset", "untyped_storage", "__format__", "__repr__", "register_hook",
    "allclose", "__hash__", "cpu",
})  # fmt: skip
_PIECES = frozenset({"chunk", "split", "unbind", "tensor_split", "split_with_sizes"})
_HISTORY = (
    ORDER_KEEPING
    | REORDERING
    | {
        "__getitem__",
        "select",
        "cat",
        "stack",
        "expand",
        "expand_as",
        "narrow",
        "repeat_interleave",
    }
)
# a tensor begins a new history here: its last axis is a width
_MAKERS = frozenset({"linear", "conv1d", "conv2d", "conv3d", "embedding", "addmm"})
# acts along the last axis as a whole; over queries or keys it makes something else of scores
_ALONG_THE_WIDTH = frozenset({"linear", "layer_norm", "rms_norm", "addmm"})
_IN_PLACE: dict[str, Function] = {
    "__iadd__": torch.add,
    "__isub__": torch.sub,
    "__imul__": torch.mul,
    "__itruediv__": torch.div,
}
# picks and shifts entries, as terms of relative positions are made
_SHIFTS = frozenset({"pad", "gather", "take_along_dim", "roll", "index_select", "__getitem__"})
_LIVE, _REMEMBERED = 12, 64


class Follower:
    """Watches the calls of the chosen modules.

    Args:
        found: called with each sighting and its owner, when its softmax is seen.
        noticed: called with an owner and the reason why something of it cannot be followed.
        owner: the chosen modules that are running, outermost first.
        keep_outputs: also hold what the values became, to check the reading against.
    """

    def __init__(
        self,
        found: Callable[[Owner, Sighting], None],
        noticed: Callable[[Owner, str], None],
        owner: list[str],
        *,
        keep_outputs: bool = False,
    ) -> None:
        self._found, self._noticed, self._owner = found, noticed, owner
        self._keep_outputs = keep_outputs
        self.forget()

    def forget(self) -> None:
        """Follow nothing any more: the outermost chosen module has returned."""
        self._nodes: list[tuple[Any, Node]] = []
        self._scores: list[tuple[Any, _Followed]] = []
        self._weights: list[tuple[Any, _Followed]] = []
        self._attended: list[tuple[Any, Sighting]] = []
        self._order = 0

    def saw(
        self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Take note of one call and its result."""
        name = _name_of(function, args, result)
        if name in _LOOKS or name == "__get__":
            return
        if name in _PIECES and isinstance(result, (tuple, list)):
            self._note_pieces(name, args, kwargs, result)
            return
        if name == "__setitem__":
            self._write(function, name, args)
            return
        if not isinstance(result, Tensor):
            return
        if name in _PRODUCTS or name == "einsum" or name in _SUMMED_PRODUCTS:
            self._multiply(function, name, args, kwargs, result)
            return
        if self._weights and self._pass_on(self._weights, function, name, args, kwargs, result):
            return
        if name in _SOFTMAXES:
            if self._normalize(args, kwargs, result):
                return
            reason = "it takes a softmax of something that was not seen to be a product"
            self._noticed(tuple(self._owner), reason)
        elif self._scores:
            self._pass_on(self._scores, function, name, args, kwargs, result)
        self._note(name, args, kwargs, result)

    # products

    def _multiply(
        self,
        function: Function,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Tensor,
    ) -> None:
        operands = _operands(name, args, kwargs)
        if operands is None:
            self._note("made", (), {}, result)
            return
        left, right, equation, steps = operands
        if self._weigh(left, right, equation, function, name, args, kwargs, result):
            return
        self._note("made", (), {}, result)
        if self._mixes_heads(left, right) or self._mixes_heads(right, left):
            self._pass_on(self._scores, function, name, args, kwargs, result)
            return
        if not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(left):
            reason = "it runs inside torch.vmap, whose tensors end with it"
            self._noticed(tuple(self._owner), reason)
            return
        if left.ndim < 2 or right.ndim < 2 or (not equation and left.shape[-1] == 0):
            return
        doubtful = (
            _is_weight(left)
            or _is_weight(right)
            or result.ndim < 3
            or (not equation and left.shape[-1] == 1)
        )
        product = Product(
            left, right, equation, self._node(left), self._node(right), doubtful,
            tuple(self._owner),
        )  # fmt: skip
        self._live(self._scores, result, _Followed(product, steps, self._order))

    def _mixes_heads(self, scores: Tensor, weight: Tensor) -> bool:
        """Whether a product is of scores and a small matrix; else it is a product of its own."""
        followed = _at(self._scores, scores)
        if followed is None or followed.source.doubtful:
            return False
        return _is_weight(weight) or weight.ndim <= 2

    def _weigh(
        self,
        left: Tensor,
        right: Tensor,
        equation: str,
        function: Function,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Tensor,
    ) -> bool:
        """A product in which probabilities take part: with values, with each other, with heads."""
        one, other = _at(self._weights, left), _at(self._weights, right)
        if one is None and other is None:
            return False
        if one is not None and other is not None:
            mixed = (*one.mixed, *other.mixed, one.source, other.source)
            self._live(self._weights, result, one._replace(mixed=mixed, order=self._order))
            return True
        followed = other if one is None else one
        assert followed is not None
        values, turned = (left, True) if one is None else (right, False)
        sighting: Sighting = followed.source
        attended = [of for held, of in self._attended if _held(held) is values]
        mixed = (*followed.mixed, *attended)
        if equation and turned:
            inputs, arrow, out = equation.partition("->")
            first, _, second = inputs.partition(",")
            equation = f"{second},{first}{arrow}{out}"
        if result.ndim != len(sighting.shape) or _weighs(followed, equation, turned, values):
            if mixed:
                _refuse(sighting, *mixed)
            sighting.values = Values(values, equation, self._node(values), turned, followed.steps)
            sighting.versions = (*sighting.versions, *versions_of((values,)))
            if self._keep_outputs:
                sighting.output = result
            self._attended = [*self._attended[-_LIVE:], (_ref(result), sighting)]
            self._note("made", (), {}, result)
            return True
        return self._pass_on(self._weights, function, name, args, kwargs, result)

    def _live(self, live: list[tuple[Any, _Followed]], tensor: Tensor, followed: _Followed) -> None:
        """Follow a tensor; it replaces what an in-place step left of itself."""
        kept = [(r, f) for r, f in live if _held(r) is not tensor]
        live[:] = [*kept[-_LIVE:], (_ref(tensor), followed._replace(version=_version(tensor)))]
        self._order += 1

    # from product to softmax, from softmax to values

    def _normalize(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> bool:
        scores = args[0] if args else kwargs.get("input")
        followed = _at(self._scores, scores)
        if followed is None or scores is None:
            return False
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if axis is None:
            return False
        if followed.version != _version(scores):
            reason = "its scores were written into in a way that was not seen"
            self._noticed(tuple(self._owner), reason)
            return True
        product: Product = followed.source
        sighting = Sighting(product, followed.steps, int(axis), tuple(result.shape))
        self._found(_common(product.owner, tuple(self._owner)), sighting)
        self._live(self._weights, result, _Followed(sighting, (), self._order))
        return True

    def _pass_on(
        self,
        live: list[tuple[Any, _Followed]],
        function: Function,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Tensor,
    ) -> bool:
        """Follow the result of a call that took a followed tensor; False where none took part."""
        tensor, followed = _chosen(live, args, kwargs, result)
        if tensor is None or followed is None:
            return False
        mixed = followed.mixed
        if live is self._weights:
            for other in _tensors(args, kwargs):
                met = _at(live, other)
                if met is not None and met.source is not followed.source:
                    mixed = (*mixed, *met.mixed, met.source)
        if name in _ALONG_THE_WIDTH and tensor is not result and _is_last(tensor, followed):
            return False
        steps = followed.steps
        if name not in _DROPOUTS and not (live is self._weights and name in _CASTS):
            placed = _placed(args, tensor)
            named = {key: PLACE if a is tensor else a for key, a in kwargs.items()}
            steps = (*steps, Step(_pure(function, name), name, placed, named, tuple(result.shape)))
        if result is tensor and name[-1:] == "_":
            self._write_through(live, tensor, followed, steps[-1])
        self._live(live, result, _Followed(followed.source, steps, followed.order, mixed))
        return True

    def _write(self, function: Function, name: str, args: tuple[Any, ...]) -> None:
        """``scores[index] = x``: the tensor stays, what it holds does not."""
        target = args[0]
        for live in (self._scores, self._weights):
            for i, (reference, followed) in enumerate(live):
                if _held(reference) is target:
                    rest = (PLACE, *args[1:])
                    step = Step(_written, name, rest, {}, tuple(target.shape))
                    live[i] = (reference, _rewritten(target, followed, step))
        del function

    def _write_through(
        self, live: list[tuple[Any, _Followed]], view: Tensor, of_view: _Followed, write: Step
    ) -> None:
        """``scores[0].masked_fill_(...)``: what is written into a view is in the whole."""
        if torch.compiler.is_compiling() or not view._is_view():
            return
        for i, (reference, followed) in enumerate(live):
            whole, n = _held(reference), len(followed.steps)
            if whole is None or whole is view or of_view.steps[:n] != followed.steps:
                continue
            if whole is view._base or (whole._is_view() and whole._base is view._base):
                path = of_view.steps[n:]
                function = functools.partial(_written_through, path, write)
                step = Step(function, "__setitem__", (PLACE,), {}, tuple(whole.shape))
                live[i] = (reference, _rewritten(whole, followed, step))

    # histories

    def _note(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> None:
        """Remember how a tensor was made, as far as its axes are concerned."""
        if name in _MAKERS or name == "made":
            sources = _tensors(args, kwargs) if self._keep_outputs else ()
            # the first is what was projected; held weakly, and only to compare it with another
            of = tuple(_ref(tensor) for tensor in sources)[:1]
            self._remember(result, Node("made", tuple(result.shape), of))
            return
        if name in _HISTORY:
            rest = args[1:]
            if name in ("cat", "stack"):
                parts = args[0] if args else kwargs.get("tensors", ())
                parts = [part for part in parts if name == "stack" or part.ndim == result.ndim]
                parents = tuple(self._node(part) for part in parts)
            elif args and isinstance(args[0], Tensor):
                parents = (self._node(args[0]),)
            else:
                return
            if any(isinstance(a, Tensor) for a in _flat(rest)):
                parents, rest = (), ()  # picked by positions: a new history
            rest = kwargs_as_args(name, rest, kwargs)
            node = Node(name if parents else "given", tuple(result.shape), rest, parents)
            self._remember(result, node)
            return
        for tensor in _tensors(args, kwargs):
            if tensor.shape == result.shape:
                node_or_none = self._known(tensor)
                if node_or_none is not None:
                    self._remember(result, node_or_none)
                    return

    def _note_pieces(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], pieces: Any
    ) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        parent = self._node(args[0])
        rest = kwargs_as_args(name, args[1:], kwargs)
        for piece in pieces:
            self._remember(piece, Node(name, tuple(piece.shape), rest, (parent,)))

    def _remember(self, tensor: Tensor, node: Node) -> None:
        self._nodes = [*self._nodes[-_REMEMBERED:], (_ref(tensor), node)]

    def _known(self, tensor: Tensor) -> Node | None:
        found: Node | None = None
        for reference, node in self._nodes:
            if _held(reference) is tensor:
                found = node
        return found

    def _node(self, tensor: Tensor) -> Node:
        node = self._known(tensor)
        return Node("given", tuple(tensor.shape)) if node is None else node

    def node(self, tensor: Tensor) -> Node:
        """How a tensor was made, as far as it was seen."""
        return self._node(tensor)


def same_source(one: Node, other: Node) -> bool | None:
    """Whether two tensors were made from the same one; None: that was not seen."""
    while one.parents:
        one = one.parents[0]
    while other.parents:
        other = other.parents[0]
    if one is other:
        return True
    if not one.args or not other.args:
        return None
    first, second = _held(one.args[0]), _held(other.args[0])
    return None if first is None or second is None else first is second


def _chosen(
    live: list[tuple[Any, _Followed]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Tensor,
) -> tuple[Tensor | None, _Followed | None]:
    """Which of the followed arguments the result goes on from.

    One as large as the result comes first (a mask may itself be a product), then one whose entries
    stayed in their places (terms of relative positions are shifted), then the oldest.
    """
    tensor: Tensor | None = None
    best: _Followed | None = None
    best_rank = (False, False, False, 0, 0)
    for given in _tensors(args, kwargs):
        followed = _at(live, given)
        if followed is None:
            continue
        doubtful = type(followed.source) is Product and followed.source.doubtful
        shifted = any(step.name in _SHIFTS for step in followed.steps)
        n = given.numel()
        rank = (n != result.numel(), doubtful, shifted, followed.order, -n)
        if best is None or rank < best_rank:
            tensor, best, best_rank = given, followed, rank
    return tensor, best


def _refuse(*several: Sighting) -> None:
    for sighting in several:
        sighting.refused = (
            "it multiplies or adds several softmaxes with each other, so that none of them is its "
            "attention"
        )


def _weighs(followed: _Followed, equation: str, turned: bool, values: Tensor) -> bool:  # noqa: FBT001
    """Whether a product contracts the axis of the softmax, as weighing values does."""
    sighting: Sighting = followed.source
    n = len(sighting.shape)
    if followed.steps:  # its axes may have moved: a product with a plain weight mixes heads
        return not _is_weight(values)
    axis = sighting.axis % n
    if equation:
        inputs, _, out = equation.replace(" ", "").partition("->")
        labels = inputs.partition(",")[0]
        if "..." in labels or len(labels) != n:
            return True
        return labels[axis] not in out
    return axis == (n - 2 if turned else n - 1)


def _is_last(tensor: Tensor, followed: _Followed) -> bool:
    """Whether the last axis of a followed tensor is one of queries or keys still."""
    names = [step.name for step in followed.steps]
    return not any(name in REORDERING for name in names)


def _operands(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor, str, tuple[Step, ...]] | None:
    """Left and right of a product, the equation of an einsum, what is done to the product."""
    if name == "einsum":
        given = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        if not isinstance(args[0], str) or len(given) != 2:
            return None
        return given[0], given[1], args[0], ()
    if name in _SUMMED_PRODUCTS:
        added, left, right = [
            *args,
            *(kwargs[n] for n in ("input", "batch1", "batch2")[len(args) :]),
        ][:3]
        beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
        shape = (left.shape[0], left.shape[1], right.shape[2])
        steps: tuple[Step, ...] = ()
        if alpha != 1:
            steps = (Step(torch.mul, "mul", (PLACE, alpha), {}, shape),)
        if beta != 0:
            term = added.clone() if name == "baddbmm_" else added
            step = Step(torch.add, "add", (PLACE, term), {"alpha": beta}, shape)
            steps = (
                *steps,
                step if beta != 1 else Step(torch.add, "add", (PLACE, term), {}, shape),
            )
        return left, right, "", steps
    left = args[0] if args else kwargs.get("input")
    right = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("mat2"))
    if name == "__rmatmul__":
        left, right = right, left
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    return left, right, "", ()


def _name_of(function: Function, args: tuple[Any, ...], result: Any) -> str:
    """What an operation is called; ``x.mT`` and ``x.T`` by what they do."""
    name: str = getattr(function, "__name__", "")
    if name != "__get__" or not isinstance(result, Tensor) or not args or result is args[0]:
        return name
    before, after = args[0].shape, result.shape
    if len(before) < 2 or before[-2:] != after[-2:][::-1] or before[:-2] != after[:-2]:
        return name
    if before[-1] != before[-2] or args[0].stride() != result.stride():
        return "mT"
    return name


def _pure(function: Function, name: str) -> Function:
    """What an in-place function computes, without overwriting: ``add_`` -> ``add``."""
    if name in _IN_PLACE:
        return _IN_PLACE[name]
    if name[-1:] == "_" and name[-2:] != "__":
        pure: Function = getattr(Tensor, name[:-1], function)
        return pure
    return function


def _written(scores: Tensor, index: Any, value: Any) -> Tensor:
    changed = scores.clone()
    changed[index] = value
    return changed


def _written_through(path: tuple[Step, ...], write: Step, whole: Tensor) -> Tensor:
    """The whole after a write into the view of it that ``path`` leads to."""
    changed = whole.clone()
    view = changed
    for step in path:
        view = step.function(*(view if a is PLACE else a for a in step.args), **step.kwargs)
    view.copy_(write.function(*(view if a is PLACE else a for a in write.args), **write.kwargs))
    return changed


def _rewritten(tensor: Tensor, followed: _Followed, step: Step) -> _Followed:
    return followed._replace(steps=(*followed.steps, step), version=_version(tensor))


def _is_weight(tensor: Tensor) -> bool:
    if isinstance(tensor, nn.Parameter):
        return True
    if torch.compiler.is_compiling():
        return False
    return tensor._is_view() and isinstance(tensor._base, nn.Parameter)


def _detached(step: Step) -> Step:
    def of(a: Any) -> Any:
        return a.detach() if isinstance(a, Tensor) else a

    args = tuple(tuple(of(b) for b in a) if isinstance(a, tuple) else of(a) for a in step.args)
    return step._replace(args=args, kwargs={name: of(a) for name, a in step.kwargs.items()})


def _common(one: Owner, other: Owner) -> Owner:
    """The modules that were running both times."""
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return one[:common]


def _at(live: list[tuple[Any, _Followed]], tensor: Any) -> _Followed | None:
    found: _Followed | None = None
    for reference, followed in live:
        if _held(reference) is tensor:
            found = followed
    return found


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for a in _flat((*args, *kwargs.values())):
        if isinstance(a, Tensor):
            yield a


def _flat(args: tuple[Any, ...]) -> list[Any]:
    found: list[Any] = []
    for a in args:
        if isinstance(a, (tuple, list)):
            found.extend(a)
        else:
            found.append(a)
    return found


def _placed(args: tuple[Any, ...], tensor: Tensor) -> tuple[Any, ...]:
    placed: list[Any] = []
    for a in args:
        if isinstance(a, (tuple, list)):
            placed.append(tuple(PLACE if one is tensor else one for one in a))
        else:
            placed.append(PLACE if a is tensor else a)
    return tuple(placed)


def _ref(tensor: Tensor) -> Any:
    """A weak reference; while a compiler traces, which has none, the tensor itself."""
    return tensor if torch.compiler.is_compiling() else weakref.ref(tensor)


def _held(reference: Any) -> Any:
    return reference() if type(reference) is weakref.ref else reference


def _version(tensor: Tensor) -> int:
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


def versions_of(tensors: tuple[Any, ...]) -> tuple[tuple[Tensor, int], ...]:
    """What tells later whether a tensor was overwritten in the meantime."""
    if torch.compiler.is_compiling():
        return ()
    return tuple((t, t._version) for t in tensors if isinstance(t, Tensor) and not t.is_inference())
