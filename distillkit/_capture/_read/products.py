"""The axes of two tensors that were multiplied, told in factors that both share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .axes import Axes, Axis, factors_of, regroup, size_of


class Labels(NamedTuple):
    """A product of two tensors in einsum's notation: a label for each axis.

    ``lead`` are the labels that number maps even where only one of the tensors has them.
    """

    left: str
    right: str
    out: str
    lead: str = ""


class Sides(NamedTuple):
    """The axes of a product of two tensors: of the result, of either tensor, and contracted."""

    out: Axes
    left: Axes
    right: Axes
    width: Axis


def matmul_labels(left: int, right: int) -> Labels:
    """Of ``(..., q, d) @ (..., d, k)`` with so many axes."""
    depth = max(left, right) - 2
    lead = _NAMES[:depth]
    one, other = lead[depth - left + 2 :], lead[depth - right + 2 :]
    return Labels(f"{one}yz", f"{other}zx", f"{lead}yx", lead)


def einsum_labels(equation: str, left: int, right: int) -> Labels:
    """Of an einsum of two operands with so many axes, an ellipsis spelt out."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    one, _, other = inputs.partition(",")
    free = "".join(name for name in _NAMES if name not in equation)
    depth = max(left - len(one.replace("...", "")), right - len(other.replace("...", "")), 0)

    def spelt(labels: str, ndim: int) -> str:
        missing = ndim - len(labels.replace("...", ""))
        return labels.replace("...", free[depth - missing : depth] if missing > 0 else "")

    one, other = spelt(one, left), spelt(other, right)
    if not arrow:
        out = "..." + "".join(
            sorted(c for c in {*one, *other} - {*free[:depth]} if (one + other).count(c) == 1)
        )
    return Labels(one, other, out.replace("...", free[:depth]), free[:depth])


_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _role_of(label: str, labels: Labels) -> str:
    """Whose rows a label of the result numbers; of both sides': it leads."""
    if label in labels.lead or (label in labels.left and label in labels.right):
        return "lead"
    return "query" if label in labels.left else "key"


def sides_of(labels: Labels, left: Axes, right: Axes) -> Sides:
    """The axes of two tensors that were multiplied, told in factors that both share."""
    axis_of = _contract(labels, left, right, _merge)
    for label in labels.out:
        _with_role(axis_of[label], _role_of(label, labels))
    width = tuple(f for label in labels.left if label not in labels.out for f in axis_of[label])
    return Sides(
        tuple(axis_of[label] for label in labels.out),
        tuple(_free_part(axis, axis_of[n]) for axis, n in zip(left, labels.left, strict=True)),
        tuple(_free_part(axis, axis_of[n]) for axis, n in zip(right, labels.right, strict=True)),
        width,
    )


def sides_of_values(labels: Labels, probabilities: Axes, values: Axes) -> Sides:
    """The same of probabilities and values, in the factors that the probabilities have already."""
    axis_of = _contract(labels, probabilities, values, lambda p, v: v if size_of(p) == 1 else p)
    own = tuple(f for label in labels.right if label not in labels.left for f in axis_of[label])
    return Sides(
        tuple(axis_of[label] for label in labels.out),
        probabilities,
        tuple(_free_part(axis, axis_of[n]) for axis, n in zip(values, labels.right, strict=True)),
        own,
    )


def _contract(
    labels: Labels, left: Axes, right: Axes, agree: Callable[[Axis, Axis], Axis]
) -> dict[str, Axis]:
    axis_of = dict(zip(labels.left, left, strict=True))
    for label, axis in zip(labels.right, right, strict=True):
        axis_of[label] = agree(axis_of[label], axis) if label in axis_of else axis
    return axis_of


def _merge(one: Axis, other: Axis) -> Axis:
    """The factors of two axes that met: the side that knows more of it."""
    if size_of(one) != size_of(other):
        return one if size_of(one) > size_of(other) else other
    if _numbers_heads(one):
        return one
    unsure = any(factor.origin == "unknown" for factor in factors_of(one))
    return other if unsure or _numbers_heads(other) else one


def _free_part(axis: Axis, shared: Axis) -> Axis:
    """One side's axis in the factors of the product; () where it broadcast.

    A side with fewer heads (grouped queries) keeps the slow part of the shared factors.
    """
    if size_of(axis) in (1, size_of(shared)):
        return () if size_of(axis) == 1 else shared
    return regroup((shared,), (size_of(axis), size_of(shared) // size_of(axis)))[0]


def _numbers_heads(axis: Axis) -> bool:
    return any(factor.origin == "width" for factor in factors_of(axis))


def _with_role(axis: Axis, role: str) -> Axis:
    for factor in axis:
        factor.role = role
        if factor.parts is not None:
            _with_role(factor.parts, role)
    return axis
