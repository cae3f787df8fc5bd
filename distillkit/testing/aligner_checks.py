"""What an aligner must keep; each check is a function of a case and says what it saw."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._backbone.signals import TokenAxes
from ..errors import DistillKitError
from .aligner_case import (
    AlignerCase,
    Sides,
    aligned,
    learning,
    loose_tensors,
    numbers,
    returned_by,
    sizes,
    weighted_sum,
)
from .aligner_examples import SIDES, counted, padded, token_counts, wrong_sides
from .verdicts import NotApplicable, UnmetError


def returns_both_sides(case: AlignerCase) -> str:
    """It returns a pair of the same kind and of as many examples."""
    sides = case.sides()
    found = returned_by(case.made(), sides)
    if not isinstance(found, tuple) or len(found) != 2:
        raise UnmetError(f"it returns a {type(found).__name__}; both sides, (student, teacher)")
    kinds = {type(one).__name__ for one in found}
    if not all(isinstance(one, (Tensor, Attention)) for one in found) or len(kinds) > 1:
        raise UnmetError(f"it returns {' and '.join(sorted(kinds))}: two tensors or two attentions")
    if any(one.shape[0] != sides.examples for one in found):
        counts = " and ".join(str(one.shape[0]) for one in found)
        raise UnmetError(f"it returns {counts} examples of {sides.examples}")
    return f"student {tuple(found[0].shape)}, teacher {tuple(found[1].shape)}"


def sides_fit(case: AlignerCase) -> str:
    """Both sides have the same sizes afterwards: of attentions, all but the heads."""
    found = aligned(case.made(), case.sides())
    if sizes(found.student) != sizes(found.teacher):
        shapes = f"student {tuple(found.student.shape)}, teacher {tuple(found.teacher.shape)}"
        raise UnmetError(f"the sides do not fit afterwards: {shapes}")
    return f"both are {sizes(found.student)}"


def leaves_its_inputs(case: AlignerCase) -> str:
    """It changes nothing in place."""
    sides = case.sides()
    before = sides.map(lambda x: numbers(x).clone())
    aligned(case.made(), sides)
    for side in SIDES:
        if not _equal(numbers(getattr(sides, side)), getattr(before, side)):
            raise UnmetError(f"it changes the {side}'s signal in place")
    return "both are as they were"


def gradient_reaches_the_student(case: AlignerCase) -> str:
    """What is learned from the aligned student reaches the student."""
    sides = case.sides()
    student, leaf = learning(sides.student)
    found = aligned(case.made(), replace(sides, student=student))
    total = weighted_sum(found.student)
    if not total.requires_grad:
        raise UnmetError("the aligned student carries no gradient: is it detached?")
    total.backward()  # type: ignore[no-untyped-call]
    _check_gradient(leaf.grad, "the student's signal")
    return "finite, and not all 0"


def gradient_reaches_its_parameters(case: AlignerCase) -> str:
    """Every parameter learns."""
    made = case.made()
    named = dict(made.named_parameters())
    if not named:
        raise NotApplicable("it has no parameters")
    found = aligned(made, case.sides())
    total = weighted_sum(found.student, found.teacher)
    if not total.requires_grad:
        raise UnmetError(f"no gradient reaches {', '.join(named)}")
    total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in named.items():
        if parameter.requires_grad:
            _check_gradient(parameter.grad, name)
    return f"{len(named)} parameters learn"


def takes_other_dtypes(case: AlignerCase) -> str:
    """Signals are float32 at least, whatever the aligner's dtype, and leave it so."""
    made, sides = case.made(), case.sides()
    expected = aligned(made, sides)
    half = aligned(copy.deepcopy(made).bfloat16(), sides)
    double = aligned(copy.deepcopy(made).double(), sides.map(_double))
    for what, found, dtype, tolerance in (
        ("an aligner of bfloat16 weights", half, torch.float32, 5e-2),
        ("signals of float64", double, torch.float64, 1e-4),
    ):
        for side in SIDES:
            one, other = numbers(getattr(found, side)), numbers(getattr(expected, side))
            if one.dtype != dtype:
                raise UnmetError(
                    f"{what}: the {side} comes out as {one.dtype}, not as {dtype}; compute in the "
                    "weights' dtype, and return .to(student.dtype)"
                )
            if not _close(one, other.to(dtype), tolerance):
                raise UnmetError(f"{what}: the {side}'s values are others")
    return "float32 with bfloat16 weights, float64 with float64"


