"""Carry the teacher's attention onto the student's tokens, by where both lie in the raw input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._attention import Attention
from ..._backbone.axis import TokenAxis
from ..._backbone.signals import TokenAxes
from ...errors import ShapeError

_ROUNDING = 1e-4  # of the smaller token: below it, an overlap is what rounding made of touching

_FIX = {
    "text": (
        "character offsets, as a fast tokenizer returns them for return_offsets_mapping=True; an "
        'adapter file names their batch entry, `extents = "offset_mapping"`, and registered '
        "adapters look for `offset_mapping` (`student_` or `teacher_` may stand before it)"
    ),
    "image": (
        "what each image shows of its raw image, (b, 4) top, left, bottom, right as fractions; an "
        'adapter file names their entry, `extents = "image_boxes"`, or says `uncropped = true`; '
        "registered adapters look for `image_boxes` (`student_` or `teacher_` may stand before)"
    ),
}


class Overlap:
    """The aligner ``overlap``, which carries the teacher onto the student's tokens."""

    def __call__(
        self,
        student: Attention,
        teacher: Attention,
        *,
        student_tokens: TokenAxes = (),
        teacher_tokens: TokenAxes = (),
    ) -> tuple[Attention, Attention]:
        """Both attentions over the student's tokens, as :func:`overlap` says."""
        return overlap(
            student, teacher, student_tokens=student_tokens, teacher_tokens=teacher_tokens
        )

    def align_tokens(
        self, student_tokens: TokenAxes, teacher_tokens: TokenAxes
    ) -> tuple[TokenAxes, TokenAxes]:
        """The student's tokens on both sides, along each axis of which both know the extents."""
        if len(student_tokens) != len(teacher_tokens):
            return student_tokens, teacher_tokens
        carried = [
            one if _has_extents(one) and _has_extents(other) else other
            for one, other in zip(student_tokens, teacher_tokens, strict=True)
        ]
        return student_tokens, tuple(carried)


def overlap(
    student: Attention,
    teacher: Attention,
    *,
    student_tokens: Sequence[TokenAxis | None] = (),
    teacher_tokens: Sequence[TokenAxis | None] = (),
) -> tuple[Attention, Attention]:
    """Both attentions over the student's tokens.

    Every token may say where it lies in the raw input: a word piece its characters, a patch its
    box. The teacher's mass on a key is spread evenly over the key's extent and falls to the
    student's keys by the part of it that they cover; a student's row gets the mean of the teacher's
    rows that it overlaps, weighted by the overlap. Both sides are renormalised over the extent that
    both see, so that crops and cut texts compare what they share. Rows that only one side sees do
    not count. Tokens that lie nowhere ([CLS]) are carried onto each other in their order where an
    example has equally many on both sides, and are left out otherwise. Equal tokens give the
    identity.

    Along an axis of which a side knows no extents, equally many tokens stay as they are.

    Args:
        student: the student's attention; gradient flows through it.
        teacher: the teacher's, of any number of tokens.
        student_tokens: what is known of the student's queries and keys.
        teacher_tokens: the same for the teacher.

    Raises:
        ShapeError: tokens that differ in number without extents on both sides; characters against
            boxes.

    Examples:
        >>> words = TokenAxis("text", extents=torch.tensor([[[0, 4], [5, 9]]]))
        >>> pieces = TokenAxis("text", extents=torch.tensor([[[0, 2], [2, 4], [5, 9]]]))
        >>> student = Attention.from_scores(torch.zeros(1, 1, 1, 2))
        >>> teacher = Attention.from_probabilities(torch.tensor([[[[0.1, 0.2, 0.7]]]]))
        >>> _, carried = overlap(
        ...     student, teacher, student_tokens=(None, words), teacher_tokens=(None, pieces)
        ... )
        >>> carried.probabilities()
        tensor([[[[0.3000, 0.7000]]]])
    """
    if not (isinstance(student, Attention) and isinstance(teacher, Attention)):
        raise ShapeError("overlap carries attention onto other tokens; this signal is no attention")
    ours, theirs = _two(student_tokens), _two(teacher_tokens)
    axes = [
        _extents(student.shape[axis], teacher.shape[axis], what, ours[axis - 2], theirs[axis - 2])
        for axis, what in ((2, "queries"), (3, "keys"))
    ]
    if axes == [None, None]:
        return student, teacher
    carried = teacher.probabilities()
    scores, counted = student.scores(), student.rows
    rows, keys = (None if found is None else _shared(found, carried.device) for found in axes)
    if rows is not None:
        carried = rows.weights.mT[:, None].to(carried.dtype) @ carried
        seen = (rows.seen > 0)[:, None]
        counted = seen if counted is None else counted & seen
    if keys is not None:
        carried = carried @ keys.weights[:, None].to(carried.dtype)
        scores = scores + keys.seen.log().to(scores.dtype)[:, None, None]
    return Attention.from_scores(scores, rows=counted), Attention.from_probabilities(carried)


