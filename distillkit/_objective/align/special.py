"""Leave out the special tokens that only one side has."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._attention import Attention
from ..._backbone.axis import TokenAxis
from ..._backbone.signals import TokenAxes
from ...errors import ShapeError


class DropSpecial:
    """Both sides without the special tokens ([CLS]) that one side has and the other has not.

    Along each token axis, queries and keys of an attention or the tokens of hidden states
    ``(b, n, d)``: where both sides have special tokens at the same places, or none, all tokens
    stay; where they differ, the special tokens of both are left out, so that words or patches
    remain. An attention is renormalised over the keys that remain. Padding stays known.

    Which tokens are special is what the layouts say, ``special = [0]``.

    Raises:
        ShapeError: signals without tokens, special tokens elsewhere in each example, a side whose
            special tokens nobody knows, or a layout that names a token that is not there.

    Examples:
        >>> import torch
        >>> student = Attention.from_probabilities(torch.tensor([[[[0.2, 0.4, 0.4]]]]))
        >>> teacher = Attention.from_probabilities(torch.tensor([[[[0.25, 0.75]]]]))
        >>> one, _ = DropSpecial()(
        ...     student,
        ...     teacher,
        ...     student_tokens=(None, TokenAxis("image", special=(0,))),
        ...     teacher_tokens=(None, TokenAxis("image")),
        ... )
        >>> one.probabilities()
        tensor([[[[0.5000, 0.5000]]]])
    """

    def __call__(
        self,
        student: Any,
        teacher: Any,
        *,
        student_tokens: TokenAxes = (),
        teacher_tokens: TokenAxes = (),
    ) -> tuple[Any, Any]:
        """Both sides without the special tokens of one."""
        _check_kinds(student, teacher)
        if not student_tokens and not teacher_tokens:
            raise ShapeError(
                "drop_special: nothing says which tokens of this signal are special; the adapter's "
                f"layout names them, `special = [0]`, for the streams of both sides. {_KNOWN_OF}"
            )
        drops = _drops(student_tokens, teacher_tokens)
        return _without(student, "student", drops[0]), _without(teacher, "teacher", drops[1])

    def align_tokens(
        self, student_tokens: TokenAxes, teacher_tokens: TokenAxes
    ) -> tuple[TokenAxes, TokenAxes]:
        """The tokens that remain on both sides."""
        student, teacher = [*student_tokens], [*teacher_tokens]
        for i in range(max(len(student), len(teacher))):
            one, other = _at(student_tokens, i), _at(teacher_tokens, i)
            if one is not None and other is not None and _differ(one, other):
                student[i], teacher[i] = one.without_special(), other.without_special()
        return tuple(student), tuple(teacher)


_KNOWN_OF = (
    "They are known of attention between text and image, and of the hidden states of a stream that "
    "holds one modality"
)


def _check_kinds(student: Any, teacher: Any) -> None:
    for side, signal in (("student", student), ("teacher", teacher)):
        is_attention = isinstance(signal, Attention)
        if not is_attention and (not isinstance(signal, Tensor) or signal.ndim != 3):
            found = tuple(signal.shape) if isinstance(signal, Tensor) else type(signal).__name__
            raise ShapeError(
                "drop_special takes attentions or hidden states (b, n, d), which have tokens; the "
                f"{side}'s signal is {found}"
            )
    if isinstance(student, Attention) != isinstance(teacher, Attention):
        raise ShapeError("drop_special: one side is an attention, the other is none")


def _drops(
    student: TokenAxes, teacher: TokenAxes
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The tokens that are left out along each axis, on both sides."""
    found: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = [], []
    for i in range(max(len(student), len(teacher))):
        one, other = _at(student, i), _at(teacher, i)
        if (one is None) != (other is None):
            side = "student" if one is None else "teacher"
            known = one or other
            assert known is not None
            if known.special_places():
                raise ShapeError(
                    f"drop_special: one side's {known.modality} tokens "
                    f"{list(known.special_places())} are "
                    f"special, but nothing is known of the {side}'s; its layout names them, "
                    "`special = [0]`, or says by a run without them that there are none. "
                    + _KNOWN_OF
                )
        differ = one is not None and other is not None and _differ(one, other)
        found[0].append(one.special_places() if differ and one is not None else ())
        found[1].append(other.special_places() if differ and other is not None else ())
    return found


def _at(axes: TokenAxes, index: int) -> TokenAxis | None:
    return axes[index] if index < len(axes) else None


def _differ(one: TokenAxis, other: TokenAxis) -> bool:
    return set(one.special_places()) != set(other.special_places())


def _without(signal: Any, side: str, drops: list[tuple[int, ...]]) -> Any:
    """A side without these tokens along each of its token axes."""
    if not any(drops):
        return signal
    sizes = signal.shape[2:] if isinstance(signal, Attention) else signal.shape[1:2]
    kept = [
        _kept(size, dropped, side)
        for size, dropped in zip(sizes, [*drops, ()][: len(sizes)], strict=True)
    ]
    return signal.between(*kept) if isinstance(signal, Attention) else signal[:, kept[0]]


def _kept(size: int, dropped: tuple[int, ...], side: str) -> slice | list[int]:
    beyond = [i for i in dropped if not 0 <= i < size]
    if beyond:
        raise ShapeError(
            f"drop_special: the {side}'s layout calls token {beyond[0]} special, but there are "
            f"{size}: 0 to {size - 1}"
        )
    kept = [i for i in range(size) if i not in dropped]
    if kept and kept[-1] - kept[0] + 1 == len(kept):
        return slice(kept[0], kept[-1] + 1)  # copies nothing
    return kept
