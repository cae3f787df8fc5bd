"""From what was seen to an ``Attention`` of ``(b, h, q, k)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._attention import Attention, widen
from ..._plugins.specs import resolve
from ...errors import CaptureError, ShapeError
from .._watch.sighting import FusedCall, Sighting, Step, Weighing, version_of
from .axes import (
    Axes,
    Axis,
    Unreadable,
    arrange,
    axes_of,
    factors_of,
    groups_of,
    size_of,
)
from .products import Labels, einsum_labels, matmul_labels, sides_of, sides_of_values
from .steps import axes_after, fold, keeps_entries, replay


@dataclass(frozen=True)
class Reading:
    """An attention, and what the model made of it where that was kept.

    Attributes:
        attention: ``(b, h, q, k)``.
        output: the probabilities' product with the values, ``(b, h, q, e)``; None: not seen.
    """

    attention: Attention
    output: Tensor | None = None


def read(sighting: Sighting, examples: frozenset[int]) -> Reading | None:
    """The attention that was seen; None for a doubtful product that weighs no values.

    Args:
        sighting: what was seen.
        examples: how many examples the model may have been given.

    Raises:
        CaptureError: why it cannot be told in terms of batch, heads, queries and keys.
    """
    if sighting.product.opaque:
        return None  # it would be refused, had it met values
    try:
        seen = _Seen(sighting, examples)
        if (sighting.product.doubtful or sighting.division) and seen.values is None:
            return None
        return seen.reading()
    except (Unreadable, ShapeError) as reason:
        if sighting.product.doubtful:
            return None
        raise CaptureError(
            f"it takes a softmax over scores of shape {sighting.shape}, but {reason}"
        ) from None


def check_no_attention(weighing: Weighing) -> None:
    """Refuse scores that weigh values without a softmax, and sums over positions that queries read.

    Scores of positions against positions are the former; a product that sums over positions is the
    latter, linear attention. Any other product of three tensors is nobody's attention.

    Raises:
        CaptureError: which of them it is.
    """
    left, right = weighing.left_node, weighing.right_node
    try:
        labels = _labels(weighing.equation, len(left.shape), len(right.shape))
        sides = sides_of(labels, axes_of(left), axes_of(right))
    except Unreadable:
        return
    free = [axis for axis in sides.out if _has_role(axis, "query") or _has_role(axis, "key")]
    if len(free) == 2 and all(map(_is_of_positions, free)) and not _is_of_positions(sides.width):
        done = ", ".join(name.strip("_") for name in weighing.names) or "nothing"
        raise CaptureError(
            "its scores weigh something without a softmax that capture knows "
            f"(done to them: {done}), so that there is no map of probabilities to read"
        )
    if not any(map(_is_of_positions, free)) and (
        _is_of_positions(sides.width) or "cumsum" in weighing.names
    ):
        raise CaptureError(
            "it sums products of keys and values over the positions before queries meet them "
            "(linear attention), so that there is no map of probabilities to read"
        )


def _is_of_positions(axis: Axis) -> bool:
    factors = factors_of(axis)
    return bool(factors) and all(factor.origin != "width" for factor in factors)


def read_call(call: FusedCall, examples: frozenset[int]) -> Reading:
    """The attention of a function that computes a whole one, and what it returned."""
    try:
        args, kwargs = _unfold(call, examples) if call.nodes else (call.args, call.kwargs)
        attention = resolve(call.read)(*args, **kwargs)
    except (Unreadable, ShapeError) as reason:
        raise CaptureError(f"the arguments of its fused attention do not tell: {reason}") from None
    return Reading(attention, _first_tensor(call.output))


def _first_tensor(output: Any) -> Tensor | None:
    """What a kernel returned; of several things, such as the output and its log-sum, the first."""
    if isinstance(output, (tuple, list)):
        return next((one for one in output if isinstance(one, Tensor)), None)
    return output if isinstance(output, Tensor) else None


def _unfold(call: FusedCall, examples: frozenset[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Queries, keys, values and mask with four axes, from as many as the model gave them."""
    query, key, value, *rest = call.args
    of_query, of_key, of_value = map(axes_of, call.nodes)
    one, other, out, lead = matmul_labels(query.ndim, key.ndim)
    labels = Labels(one, f"{other[:-2]}xz", out, lead)
    sides = sides_of(labels, of_query, of_key)
    groups = groups_of(sides.out, -1, "key", examples)
    batch, heads, queries, keys = groups
    b, h, *_ = groups.shape
    few = _held_heads(heads, sides.right)
    query = arrange(query, sides.left, (batch, heads, queries, sides.width)).expand(b, h, -1, -1)
    key = arrange(key, sides.right, (batch, few, keys, sides.width)).expand(b, -1, -1, -1)
    weighing = sides_of_values(_labels("", len(out), value.ndim), sides.out, of_value)
    value = arrange(value, weighing.right, (batch, few, keys, weighing.width))

    def fitted(mask: Any) -> Any:
        return arrange(mask, sides.out, groups) if isinstance(mask, Tensor) else mask

    kwargs = {name: fitted(a) for name, a in call.kwargs.items()}
    return (query, key, value.expand(b, -1, -1, -1), *map(fitted, rest)), kwargs


