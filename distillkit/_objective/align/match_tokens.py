"""The pairs of tokens that are nearest to each other, each token once."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..._backbone.axis import TokenAxis
from ..._backbone.signals import TokenAxes
from ...errors import OptionError, RecipeError, ShapeError

_LARGEST = 1e30  # where a distance is no number: the sum of such costs still is one


class MatchTokens:
    r"""The tokens of both sides in pairs, each token at most once, of the least total distance.

    .. math:: \min_{\pi} \sum_i c(s_i, t_{\pi(i)})

    over one-to-one maps π of the tokens of an example that are no padding (the Hungarian
    algorithm). Both sides have min(n, m) tokens afterwards, in the order of the student's; an
    example with fewer real tokens on a side has as many pairs, and padding behind them. The
    choice has no gradient; the values that were chosen have.

    Distances are computed where the signals are, and assigned on the CPU: every step waits for
    the device. Special tokens are tokens: ``drop_special`` before it leaves them out.

    Args:
        cost: of a pair: ``"l1"``, the sum of absolute differences, or ``"cosine"``, one minus the
            cosine.

    Raises:
        OptionError: an unknown cost.
        RecipeError: scipy is not installed.
        ShapeError: called with anything but hidden states or logits ``(b, n, d)`` of one width
            whose tokens are known on both sides.

    Examples:
        >>> axis = (TokenAxis("image"),)
        >>> student = torch.tensor([[[0.0], [5.0]]])
        >>> teacher = torch.tensor([[[4.0], [9.0], [1.0]]])
        >>> MatchTokens()(student, teacher, student_tokens=axis, teacher_tokens=axis)[1]
        tensor([[[1.],
                 [4.]]])

    Source: Feng et al., *EM-KD*, 2026, https://arxiv.org/abs/2511.21106 (there by logits of
    visual tokens over the vocabulary, which then also pair hidden states; here every signal is
    paired by itself).
    """

    def __init__(self, *, cost: Literal["l1", "cosine"] = "l1") -> None:
        if cost not in ("l1", "cosine"):
            raise OptionError(f'match_tokens: cost is "l1" or "cosine"; got {cost!r}')
        _assignment()
        self._cost = cost

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        student_tokens: TokenAxes = (),
        teacher_tokens: TokenAxes = (),
    ) -> tuple[Tensor, Tensor]:
        """The paired tokens of both sides, ``(b, min(n, m), d)``."""
        _check_signals(student, teacher)
        axes = _axis_of("student", student_tokens), _axis_of("teacher", teacher_tokens)
        valid = [
            _valid(side, signal, axis)
            for side, signal, axis in zip(
                ("student", "teacher"), (student, teacher), axes, strict=True
            )
        ]
        pairs = _pairs(self._distances(student, teacher), *valid).to(student.device)
        kept = (pairs[..., 0] >= 0)[..., None]
        index = pairs.clamp_min(0)[..., None, :].expand(-1, -1, student.shape[-1], -1)
        one, other = student.gather(1, index[..., 0]), teacher.gather(1, index[..., 1])
        return torch.where(kept, one, 0), torch.where(kept, other, 0)

    def align_tokens(
        self, student_tokens: TokenAxes, teacher_tokens: TokenAxes
    ) -> tuple[TokenAxes, TokenAxes]:
        """As many real tokens as the side with fewer has; which they are depends on the signals."""
        one, other = _axis_of("student", student_tokens), _axis_of("teacher", teacher_tokens)
        valid: Tensor | None = None
        if one.valid is not None or other.valid is not None:
            sizes = _size(one, "student"), _size(other, "teacher")
            counts = [
                size if axis.valid is None else axis.valid.sum(1)
                for axis, size in zip((one, other), sizes, strict=True)
            ]
            known = one.valid if one.valid is not None else other.valid
            assert known is not None
            least = torch.minimum(*(torch.as_tensor(n, device=known.device) for n in counts))
            valid = torch.arange(min(sizes), device=known.device) < least[:, None]
        return (TokenAxis(one.modality, valid=valid),), (TokenAxis(other.modality, valid=valid),)

    def _distances(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The cost of every pair, ``(b, n, m)``, finite."""
        one, other = student.detach(), teacher.detach()
        if self._cost == "cosine":
            one, other = (torch.nn.functional.normalize(x, dim=-1) for x in (one, other))
            costs = 1 - one @ other.mT
        else:
            costs = torch.cdist(one, other.to(one.dtype), p=1)
        return costs.double().nan_to_num(_LARGEST, _LARGEST).cpu()


