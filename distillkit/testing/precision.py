"""Does a loss compute in float32 at least, whatever its inputs are stored in?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .invariants import magnified
from .strategies import Arguments, floating
from .subject import Loss, gradients, require, require_close

EPS = torch.finfo(torch.float32).eps
_HALF = (torch.float16, torch.bfloat16)
_MOVES = 2  # neighbours of an input that are asked how well conditioned a loss is there
_STEPS = 32.0  # roundings of the inputs that a float32 computation may be away


def low_precision(loss: Loss, given: Arguments) -> None:
    """float16, bfloat16 and autocast: a float32 value within 2e-4 of float64's on equal inputs.

    In float32 the tolerance is relative, plus 4 eps of the largest input, plus what 32 roundings of
    the inputs change in float64: a loss that is ill-conditioned there may show it. Half precision
    and autocast give what float32 gives on the same numbers, to 2e-4. The gradient, stored in the
    input's dtype, is within 1 % of the right gradient's norm, plus 1e-5; of a scale- or
    shift-invariant loss, plus 1e-5 over the inputs' spread.
    """
    if not _underflows(loss, given):
        _float32_is_float64(loss, given)
    _same_under_autocast(loss, given.map_floating(lambda x: x.float()))
    for dtype in _HALF:
        low = given.map_floating(lambda x, d=dtype: x.to(d))  # type: ignore[misc]
        _same_under_autocast(loss, low)


def _float32_is_float64(loss: Loss, given: Arguments) -> None:
    """Compare the value and the gradient of float32 with float64's, as far as inputs allow it."""
    low, student, _ = given.map_floating(lambda x: x.float()).with_leaves()
    exact, exact_student, exact_teacher = low.map_floating(
        lambda x: x.detach().double()
    ).with_leaves()
    expected = loss(exact)
    if not expected.isfinite().all():
        return
    right = gradients(expected, exact_student)
    moved, turned = _sensitivity(loss, exact, expected, right)
    value = loss(low)
    require(value.dtype == torch.float32, f"float32 inputs gave {value.dtype}, not float32")
    name = "value of float32 inputs"
    largest = _largest([*exact_student, *exact_teacher])
    atol = 4 * EPS * largest * magnified(loss, given)
    tolerance = 2e-4 * expected.detach().abs() + atol + moved
    error = (value.detach().double() - expected.detach()).abs()
    wrong = ~(error <= tolerance)  # NaN is wrong
    if wrong.any():
        require_close(value[wrong], expected[wrong], name, rtol=2e-4, atol=atol)
    floor = _floor(loss, exact_student, given)
    for found, exact_gradient, change in zip(gradients(value, student), right, turned, strict=True):
        off = (found.double() - exact_gradient).norm()
        close = off <= 0.01 * exact_gradient.norm() + floor + change
        require(close, f"gradient of float32 inputs off by {float(off):.2g}")


def _underflows(loss: Loss, given: Arguments) -> bool:
    """Whether logits lie so far apart that float64 has a probability where float32 has 0."""
    if not {"logits", "shift_invariant"} & set(loss.spec.tags):
        return False
    below = [x.amax(-1, keepdim=True) - x for x in floating((*given.student, *given.teacher))]
    return any(bool(((one > 20) & (one < 3000)).any()) for one in below if one.numel())


def _same_under_autocast(loss: Loss, given: Arguments) -> None:
    """Compare what a call gives with and without autocast with float32 on the same numbers."""
    wide, wide_student, wide_teacher = given.map_floating(lambda x: x.float()).with_leaves()
    expected = loss(wide)
    if not expected.isfinite().all():
        return
    right = gradients(expected, wide_student)
    low, student, _ = given.with_leaves()
    largest = _largest([*wide_student, *wide_teacher])
    atol, floor = 4 * EPS * largest * magnified(loss, given), _floor(loss, wide_student, given)
    for autocast in (False, True):
        if not autocast and student[0].dtype == torch.float32:
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(low)
        dtype = str(student[0].dtype).removeprefix("torch.")
        name = f"{dtype} inputs{' under autocast' if autocast else ''}"
        require(value.dtype == torch.float32, f"{name} gave {value.dtype}, not float32")
        require_close(value, expected, f"value of {name}", rtol=2e-4, atol=atol)
        if largest >= 100:  # beyond, float16 cannot hold the gradient
            continue
        for found, right_gradient in zip(gradients(value, student), right, strict=True):
            if (right_gradient.abs() > torch.finfo(found.dtype).max / 2).any():
                continue
            off = (found.double() - right_gradient.double()).norm()
            close = off <= 0.01 * right_gradient.double().norm() + floor
            require(close, f"gradient of {name} off by {float(off):.2g}")


def _sensitivity(
    loss: Loss, exact: Arguments, expected: Tensor, right: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """What roundings of the inputs change: of each value, and of each gradient's norm."""
    generator = torch.Generator().manual_seed(0)

    def rounded(x: Tensor) -> Tensor:
        signs = torch.randint(0, 2, x.shape, generator=generator, dtype=x.dtype) * 2 - 1
        return x.detach() * (1 + EPS * signs)

    moved = torch.zeros_like(expected.detach())
    turned = [moved.new_zeros(()) for _ in right]
    for _ in range(_MOVES):
        near, student, _ = exact.map_floating(rounded).with_leaves()
        value = loss(near)
        moved = torch.maximum(moved, (value - expected).detach().abs().nan_to_num())
        for i, gradient in enumerate(gradients(value, student)):
            turned[i] = torch.maximum(turned[i], (gradient - right[i]).norm().nan_to_num())
    return _STEPS * moved, [_STEPS * one for one in turned]


def _floor(loss: Loss, student: Sequence[Tensor], given: Arguments) -> float:
    """What a gradient may be off by, however small it is."""
    # a loss that does not see the inputs' size has a gradient in units of 1 / difference; so does
    # a correlation of probabilities
    sizeless = bool({"scale_invariant", "shift_invariant"} & set(loss.spec.tags))
    floor = 1e-5 / max(_spread(student), 1e-3) if sizeless else 1e-5
    # a product with inputs of 1e4 makes 1e-3 of the rounding of a probability
    return floor * max(1.0, _largest(student) / 100) * magnified(loss, given)


def _largest(tensors: Sequence[Tensor]) -> float:
    return max([1.0, *(float(x.detach().abs().max()) for x in tensors if x.numel())])


def _spread(tensors: Sequence[Tensor]) -> float:
    """The smallest deviation among the entries of one position, at most 1."""
    positions = [one for x in tensors for one in (x.detach() if x.ndim > 1 else [x.detach()])]
    return min([1.0, *(float(one.std()) for one in positions if one.numel() > 1)])
