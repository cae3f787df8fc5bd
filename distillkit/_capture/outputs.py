"""Route a captured loss's backward through the model's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def attach_to_outputs(loss: Tensor, output: Any) -> Tensor:
    """The same loss, whose backward passes through the model's outputs as well.

    A loss that is built from captured tensors alone reaches the model from its side. DDP, which
    looks for parameters from the outputs of the wrapped module, then waits for gradients that never
    come or sums none; FSDP2, which gathers a module's parameters when a gradient arrives at its
    output, finds them gone. Attached, the loss sends zeros into the outputs, so that every module
    takes part. A :class:`~distillkit.Distiller` does it by itself where processes work together.

    Args:
        loss: a scalar.
        output: what the model returned: a tensor, or tensors nested in mappings and sequences.

    Returns:
        A scalar of the same value and gradient. Its backward costs that of the whole model.

    Examples:
        >>> import torch
        >>> output = torch.ones(2, requires_grad=True)
        >>> attach_to_outputs(torch.tensor(3.0, requires_grad=True), {"logits": output}).backward()
        >>> output.grad
        tensor([0., 0.])
    """
    ends = [tensor for tensor in tensors_in(output) if tensor.requires_grad and not tensor.is_meta]
    attached: Tensor = _Attached.apply(loss, *ends) if ends else loss  # type: ignore[no-untyped-call]
    return attached


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Every tensor in what a model returned."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_in(value)
    elif hasattr(output, "__dataclass_fields__"):
        for name in output.__dataclass_fields__:
            yield from tensors_in(getattr(output, name))


class _Attached(torch.autograd.Function):
    """The identity on its first argument; zeros go back into the others."""

    @staticmethod
    def forward(loss: Tensor, *ends: Tensor) -> Tensor:  # noqa: ARG004
        return loss.view_as(loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.ends = [(end.shape, end.dtype, end.device) for end in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = [torch.zeros(s, dtype=dtype, device=device) for s, dtype, device in ctx.ends]
        return (gradient, *zeros)