def check_unwritten(versions: Sequence[tuple[Tensor, int]]) -> None:
    """Refuse tensors that the model wrote into after it had computed its attention from them."""
    if [1 for tensor, version in versions if version_of(tensor) != version]:
        raise CaptureError(
            "a tensor of it was overwritten in place after its attention had been computed from it"
        )


class _Seen:
    """One sighting, its tensors told in the factors of batch, heads, queries and keys."""

    def __init__(self, sighting: Sighting, examples: frozenset[int]) -> None:
        self.sighting, product = sighting, sighting.product
        labels = _labels(product.equation, product.left.ndim, product.right.ndim)
        sides = sides_of(labels, axes_of(product.left_node), axes_of(product.right_node))
        self.product_axes = sides.out
        self.axes = axes_after(sides.out, sighting.steps)
        axis = sighting.axis
        self.key_role = _key_role(self.axes, axis)
        # slots: the softmax runs over the queries, which share out each key among themselves
        other = "key" if self.key_role == "query" else "query"
        self.is_shared_out = self._sums_over(other, axes_after(self.axes, self._post))
        if self.is_shared_out:
            self.key_role = other
            axis = next(i for i, one in enumerate(self.axes) if _has_role(one, self.key_role))
        groups = groups_of(self.axes, axis, self.key_role, examples)
        keys = tuple(f for axis in sides.out for f in factors_of(axis) if f.role == self.key_role)
        # sinks: the softmax runs over more than the product's keys; they are what counts
        self.has_sinks = groups.keys != keys
        self.groups = groups._replace(keys=keys)
        b, h, *_ = self.groups.shape
        both = [(product.left, sides.left), (product.right, sides.right)]
        (query, query_axes), (key, key_axes) = both if self.key_role == "key" else both[::-1]
        batch, heads, queries, keys = self.groups
        query = arrange(query, query_axes, (batch, heads, queries, sides.width))
        few = _held_heads(heads, key_axes)
        key = arrange(key, key_axes, (batch, few, keys, sides.width))
        self.query, self.key = query.expand(b, h, -1, -1), key.expand(b, -1, -1, -1)
        self.values = sighting.values
        if self.values is not None and self._sums_over(self.key_role, self._used_axes()) is False:
            raise Unreadable("the product with its values sums over something else than keys")

    def _sums_over(self, role: str, axes: Axes) -> bool | None:
        """Whether the product with the values sums over one side; None: over a single entry."""
        if self.sighting.values is None:
            return False
        labels = self._value_labels()
        summed = [axis for n, axis in zip(labels.left, axes, strict=True) if n not in labels.out]
        return all(_has_role(axis, role) for axis in summed if axis) if any(summed) else None

    def reading(self) -> Reading:
        value, output = self._value_and_output()
        return Reading(self._attention(value), output)

    def _attention(self, value: Tensor | None) -> Attention:
        post, shape = self._post, self.groups.shape
        given: dict[str, Any] = {"query": self.query, "key": self.key, "value": value}
        changed = any(not keeps_entries(step) for step in post)
        by_hand = self.sighting.division is not None or self.is_shared_out
        if self.values is not None and (changed or by_hand):
            return Attention.replayed(shape, used=self._used, **given)
        if self.has_sinks:
            raise Unreadable("its softmax has other entries than its product has keys")
        folded = fold(self.sighting.steps, self.product_axes, self.groups)
        if folded is None:
            return Attention.replayed(shape, scores=self._scores, **given)
        return Attention(
            self.query, self.key, value, scale=folded.scale, mask=folded.mask, bias=folded.bias
        )

    def _raw_scores(self) -> Tensor:
        """The scores as the model laid them out, in float32 at least."""
        product = self.sighting.product
        left, right = widen(product.left), widen(product.right)
        equation = product.equation
        scores = torch.einsum(equation, left, right) if equation else left @ right
        return replay(self.sighting.steps, scores)

    def _scores(self) -> Tensor:
        with torch.autocast(self.query.device.type, enabled=False):
            raw = self._raw_scores()
        return arrange(raw, self.axes, self.groups).expand(self.groups.shape)

    def _weights(self) -> Tensor:
        """The result of the softmax, or of what the model did in its place."""
        scores, division = self._raw_scores(), self.sighting.division
        if division is None:
            return scores.softmax(self.sighting.axis)
        return replay([division], scores)

    @property
    def _post(self) -> tuple[Step, ...]:
        """The steps between the softmax and the product with the values."""
        values = self.sighting.values
        return () if values is None else values.steps

    def _used(self) -> Tensor:
        """The probabilities that the values were weighed with, after what was done to them."""
        with torch.autocast(self.query.device.type, enabled=False):
            used = replay(self._post, self._weights())
        return arrange(used, self._used_axes(), self.groups).expand(self.groups.shape)

    def _used_axes(self) -> Axes:
        keys = self.groups.keys
        return tuple(
            keys if _has_role(axis, self.key_role) and size_of(axis) == size_of(keys) else axis
            for axis in axes_after(self.axes, self._post)
        )

    def _value_labels(self) -> Labels:
        values = self.sighting.values
        assert values is not None
        n = len(self._post[-1].shape if self._post else self.sighting.shape)
        if values.turned and not values.equation:
            right, left, out, lead = matmul_labels(values.tensor.ndim, n)
            return Labels(left, right, out, lead)
        return _labels(values.equation, n, values.tensor.ndim)

    def _value_and_output(self) -> tuple[Tensor | None, Tensor | None]:
        """The values ``(b, g, k, e)`` and what they became, ``(b, h, q, e)``."""
        values = self.values
        if values is None:
            return None, None
        sides = sides_of_values(self._value_labels(), self._used_axes(), axes_of(values.node))
        batch, heads, queries, keys = self.groups
        b, h, q, _ = self.groups.shape
        few = _held_heads(heads, sides.right)
        value = arrange(values.tensor, sides.right, (batch, few, keys, sides.width))
        output = self.sighting.output
        if output is not None:
            output = arrange(output, sides.out, (batch, heads, queries, sides.width))
            output = output.expand(b, h, q, -1)
        return value.expand(b, -1, -1, -1), output


def _key_role(axes: Axes, softmax_axis: int) -> str:
    """Which side of the product the softmax runs over: that is the keys'."""
    over = {factor.role for factor in factors_of(axes[softmax_axis])}
    if not over:  # a single key has no factor to tell; what the other axes are tells
        rest = {factor.role for axis in axes for factor in factors_of(axis)}
        if not rest & {"query", "key"}:
            return "key" if softmax_axis % len(axes) == len(axes) - 1 else "query"
        return "query" if "query" not in rest else "key"
    return "query" if over == {"query"} else "key"


def _labels(equation: str, left: int, right: int) -> Labels:
    return einsum_labels(equation, left, right) if equation else matmul_labels(left, right)


def _has_role(axis: Axis, role: str) -> bool:
    return bool(axis) and all(factor.role == role for factor in factors_of(axis))


def _held_heads(heads: Axis, axes: Axes) -> Axis:
    """The heads that a tensor has: all, the slow part where queries are grouped, or one."""
    held = {factor for axis in axes for factor in factors_of(axis)}
    present = [factor in held for factor in heads]
    count = sum(present)
    return heads[:count] if all(present[:count]) else heads