def moves_whole(case: AlignerCase) -> str:
    """Every tensor that it holds moves with it."""
    made = case.made()
    loose = sorted(set(loose_tensors(made)))
    if loose:
        raise UnmetError(
            f"{', '.join(loose)} would stay on the CPU in .to(device): make it a parameter, or "
            "register_buffer"
        )
    if not torch.cuda.is_available():
        return "every tensor is a parameter or a buffer (no GPU here to move to)"
    sides = case.sides()
    expected = aligned(made, sides)
    found = aligned(copy.deepcopy(made).cuda(), _on_gpu(sides))
    for side in SIDES:
        one = numbers(getattr(found, side))
        if one.device.type != "cuda":
            raise UnmetError(f"on a GPU, the {side} comes out on {one.device}")
        if not _close(one.cpu(), numbers(getattr(expected, side)), 1e-3):
            raise UnmetError(f"on a GPU, the {side}'s values are others")
    return "the same on a GPU"


def copies(case: AlignerCase) -> str:
    """A deep copy and a pickle do the same, and share nothing with the first."""
    made = case.made()
    twins = {"a copy": copy.deepcopy(made)}
    if case.has_name:
        twins["a pickle"] = _pickled(made)
    for what, twin in twins.items():
        _check_same(case, twin.eval(), made, f"{what} of it")
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        _check_same(case, made, case.made(), f"once {what} of it has learned, it")
    return f"{' and '.join(twins)} of it did the same"


def keeps_its_state(case: AlignerCase) -> str:
    """A checkpoint brings everything back that it has drawn or learned."""
    made, other = case.made(), case.made(seed=1)
    try:
        other.load_state_dict(made.state_dict())
    except RuntimeError as error:
        raise UnmetError(f"another one does not take its state: {error}") from None
    _check_same(case, other, made, "another one with its state")
    return f"{len(made.state_dict())} tensors"


def takes_an_empty_batch(case: AlignerCase) -> str:
    """A batch without examples stays one, with the same other sizes."""
    made, sides = case.made(), case.sides()
    expected, found = aligned(made, sides), aligned(made, sides.take(slice(0, 0)))
    for side in SIDES:
        one, other = sizes(getattr(found, side)), sizes(getattr(expected, side))
        if one != (0, *other[1:]):
            raise UnmetError(f"of no example, the {side} comes out as {one}, not {(0, *other[1:])}")
    return "no example goes in, none comes out"


def keeps_examples_apart(case: AlignerCase) -> str:
    """An example comes out the same, whichever others are in its batch."""
    made, sides = case.made(), case.sides()
    if sides.examples < 2:
        raise UnmetError("the example needs at least two examples in its batch")
    whole = aligned(made, sides)
    for i in range(sides.examples):
        index = slice(i, i + 1)
        alone = aligned(made, sides.take(index))
        for side in SIDES:
            if not _close(numbers(getattr(alone, side)), numbers(getattr(whole, side))[index]):
                raise UnmetError(
                    f"example {i} of the {side} comes out otherwise without the others"
                )
    return f"{sides.examples} examples"


def says_which_tokens_it_leaves(case: AlignerCase) -> str:
    """What it says of the tokens afterwards fits what it returns."""
    sides = case.sides()
    found = aligned(case.made(), sides)
    facts = 0
    for side in SIDES:
        before, after = token_counts(getattr(sides, side)), token_counts(getattr(found, side))
        axes: TokenAxes = getattr(found, f"{side}_tokens")
        known: TokenAxes = getattr(sides, f"{side}_tokens")
        if before != after and axes is known:
            raise UnmetError(
                f"the {side} has {before} tokens before and {after} afterwards, and nothing says "
                "which, so padding, masks and later aligners would go wrong: give it a method "
                "align_tokens(student_tokens, teacher_tokens) that returns what is known of those "
                "that remain"
            )
        for count, axis in zip(after, axes, strict=False):
            for what, size in _known_sizes(axis):
                facts += 1
                if size != count:
                    raise UnmetError(
                        f"the {side} has {count} tokens afterwards, but align_tokens says "
                        f"{what} of {size}"
                    )
    if not facts:
        raise NotApplicable("the example says nothing of its tokens")
    return f"{facts} facts fit"


