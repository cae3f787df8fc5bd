"""What is written down while a model runs: products, steps, softmaxes and the values they weigh.

Nothing here is worked out; ``reading`` does that when somebody asks, outside of the model's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._plugins.specs import Reference
from .history import Node

Function = Callable[..., Any]
Owner = tuple[str, ...]
"""The chosen modules that were running, outermost first."""


class _Place:
    """Stands for the followed tensor among the arguments of a recorded call."""

    def __repr__(self) -> str:
        return "<scores>"


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
        owner: where it was taken.
        opaque: why scores made of it cannot be rebuilt from the two tensors; empty where they can.
    """

    left: Tensor
    right: Tensor
    equation: str
    left_node: Node
    right_node: Node
    doubtful: bool
    owner: Owner
    opaque: str = ""


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
    """A softmax over scores, as the model wrote it.

    Attributes:
        product: of queries and keys.
        steps: from the product to the softmax.
        axis: of the softmax.
        shape: of the scores when it was taken.
        division: what takes the place of the softmax where the model divides the scores, having
            made them positive, by a sum of its own making; None: a softmax.
        values: what the probabilities weighed; None: not seen, or not yet.
        output: what became of the values, where that is kept.
        same_source: whether queries and keys were made from the same tensor, where that was seen.
        versions: what tells later whether a tensor was overwritten in the meantime.
        refused: why it is no attention after all; empty where nothing speaks against it.
    """

    def __init__(
        self,
        product: Product,
        steps: tuple[Step, ...],
        axis: int,
        shape: tuple[int, ...],
        division: Step | None = None,
    ) -> None:
        self.product = product
        self.steps = steps
        self.axis = axis
        self.shape = shape
        self.division = division
        self.values: Values | None = None
        self.output: Tensor | None = None
        self.detached = False
        self.same_source: bool | None = None
        self.refused = ""
        every = steps if division is None else (*steps, division)
        terms = tuple(a for step in every for a in (*step.args, *step.kwargs.values()))
        self.versions = versions_of((product.left, product.right, *terms))

    @property
    def has_lost_gradient(self) -> bool:
        """Whether queries or keys are part of a graph that this attention is outside of."""
        return any(t.grad_fn is not None for t in (self.product.left, self.product.right))

    def weigh(self, values: Values) -> None:
        """The probabilities met their values."""
        if self.detached:
            values = values._replace(tensor=values.tensor.detach())
        self.values = values
        self.versions = (*self.versions, *versions_of((values.tensor,)))

    def detach(self) -> None:
        """Keep the numbers, let go of the graph; what is seen later stays out of it as well."""
        self.detached = True
        left, right = self.product.left.detach(), self.product.right.detach()
        self.product = self.product._replace(left=left, right=right)
        self.steps = tuple(_detach_step(step) for step in self.steps)
        if self.division is not None:
            self.division = _detach_step(self.division)


class Weighing:
    """Scores that met a third tensor without a softmax: an attention of another kind, or none.

    Attributes:
        equation: of the product that they are, as of a :class:`Product`.
        left_node: how its left tensor was made.
        right_node: how its right one was made.
        owner: where it was taken.
        names: of what was done to the scores on the way.
        refused: empty; whether it is an attention is told from the axes of the product.
    """

    has_lost_gradient = False
    same_source: bool | None = None
    versions: tuple[tuple[Tensor, int], ...] = ()
    refused = ""

    def __init__(self, product: Product, names: tuple[str, ...]) -> None:
        self.equation, self.owner, self.names = product.equation, product.owner, names
        self.left_node, self.right_node = product.left_node, product.right_node

    def detach(self) -> None:
        """It holds no tensor."""


class FusedCall:
    """One call of a function that computes a whole attention.

    Attributes:
        read: from the call's arguments to an ``Attention``; a reference, resolved when it is read.
        args: of the call.
        kwargs: of the call.
        output: what it returned, where that is kept.
        same_source: whether queries and keys were made from the same tensor, where that was seen.
        nodes: how queries, keys and values were made, where their axes do not tell by themselves.
        pair: how queries and keys were made, where that was seen.
        versions: as of a :class:`Sighting`.
        refused: why it cannot be read; empty where nothing speaks against it.
    """

    has_lost_gradient = False  # its arguments are what the reader takes, with their graph

    def __init__(
        self, read: Reference, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        self.read, self.args, self.kwargs, self.output = read, args, dict(kwargs), output
        self.same_source: bool | None = None
        self.nodes: tuple[Node, ...] = ()
        self.pair: tuple[Node, ...] = ()
        self.versions = versions_of((*args, *kwargs.values()))
        self.refused = ""

    def detach(self) -> None:
        """Keep the numbers, let go of the graph."""
        self.args = tuple(detach_value(a) for a in self.args)
        self.kwargs = {name: detach_value(a) for name, a in self.kwargs.items()}


def detach_value(x: Any) -> Any:
    """A tensor, or those of a tuple, without gradient; anything else as it is."""
    if isinstance(x, tuple):
        return tuple(map(detach_value, x))
    return x.detach() if isinstance(x, Tensor) else x


def _detach_step(step: Step) -> Step:
    kwargs = {name: detach_value(a) for name, a in step.kwargs.items()}
    return step._replace(args=tuple(map(detach_value, step.args)), kwargs=kwargs)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written into; 0 where nobody counts."""
    if torch.compiler.is_dynamo_compiling() or tensor.is_inference():
        return 0
    return tensor._version  # noqa: SLF001 (torch's own counter of in-place writes)


def versions_of(tensors: tuple[Any, ...]) -> tuple[tuple[Tensor, int], ...]:
    """Every tensor with its version."""
    if torch.compiler.is_compiling():
        return ()
    # nobody counts the writes into a tensor of inference mode
    return tuple(
        [(t, 0 if t.is_inference() else t._version) for t in tensors if isinstance(t, Tensor)]  # noqa: SLF001
    )
