"""The shape contract of a loss: numpy's gufunc notation, checked before any arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from .._attention import Attention, widen
from .._transfer import trackable
from ..errors import OptionError, ShapeError

_FIXES = {
    "v": '. Vocabularies that differ by appended classes meet through align = ["truncate"] or '
    '["mask"], unrelated ones in universal_logit_distance',
    "d": '. align = ["projector"] maps one width to the other',
}


def checked_pair(
    loss: str, signature: str, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    """Both tensors, in float32 at least, once they fit a signature: the first line of a new loss.

    A tensor that was made under ``torch.inference_mode()`` is copied, because autograd cannot save
    it for the backward.

    Args:
        loss: what the error calls the loss.
        signature: the axes that the loss consumes and returns, ``"(v),(v)->()"``.
        student: a floating point tensor.
        teacher: another, with the same leading axes: nothing is broadcast.

    Raises:
        ShapeError: both shapes are printed, with the axis that differs.

    Examples:
        >>> checked_pair("mine", "(d),(d)->()", torch.zeros(2, 3), torch.zeros(2, 4))
        Traceback (most recent call last):
        distillkit.errors.ShapeError: mine needs the same 'd' on both sides ((d),(d)->()), ...
    """
    if not (isinstance(student, Tensor) and isinstance(teacher, Tensor)):
        kinds = f"student {type(student).__name__}, teacher {type(teacher).__name__}"
        raise ShapeError(f"{loss} takes tensors; got {kinds}")
    found = f"student {_describe(student)}, teacher {_describe(teacher)}"
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ShapeError(f"{loss} takes floating point tensors; got {found}")
    cores = _cores(signature)
    sizes: dict[str, int] = {}
    leading = []
    for tensor, core in zip((student, teacher), cores, strict=True):
        if tensor.ndim < len(core):
            raise ShapeError(f"{loss} consumes {signature}; got {found}")
        split = tensor.ndim - len(core)
        leading.append(tensor.shape[:split])
        for axis, size in zip(core, tensor.shape[split:], strict=True):
            if sizes.setdefault(axis, size) != size:
                fix = _FIXES.get(axis, "")
                raise ShapeError(
                    f"{loss} needs the same {axis!r} on both sides ({signature}), but one has "
                    f"{sizes[axis]} and the other {size}; got {found}{fix}"
                )
    if leading[0] != leading[1]:
        raise ShapeError(
            f"{loss} pairs position with position and never broadcasts: the axes before "
            f"{signature} must be equal; got {found}"
        )
    return widen(student), widen(teacher)


def checked_attentions(
    loss: str, student: Attention, teacher: Attention, *, heads: str | None = None
) -> tuple[Attention, Attention]:
    """Both attentions, once they are over the same tokens: the first line of a loss of two.

    What was made under ``torch.inference_mode()`` is copied, as of :func:`checked_pair`.

    Args:
        loss: what the error calls the loss.
        student: an attention.
        teacher: another, of the same examples, queries and keys.
        heads: the loss's own option: None where it compares head with head, ``"mean"`` where it
            averages over the heads of each side, whose numbers may then differ.

    Raises:
        ShapeError: something else than two attentions; unequal examples, tokens or heads, with both
            shapes printed.
        OptionError: an unknown ``heads``.

    Examples:
        >>> student, teacher = (Attention.from_scores(torch.zeros(1, h, 2, 3)) for h in (1, 4))
        >>> checked_attentions("mine", student, teacher)
        Traceback (most recent call last):
        distillkit.errors.ShapeError: mine compares head with head; got student (1, 1, 2, 3), ...
    """
    if not (isinstance(student, Attention) and isinstance(teacher, Attention)):
        kinds = f"student {type(student).__name__}, teacher {type(teacher).__name__}"
        raise ShapeError(f"{loss} takes two Attentions; got {kinds}")
    if heads not in (None, "mean"):
        raise OptionError(f'{loss}: heads is None or "mean"; got {heads!r}')
    found = f"student {student.shape}, teacher {teacher.shape}, each (b, h, q, k)"
    if student.shape[0] != teacher.shape[0]:
        raise ShapeError(f"{loss} compares example with example; got {found}")
    if student.shape[2:] != teacher.shape[2:]:
        raise ShapeError(
            f"{loss} compares token with token, and these differ in number; got {found}. "
            "Student and teacher must see the same tokens: the same tokenizer and padding, the "
            "same patch grid, special tokens kept or dropped on both sides "
            '(align = ["drop_special"], ["overlap"])'
        )
    if heads is None and student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f'{loss} compares head with head; got {found}. heads="mean" compares the average '
            "over each side's heads"
        )
    return student.trackable(), teacher.trackable()


def checked_where(where: Tensor | None, like: Tensor) -> Tensor | None:
    """The ``where``, once it is boolean and broadcasts to the consumed tensor."""
    if where is None:
        return None
    trailing = zip(reversed(where.shape), reversed(like.shape), strict=False)
    fits = where.ndim <= like.ndim and all(n in (1, whole) for n, whole in trailing)
    if where.dtype != torch.bool or not fits:
        raise ShapeError(
            f"where is boolean, True = keep, and broadcasts to {tuple(like.shape)}; "
            f"got {_describe(where)}"
        )
    return trackable(where)


def checked_valid(loss: str, valid: Tensor | None, like: Tensor) -> Tensor | None:
    """The ``valid`` of a loss that consumes tokens ``(..., n, d)``, once it has one entry for each.

    Raises:
        ShapeError: another shape, entries that are not boolean.
    """
    if valid is None:
        return None
    if valid.dtype != torch.bool or valid.shape != like.shape[:-1]:
        raise ShapeError(
            f"{loss}: valid is boolean {tuple(like.shape[:-1])}, True = the token counts; "
            f"got {_describe(valid)}"
        )
    return trackable(valid)


def check_positive(name: str, value: float) -> None:
    """Refuse an option that must be above zero; a tensor is looked at where that costs nothing."""
    if isinstance(value, Tensor) and not _is_visible(value):
        return
    if not value > 0:
        raise OptionError(f"{name} must be greater than 0; got {value}")


def refuse_learned(loss: str, **options: float) -> None:
    """Refuse options that a loss computes with as plain numbers, and that ask for a gradient."""
    for name, value in options.items():
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise OptionError(
                f"{loss}: {name} cannot be learned here: it is computed with as a plain number, "
                "and no gradient would reach it; give it a number"
            )


def check_not_negative(name: str, value: float) -> None:
    """Refuse an option that must be at least zero."""
    if not value >= 0:
        raise OptionError(f"{name} must be at least 0; got {value}")


def check_between(name: str, value: float, low: float, high: float, fix: str) -> None:
    """Refuse an option outside an open interval."""
    if not low < value < high:
        raise OptionError(
            f"{name} lies between {low} and {high}, both excluded; got {value}: {fix}"
        )


def _is_visible(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _cores(signature: str) -> list[list[str]]:
    """The consumed axes of every input; plain string methods, which a compiler can trace."""
    inputs = signature.split("->")[0]
    return [core.split(",") for core in inputs.strip("()").split("),(")]


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
