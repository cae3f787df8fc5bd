"""Which of a loss's values count: padding, the batch entry of a term's ``mask``, and ``where``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from .._attention import Attention
from .._attention.keep import both
from .._backbone.axis import TokenAxis
from .._backbone.tokens import select_tokens
from .._transfer import trackable
from ..errors import ShapeError
from ..losses import shared_rows


class TermInputs(NamedTuple):
    """The inputs that all layers of a term share in one step.

    Attributes:
        layout: the positions that are no padding, boolean ``(b, n)``; None: all.
        entry: the batch entry of the term's ``mask``, boolean; None: there is none.
        axes: what is known of the tokens that the entry is about, on either side.
        arguments: the loss's tensor arguments by name.
        weights: how much the teacher's tokens weigh, ``(b, n)``; None: equally much.
    """

    layout: Tensor | None
    entry: Tensor | None
    axes: Sequence[TokenAxis | None]
    arguments: Mapping[str, Any]
    weights: Tensor | None = None


class Counting:
    """The rules by which one term's values count.

    Args:
        term: what errors call the term.
        signature: the axes that its loss consumes and returns; empty where nobody declared them.
        entry: the name of the batch entry that says which positions count; None: there is none.
        told: the loss consumes the tokens and is told by ``valid`` which of them count.
    """

    def __init__(self, term: str, signature: str, entry: str | None, *, told: bool = False) -> None:
        self._term, self._entry, self._told = term, entry, told
        self._signature = signature
        self._ranks: dict[int, int] = {}

    def rank(self, ndim: int) -> int:
        """How many leading axes of the loss's values are positions of a signal of ``ndim`` axes.

        A loss of logits ``(b, n, v)`` that consumes ``v`` has the positions ``(b, n)``; one that
        consumes the n tokens, too, has none but the examples.
        """
        if ndim not in self._ranks:
            self._ranks[ndim] = self._rank(ndim)
        return self._ranks[ndim]

    @property
    def has_values_of_examples(self) -> bool:
        """Whether the loss is known to return values of each example, whatever it compares.

        One that consumes two axes and returns neither may have consumed the examples.
        """
        if self._signature == "attention":
            return True
        consumed, kept = self._core()
        return consumed > 0 and (consumed == 1 or kept > 0)

    def _rank(self, ndim: int) -> int:
        consumed, kept = self._core()
        return ndim - consumed + kept if consumed else max(1, ndim - 1)

    def _core(self) -> tuple[int, int]:
        """How many axes the loss consumes, and how many of them, from the first, it returns.

        Both are 0 where nobody declared them, and for a loss of attentions.
        """
        inputs, _, output = self._signature.partition("->")
        if not output or inputs == "attention":
            return 0, 0
        core = inputs.partition(")")[0].strip("(").split(",")
        result = output.strip("()").split(",")
        kept = 0
        while kept < min(len(core), len(result)) and core[kept] == result[kept]:
            kept += 1
        return len(core), kept

    def kept(self, values: Tensor, sides: tuple[Any, Any], step: TermInputs) -> Tensor | None:
        """Which values count, boolean of their shape; None: all do.

        Args:
            values: what the loss returned.
            sides: student and teacher: what it compared first.
            step: what the term was given.

        Raises:
            ShapeError: values or masks of which it is not known which position is which.
        """
        if sides[0].shape[0] == 0:  # a loss over the batch has values of no example, too
            return torch.zeros_like(values, dtype=torch.bool)
        if self.is_of_rows(sides[1]):
            return self._rows_kept(values, sides, step)
        if self._told:
            return self._examples_kept(values, sides[0], step)
        return self._positions_kept(values, sides[0], step)

    def is_of_rows(self, teacher: Any) -> bool:
        """Whether the loss's values are of rows of attentions, ``(b, h, q)``."""
        return isinstance(teacher, Attention) or self._signature == "attention"

    def valid(self, student: Tensor, step: TermInputs) -> Tensor | None:
        """The tokens that count, boolean ``(b, n)``, of hidden states ``(b, n, d)``; None: all.

        Raises:
            ShapeError: padding or a mask that is not about these tokens.
        """
        positions = student.shape[:-1]
        like = student[..., 0]
        kept: Tensor | None = None
        if step.layout is not None:
            self._check_layout(step.layout, student, positions)
            kept = _spread(step.layout.to(student.device), like)
        if step.entry is not None:
            entry = step.entry
            if entry.shape != positions[:1]:
                entry = self._fitted(entry, positions, step.axes)
            kept = both(kept, _spread(entry.to(student.device), like))
        return kept

    def _rows_kept(self, values: Tensor, sides: tuple[Any, Any], step: TermInputs) -> Tensor | None:
        """The rows that count, of the values ``(b, h, q)`` of a loss of attentions."""
        kept: Tensor | None = None
        if isinstance(sides[1], Attention):
            kept = self._shared_rows(values, *sides)
        if step.entry is not None or step.arguments:
            kept = self._rows_chosen(kept, values, step)
        return None if kept is None else kept.expand(values.shape)

    def _shared_rows(self, values: Tensor, student: Attention, teacher: Attention) -> Tensor:
        """The rows that both attentions keep, one head or all."""
        kept = shared_rows(student, teacher)
        if kept.shape == values.shape:
            return kept
        examples, _, rows = kept.shape
        if values.ndim != 3 or values.shape[0] != examples or values.shape[2] != rows:
            raise ShapeError(
                f"term {self._term!r}: a loss of attentions returns one value for each row, "
                f"(b, h, q); got {tuple(values.shape)} of attentions {student.shape} and "
                f"{teacher.shape}"
            )
        return kept.all(1, keepdim=True)  # heads="mean" leaves one head, a relation has its own

    def _rows_chosen(self, kept: Tensor | None, values: Tensor, step: TermInputs) -> Tensor | None:
        """Of these rows, those that the term's ``mask`` and a relation's own ``where`` keep."""
        rows = values.shape[::2]
        where = step.arguments.get("where")
        if _is_mask(where) and where.shape == rows:
            kept = both(kept, where[:, None])
        if step.entry is not None:
            fitted = self._fitted(step.entry, rows, step.axes).to(values.device)
            kept = both(kept, fitted[:, None])
        return kept

    def _positions_kept(self, values: Tensor, student: Tensor, step: TermInputs) -> Tensor | None:
        """The positions that count, of the values of a loss of tensors ``(b, n, d)``."""
        positions = values.shape[: self.rank(student.ndim)]
        kept: Tensor | None = None
        if step.layout is not None:
            self._check_layout(step.layout, values, positions)
            kept = _spread(step.layout, values)
        if step.entry is not None:
            fitted = self._fitted(step.entry, positions, step.axes).to(values.device)
            kept = both(kept, _spread(fitted, values))
        if step.arguments:
            for one in self._kept_by_arguments(values, student, step.arguments):
                kept = both(kept, one)
        return kept

    def _examples_kept(self, values: Tensor, student: Tensor, step: TermInputs) -> Tensor | None:
        """The examples of which a token counts, where the loss consumes the tokens."""
        valid = self.valid(student, step)
        return None if valid is None else _spread(valid.any(-1), values)

    def _check_layout(self, layout: Tensor, values: Tensor, positions: Sequence[int]) -> None:
        """Refuse padding of positions that the loss's values are not about."""
        if layout.ndim > len(positions) or layout.shape != positions[: layout.ndim]:
            raise ShapeError(
                f"term {self._term!r}: padding is known for {tuple(layout.shape)} positions of its "
                f"signal, but the loss's values {tuple(values.shape)} are of {tuple(positions)} "
                'positions, so that padding would count; rows = "all" lets it count'
            )

    def _kept_by_arguments(
        self, values: Tensor, student: Tensor, arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """The positions of which ``where`` keeps a class, and those that the loss itself keeps."""
        found = []
        where, own = arguments.get("where"), arguments.get("mask")
        if _is_mask(where) and values.shape == student.shape[:-1]:
            declared = bool(self._signature) and where.ndim > 1
            if where.ndim == student.ndim or declared:
                found.append(where.any(-1).expand(values.shape))
        if _is_mask(own) and own.shape == values.shape:
            found.append(own)
        return found

    def _fitted(
        self, entry: Tensor, positions: Sequence[int], axes: Sequence[TokenAxis | None]
    ) -> Tensor:
        """The batch entry for these positions: as it is, or selected out of the whole sequence."""
        if entry.shape == tuple(positions):
            return entry
        lengths = []
        if entry.ndim == 2 == len(positions) and entry.shape[0] == positions[0]:
            for axis in axes:
                if axis is None or axis.positions is None:
                    continue
                if axis.length == entry.shape[1]:
                    selected = _select(entry, axis.positions)
                    if selected.shape == tuple(positions):
                        return selected
                if axis.length is not None:
                    lengths.append(axis.length)
        whole = "".join(f", or for each of a sequence's {n} tokens" for n in dict.fromkeys(lengths))
        raise ShapeError(
            f"term {self._term!r}: mask = {self._entry!r} is {tuple(entry.shape)}, but the loss's "
            f"values are of {tuple(positions)} positions; give one entry for each position{whole}"
        )


def entry_mask(term: str, name: str, entry: Any, *, look: bool) -> Tensor:
    """A batch entry as a boolean mask.

    A boolean entry is taken as it is, True counts. Of signed integers, which are labels, -100 does
    not count.

    Args:
        term: what errors call the term.
        name: what the batch calls the entry.
        entry: what it holds.
        look: whether to look for an attention mask of 0 and 1 among integers.

    Raises:
        ShapeError: floating point or unsigned numbers, no tensor; integers of which none but 0 and
            1 are there, under a name that does not say that they are labels.
    """
    if not isinstance(entry, Tensor) or entry.dtype not in _MASK_DTYPES:
        found = entry.dtype if isinstance(entry, Tensor) else type(entry).__name__
        raise ShapeError(
            f"term {term!r}: mask = {name!r} is boolean, True counts, or holds labels as signed "
            f"integers, of which -100 does not count; got {found}: pass {name} != 0 for a mask"
        )
    if entry.dtype == torch.bool:
        return trackable(entry)
    if look and entry.numel() and bool(((entry == 0) | (entry == 1)).all()):
        raise ShapeError(
            f"term {term!r}: mask = {name!r} holds the integers 0 and 1 alone. Of integers, -100 "
            f"does not count, so that all of them would: pass {name} != 0, or labels under a name "
            "that says so"
        )
    return entry != -100


def says_labels(name: str) -> bool:
    """Whether an entry's name says that its integers are labels."""
    return "label" in name and "mask" not in name


_MASK_DTYPES = (torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)


def _select(entry: Tensor, positions: slice | Tensor) -> Tensor:
    if isinstance(positions, slice):
        return entry[:, positions]
    return select_tokens(entry, positions.to(entry.device)).bool()


def _spread(mask: Tensor, values: Tensor) -> Tensor:
    """A mask of the leading axes, for every value."""
    if mask.ndim == values.ndim:
        return mask
    return mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)).expand(values.shape)


def _is_mask(x: Any) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.dtype == torch.bool
