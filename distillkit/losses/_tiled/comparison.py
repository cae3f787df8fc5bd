"""The two sides that are compared, and the rows that count: of attentions and logits alike."""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..._attention.keep import Keep, both_rows

T = TypeVar("T")

ForBackward = Literal["", "maps", "guess"]
"""What a forward keeps for the backward: nothing, the slopes of the scores, or gradients that are
right if the reduction weighs all rows alike."""

Engine = Literal["", "triton"]
"""What computes the tiles: the operations of torch, or kernels for a GPU."""

STATISTICS = 6
"""How many numbers for each row the kernels leave to their backward."""


class Kind(NamedTuple):
    """Which divergence: KL(teacher || student), its reverse, or the Jensen-Shannon divergence."""

    name: Literal["kl", "reverse", "jsd"]
    beta: float = 0.5


class Leaves(NamedTuple, Generic[T]):
    """Something for each tensor of a side that may ask for a gradient."""

    query: T
    key: T
    bias: T


class Sides(NamedTuple, Generic[T]):
    """Something for each side."""

    student: T
    teacher: T


Wanted = Sides[Leaves[bool]]
"""Whose gradient is asked for."""

Gradients = Leaves[Tensor | None]
"""One side's gradients; None where they are not wanted."""

NONE_WANTED = Leaves(query=False, key=False, bias=False)


class Side(NamedTuple):
    """One model's half: softened scores are ``cap(scale * query @ key.T + bias) / temperature``.

    For logits, the queries are the hidden states of tokens and the keys the rows of the output
    projection, one for each class.
    """

    query: Tensor  # attention (b, h, q, d), logits (n, d)
    key: Tensor  # attention (b, g, k, d), logits (v, d)
    bias: Tensor | None  # attention (b, h, q, k), each 1 or whole; logits (v,)
    mask: Tensor | None  # of attention, like its bias
    temperature: float
    scale: float = 1.0
    softcap: float = 0.0  # of logits; 0: none
    causal: bool = False  # of attention

    @property
    def leaves(self) -> Leaves[Tensor | None]:
        """The tensors that may ask for a gradient."""
        return Leaves(self.query, self.key, self.bias)

    @property
    def factor(self) -> float:
        """The factor of the products."""
        return self.scale / self.temperature

    @property
    def keep(self) -> Keep:
        """Which scores of an attention count."""
        b, h, q, _ = self.query.shape
        return Keep((b, h, q, self.key.shape[2]), self.mask, self.bias, self.causal)

    @property
    def sharing(self) -> int:
        """How many query heads read one key head."""
        return self.query.shape[1] // max(1, self.key.shape[1])


class Pair(NamedTuple):
    """Both halves, and the rows that may count."""

    student: Side
    teacher: Side
    rows: Tensor | None  # attention (b or 1, h or 1, q), logits (n,)
    kind: Kind
    keys: Tensor | None = None  # of logits (v,): the classes that exist, on both sides
    mean: bool = False  # of attention: over heads

    @property
    def sides(self) -> Sides[Side]:
        """Student, teacher."""
        return Sides(self.student, self.teacher)

    @property
    def leaves(self) -> Sides[Leaves[Tensor | None]]:
        """The tensors that may ask for a gradient."""
        return Sides(self.student.leaves, self.teacher.leaves)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation: half precision is for storage."""
        tensors = [x for side in self.sides for x in (side.query, side.key)]
        double = any(x.dtype == torch.float64 for x in tensors)
        return torch.float64 if double else torch.float32

    @property
    def value_shape(self) -> torch.Size:
        """One value for each row."""
        rows = self.student.query.shape[:-1]
        return torch.Size((rows[0], 1, rows[2])) if self.mean else rows

    def counted(self) -> Tensor | None:
        """The rows that count: kept, and with a key left to the teacher; None: all."""
        rows = both_rows(self.teacher.keep.rows_with_keys(self.teacher.query.device), self.rows)
        if rows is not None and self.mean:
            rows = rows.all(1, keepdim=True)
        return rows if rows is None else rows.expand(*rows.shape[:2], self.value_shape[2])


class Forward(NamedTuple):
    """The values, of :attr:`Pair.value_shape`, and what was kept for the backward."""

    value: Tensor
    maps: Sides[Tensor]  # flat and empty where nothing is kept
    guess: Gradients  # of the student, for a weight of 1 in every row, in the computation's dtype