def ignores_padding(case: AlignerCase) -> str:
    """What stands at padding, NaN too, reaches no other value and no gradient."""
    sides = case.sides()
    if not isinstance(sides.student, Attention) and sides.student.ndim < 3:
        raise NotApplicable("its signals have no tokens")
    made, found = case.made(), []
    for fill in (0.0, torch.nan):
        filled = padded(sides, fill)
        student, leaf = learning(filled.student)
        result = aligned(made, replace(filled, student=student))
        _check_dropped(filled.student, result.student)
        kept = counted(result)
        values = [torch.where(kept, numbers(x), 0) for x in (result.student, result.teacher)]
        weighted_sum(values[0]).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        reached = leaf.grad if isinstance(student, Attention) else leaf.grad[:, :-1]
        found.append((*(x.detach() for x in values), reached))
    for what, zero, nan in zip((*SIDES, "gradient"), *found, strict=True):
        if not _close(zero, nan):
            raise UnmetError(
                f"what stands at padding reaches the {what}: remove masked entries before products "
                "(torch.where), and let no token mix with one that is no token"
            )
    return "NaN at padding changes nothing"


def refuses_what_does_not_fit(case: AlignerCase) -> str:
    """Wrong kinds and sizes are an error of distillkit's, which says what is wrong."""
    made, sides, refused = case.made(), case.sides(), 0
    for what, wrong in wrong_sides(sides):
        try:
            aligned(made, wrong)
        except DistillKitError:
            refused += 1
        except Exception as error:
            raise UnmetError(
                f"{what} gives a raw {type(error).__name__} ({error}); raise ShapeError with both "
                "shapes and the fix"
            ) from error
    if not refused:
        raise UnmetError("it takes anything, also a scalar and another kind of signal")
    return (
        f"{refused} of {len(list(wrong_sides(sides)))} wrong inputs are refused, the others taken"
    )


CHECKS: Mapping[str, Callable[[AlignerCase], str]] = {
    check.__name__: check
    for check in (
        returns_both_sides,
        sides_fit,
        leaves_its_inputs,
        gradient_reaches_the_student,
        gradient_reaches_its_parameters,
        takes_other_dtypes,
        moves_whole,
        copies,
        keeps_its_state,
        takes_an_empty_batch,
        keeps_examples_apart,
        says_which_tokens_it_leaves,
        ignores_padding,
        refuses_what_does_not_fit,
    )
}


def _check_gradient(gradient: Tensor | None, what: str) -> None:
    if gradient is None or not gradient.any():
        raise UnmetError(f"no gradient reaches {what}")
    if not gradient.isfinite().all():
        raise UnmetError(f"the gradient of {what} is not finite")


def _check_same(case: AlignerCase, one: nn.Module, other: nn.Module, what: str) -> None:
    first, second = aligned(one, case.sides()), aligned(other, case.sides())
    for side in SIDES:
        if not _close(numbers(getattr(first, side)), numbers(getattr(second, side))):
            raise UnmetError(f"{what} makes something else of the {side}")


def _pickled(made: nn.Module) -> nn.Module:
    try:
        found: nn.Module = pickle.loads(pickle.dumps(made))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UnmetError(f"it does not pickle: {error}") from error
    return found


def _double(signal: Any) -> Any:
    return signal.to(torch.float64)


def _on_gpu(sides: Sides) -> Sides:
    axes = [
        tuple(None if axis is None else axis.to("cuda") for axis in side) for side in sides.axes
    ]
    moved = sides.map(lambda x: x.to("cuda"))
    return replace(moved, student_tokens=axes[0], teacher_tokens=axes[1])


def _known_sizes(axis: TokenAxis | None) -> Iterator[tuple[str, int]]:
    for what in ("valid", "extents", "ids"):
        known = getattr(axis, what, None)
        if known is not None:
            yield what, known.shape[1]


def _check_dropped(before: Any, after: Any) -> None:
    """Refuse an attention over the same tokens that gives dropped entries weight again."""
    if isinstance(before, Attention) and sizes(before) == sizes(after):
        dropped = ~before.keep().any(1)  # type: ignore[union-attr]  # it was made with a mask
        if bool((numbers(after).sum(1) * dropped).any()):
            raise UnmetError("keys or rows that the student's mask dropped have weight again")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    return one.shape == other.shape and torch.allclose(
        one.detach(), other.detach().to(one.dtype), rtol=tolerance, atol=tolerance
    )