def _pairs(costs: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """The pairs of every example, ``(b, min(n, m), 2)``, and -1 behind them."""
    assign = _assignment()
    pairs = torch.full((len(costs), min(costs.shape[1:]), 2), -1)
    for i, (one, other) in enumerate(zip(student, teacher, strict=True)):
        rows, columns = one.nonzero()[:, 0], other.nonzero()[:, 0]
        chosen = map(torch.from_numpy, assign(costs[i, rows[:, None], columns].numpy()))
        found = [places[index] for places, index in zip((rows, columns), chosen, strict=True)]
        pairs[i, : len(found[0])] = torch.stack(found, -1)
    return pairs


def _assignment() -> Any:
    """The solver of scipy.

    Raises:
        RecipeError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise RecipeError(
            "the aligner 'match_tokens' assigns tokens by scipy, which is not installed: "
            "pip install 'distillkit[match]'"
        ) from None
    return linear_sum_assignment


def _check_signals(student: Any, teacher: Any) -> None:
    for side, signal in (("student", student), ("teacher", teacher)):
        if not isinstance(signal, Tensor) or signal.ndim != 3:
            found = tuple(signal.shape) if isinstance(signal, Tensor) else type(signal).__name__
            raise ShapeError(
                f"match_tokens pairs tokens of (b, n, d); the {side}'s signal is {found}"
            )
    if student.shape[0] != teacher.shape[0] or student.shape[-1] != teacher.shape[-1]:
        raise ShapeError(
            "match_tokens compares tokens of the same examples and one width; got student "
            f"{tuple(student.shape)}, teacher {tuple(teacher.shape)}. A projector before it, "
            'align = ["projector", "match_tokens"], maps one width to the other'
        )


def _axis_of(side: str, tokens: TokenAxes) -> TokenAxis:
    """The axis of a side's tokens; nothing known of it would pair padding."""
    if len(tokens) != 1 or tokens[0] is None:
        raise ShapeError(
            f"match_tokens: nothing says which of the {side}'s tokens are padding. That is known "
            "of the hidden states of a stream that holds one modality"
        )
    return tokens[0]


def _valid(side: str, signal: Tensor, axis: TokenAxis) -> Tensor:
    """The tokens that are no padding, ``(b, n)``, on the CPU."""
    if axis.valid is None:
        return torch.ones(signal.shape[:2], dtype=torch.bool)
    if axis.valid.shape != signal.shape[:2]:
        raise ShapeError(
            f"match_tokens: the {side}'s signal is {tuple(signal.shape)}, and its padding is known "
            f"of {tuple(axis.valid.shape)} tokens"
        )
    return axis.valid.cpu()


def _size(axis: TokenAxis, side: str) -> int:
    """How many tokens an axis has, padding included."""
    for known in (axis.valid, axis.ids, axis.extents):
        if known is not None:
            return int(known.shape[1])
    places = axis.positions
    if isinstance(places, slice) and None not in (places.start, places.stop):
        return int(places.stop - places.start)
    if isinstance(places, Tensor) and places.dtype != torch.bool:
        return int(places.shape[1])
    raise ShapeError(
        f"match_tokens: one side has padding, and nothing says how many tokens the {side} has: let "
        f"its adapter say which are real, `valid` of the {side}'s tokens"
    )
