"""Checks that capture reads a fused kernel right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._capture.find import self_check
from .._capture.record import Record
from .._capture.scope import Scope
from .._plugins.specs import OperationSpec
from ..errors import CaptureError
from .results import CheckResult

_TOLERANCE = 1e-4


def check_operation(spec: OperationSpec, call: Callable[[], Any]) -> list[CheckResult]:
    """Prove that capture reads a kernel's calls, and reads them right.

    A kernel may return its output alone or as the first tensor of a tuple; as ``(b, h, q, e)``,
    ``(b, q, h, e)`` or with the heads joined; or with the sequences packed one after another,
    ``(rows, h, e)``, where the reader's ``Attention`` is padded and its ``rows`` say which count.

    Args:
        spec: how the kernel is read; it need not be registered.
        call: calls the kernel, however it was imported, and returns what it returned. Let its
            queries require a gradient, so that the gradient is checked too.

    Returns:
        One result for each check: ``seen_once`` (the call was recorded, and nothing inside of it
        again), ``same_result`` (capture changes no bit of it), ``values`` (``probabilities() @
        value`` is what the kernel returned) and ``gradient`` (the record has one).

    Examples:
        >>> from torch.nn.functional import scaled_dot_product_attention as attend
        >>> spec = OperationSpec("mine", target=attend, read=lambda q, k, v: Attention(q, k, v))
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4, requires_grad=True)
        >>> [result.name for result in check_operation(spec, lambda: attend(q, k, v))]
        ['seen_once', 'same_result', 'values', 'gradient']
    """
    model = nn.Module()
    model.forward = call
    plain = call()
    scope = Scope(model, [""], keep_outputs=True, also=[spec])
    with scope.recording() as recorder:
        watched = model()
    try:
        readings = Record(recorder).readings("")
    except CaptureError as reason:
        return [CheckResult("seen_once", passed=False, seen=str(reason))]
    attention = readings[0].attention
    error = self_check(readings[0])
    results = [
        CheckResult("seen_once", passed=len(readings) == 1, seen=f"{len(readings)} attentions"),
        _same(plain, watched),
        CheckResult(
            "values",
            passed=error is not None and error <= _TOLERANCE,
            seen="the reader gives no value, or its shape does not fit what the kernel returned "
            "(of packed sequences, `rows` of the reader's Attention says which rows there are)"
            if error is None
            else f"probabilities() @ value is off by {error:.1e} of the largest output",
        ),
    ]
    if any(one.requires_grad for one in _tensors_of(plain)):
        results.append(_gradient(attention))
    return results


def _same(plain: Any, watched: Any) -> CheckResult:
    before, after = _tensors_of(plain), _tensors_of(watched)
    same = len(before) == len(after) and all(
        torch.equal(one.detach(), other.detach()) for one, other in zip(before, after, strict=True)
    )
    seen = "equal to the bit" if same else "capture changes the result"
    if not before:
        same, seen = False, f"the call returned no tensor, but a {type(plain).__name__}"
    return CheckResult("same_result", passed=same, seen=seen)


def _tensors_of(result: Any) -> list[Tensor]:
    """The tensors that a call returned, alone or in a tuple or list."""
    if isinstance(result, (tuple, list)):
        return [one for part in result for one in _tensors_of(part)]
    return [result] if isinstance(result, Tensor) else []


def _gradient(attention: Attention) -> CheckResult:
    reaches = attention.requires_grad
    seen = "reaches queries or keys" if reaches else "the kernel's result has one, the record none"
    return CheckResult("gradient", passed=reaches, seen=seen)