def _has_extents(axis: TokenAxis | None) -> bool:
    return axis is not None and axis.extents is not None


class _Shared(NamedTuple):
    """How two token axes overlap.

    Attributes:
        weights: ``(b, m, n)``: the part of teacher token j that student token i covers.
        seen: ``(b, n)``: the part of a student's token that the teacher's tokens cover.
    """

    weights: Tensor
    seen: Tensor


def _extents(
    n: int, m: int, what: str, student: TokenAxis | None, teacher: TokenAxis | None
) -> tuple[TokenAxis, TokenAxis] | None:
    """Both sides' tokens along one axis; None: without extents, the same number is the same."""
    known = [axis is not None and axis.extents is not None for axis in (student, teacher)]
    if not all(known) or student is None or teacher is None:
        if n == m:
            return None
        raise ShapeError(_no_extents(n, m, what, known, student or teacher))
    kinds = set()
    for side, axis, count in (("student", student, n), ("teacher", teacher, m)):
        assert axis.extents is not None
        kinds.add(axis.extents.shape[2])
        if axis.extents.shape[1] != count:
            raise ShapeError(
                f"overlap: the {side}'s attention has {count} {what}, but its extents "
                f"{tuple(axis.extents.shape)} are of {axis.extents.shape[1]}"
            )
    if len(kinds) > 1:
        raise ShapeError(
            f"overlap: one side's {what} lie at characters (b, m, 2), the other's at boxes "
            "(b, m, 4); both need places in the same raw input"
        )
    return student, teacher


def _shared(axes: tuple[TokenAxis, TokenAxis], device: torch.device) -> _Shared:
    student, teacher = (_places(axis, device) for axis in axes)
    half = student.shape[2] // 2
    start = torch.maximum(teacher[:, :, None, :half], student[:, None, :, :half])
    stop = torch.minimum(teacher[:, :, None, half:], student[:, None, :, half:])
    common = (stop - start).clamp_min(0).prod(-1)  # (b, m, n)
    sizes = [(x[..., half:] - x[..., :half]).clamp_min(0).prod(-1) for x in (student, teacher)]
    special = [_nowhere(s, axis.valid) for s, axis in zip(sizes, axes, strict=True)]
    common = common + _same_rank(*special)
    size, other = (x + nowhere for x, nowhere in zip(sizes, special, strict=True))
    smaller = torch.minimum(other[:, :, None], size[:, None, :])
    common = torch.where(common > _ROUNDING * smaller, common, 0)
    weights = _part(common, other[:, :, None])
    weights = weights / weights.sum(2, keepdim=True).clamp_min(1)  # where student tokens overlap
    return _Shared(weights, _part(common.sum(1), size))


def _places(axis: TokenAxis, device: torch.device) -> Tensor:
    assert axis.extents is not None
    extents = axis.extents.to(device)
    return extents if extents.dtype == torch.float64 else extents.float()


def _part(common: Tensor, whole: Tensor) -> Tensor:
    """``common / whole`` in [0, 1]; 0 of nothing, and 1 of all but what rounding took."""
    part = torch.where(whole > 0, common / torch.where(whole > 0, whole, 1), 0).clamp_max(1)
    return torch.where(part > 1 - _ROUNDING, 1, part)


def _nowhere(size: Tensor, valid: Tensor | None) -> Tensor:
    """The tokens that lie nowhere and are no padding."""
    nowhere = size <= 0
    return nowhere if valid is None else nowhere & valid.to(size.device)


def _same_rank(student: Tensor, teacher: Tensor) -> Tensor:
    """``(b, m, n)``: the k-th special token of both, where they have equally many."""
    ranks = [torch.where(x, x.long().cumsum(1), 0) for x in (student, teacher)]
    same = (ranks[1][:, :, None] == ranks[0][:, None, :]) & (ranks[1] > 0)[:, :, None]
    equally_many = student.sum(1) == teacher.sum(1)
    return same & equally_many[:, None, None]


def _two(axes: Sequence[Any]) -> tuple[Any, Any]:
    return (axes[0], axes[1]) if len(axes) == 2 else (None, None)


def _no_extents(n: int, m: int, what: str, known: Sequence[bool], axis: TokenAxis | None) -> str:
    lacking = " and ".join(
        f"the {side}"
        for side, there in zip(("student", "teacher"), known, strict=True)
        if not there
    )
    modality = "" if axis is None else f"{axis.modality} "
    fix = "" if axis is None else _FIX.get(axis.modality, "")
    return (
        f"overlap: the student has {n} {modality}{what} and the teacher {m}, but nothing says "
        f"where those of {lacking} lie in the raw input. Give {fix or 'both layouts `extents`'}"
    )
