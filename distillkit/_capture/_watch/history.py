"""How tensors were made, as far as their axes are concerned.

Every tensor that a chosen module makes gets a node; a node points to those of the tensors that it
was made of, so that the last view of a query tells all the way back to its projection::

    linear ──► view ──► permute ──► unbind ──► q
    "made"     (3, h, e)  (2, 0, 3, 1, 4)  0

A linear layer, an embedding or a product begins a new history, since its last axis is a new width.
An operation entry by entry changes no axis: its result has the node of the tensor that it took.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .memory import Memory


class Node(NamedTuple):
    """One step in the making of a tensor.

    Attributes:
        name: the operation; ``"made"`` for a tensor that starts a history (a linear layer's
            output), ``"given"`` for one that was handed to the module from outside.
        shape: of the tensor.
        args: the operation's arguments after its tensors.
        parents: the tensors that it took.
    """

    name: str
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    parents: tuple[Node, ...] = ()


# the same entries in the same order, cut into axes of other sizes
ORDER_KEEPING = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
    "_unsafe_view", "ravel",
})  # fmt: skip
# the same axes in another order
REORDERING = frozenset({
    "transpose", "transpose_", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "mT", "t",
    "T",
})  # fmt: skip
PIECES = frozenset({"chunk", "split", "unbind", "tensor_split", "split_with_sizes"})
_OTHERS = frozenset({
    "__getitem__", "select", "cat", "stack", "expand", "expand_as", "narrow", "repeat_interleave",
})  # fmt: skip
_ARRANGING = ORDER_KEEPING | REORDERING | _OTHERS
# a tensor begins a new history here: its last axis is a width
_MAKERS = frozenset({"made", "linear", "conv1d", "conv2d", "conv3d", "embedding", "addmm"})


class History:
    """The tensors of the running module, and how each was made.

    Args:
        with_sources: also remember what was projected, to tell self- from cross-attention.
    """

    def __init__(self, *, with_sources: bool) -> None:
        self._with_sources = with_sources
        self._nodes: Memory[Node] = Memory()

    def begin(self, *, tracing: bool) -> None:
        """Know nothing yet."""
        self._nodes.begin(tracing=tracing)

    def node(self, tensor: Tensor) -> Node:
        """How a tensor was made; ``"given"`` where that was not seen."""
        known = self._nodes.get(tensor)
        return Node("given", tensor.shape) if known is None else known

    def note(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> None:
        """Remember the result of an operation."""
        if name in _MAKERS:
            source = self._source(args, kwargs) if self._with_sources else ()
            self._nodes.put(result, Node("made", result.shape, source))
        elif name in _ARRANGING:
            self._nodes.put(result, self._arrange(name, args, kwargs, result))
        else:
            self._inherit(args, kwargs, result)

    def note_pieces(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], pieces: Any
    ) -> None:
        """Remember each of the tensors that one was taken apart into."""
        if args and isinstance(args[0], Tensor):
            parent = self.node(args[0])
            rest = positional(name, args[1:], kwargs)
            for piece in pieces:
                self._nodes.put(piece, Node(name, piece.shape, rest, (parent,)))

    def _source(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The tensor that was projected, held weakly, only to compare it with another."""
        return tuple(weakref.ref(tensor) for tensor in tensors_among(args, kwargs)[:1])

    def _arrange(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> Node:
        """The same entries, or some of them, in other places."""
        rest = args[1:]
        parts = _arranged_tensors(name, args, kwargs, result)
        if not parts or (rest and tensors_among(rest, {})):
            return Node("given", result.shape)  # picked by positions: nothing tells
        parents = tuple([self.node(part) for part in parts])
        return Node(name, result.shape, positional(name, rest, kwargs), parents)

    def _inherit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> None:
        """Of an operation entry by entry: what it was made from."""
        shape = result.shape
        for tensor in tensors_among(args, kwargs):
            # most calls, most of the time: a comparison is less than a look
            if tensor.shape == shape and (known := self._nodes.get(tensor)) is not None:
                self._nodes.put(result, known)
                return


def is_same_but_turned(one: Node, other: Node) -> bool:
    """Whether two tensors are the same one, but for the order of their axes."""
    return _is_made_alike(_unturned(one), _unturned(other))


def _unturned(node: Node) -> Node:
    while node.parents and node.name in REORDERING:
        node = node.parents[0]
    return node


def _is_made_alike(one: Node, other: Node) -> bool:
    if one is other:
        return True
    if not one.parents or one[:3] != other[:3] or len(one.parents) != len(other.parents):
        return False
    return all(map(_is_made_alike, one.parents, other.parents))


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
    first, second = one.args[0](), other.args[0]()
    return None if first is None or second is None else first is second


def tensors_among(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a call was given, those in its lists too."""
    found: list[Tensor] = []
    for a in (*args, *kwargs.values()) if kwargs else args:
        kind = type(a)
        if kind in _NUMBERS:  # asked first: a tensor is a slow question
            continue
        if isinstance(a, Tensor):
            found.append(a)
        elif kind is tuple or kind is list or isinstance(a, (tuple, list)):
            found.extend([b for b in a if isinstance(b, Tensor)])
    return found


_NUMBERS = frozenset({int, float, bool, type(None), str})


def positional(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments after the tensor by position, for the operations that the rules know."""
    if not kwargs:
        return args
    return (*args, *(kwargs[key] for key in _KEYWORDS.get(name, ()) if key in kwargs))


_KEYWORDS: dict[str, tuple[str, ...]] = {
    "transpose": ("dim0", "dim1"), "swapaxes": ("axis0", "axis1"), "swapdims": ("dim0", "dim1"),
    "permute": ("dims",), "select": ("dim", "index"), "unbind": ("dim",), "cat": ("dim",),
    "movedim": ("source", "destination"), "moveaxis": ("source", "destination"),
}  # fmt: skip


def _arranged_tensors(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
) -> list[Tensor]:
    if name in ("cat", "stack"):
        joined = args[0] if args else kwargs.get("tensors", ())
        return [part for part in joined if name == "stack" or part.ndim == result.ndim]
    return [args[0]] if args and isinstance(args[0], Tensor) else []
