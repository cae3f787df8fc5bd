"""Teach capture a fused attention kernel of your own, and prove that it is read right.

The kernel below takes queries, keys and values packed as ``(b, n, 3, h, d)`` and computes in an
``autograd.Function``, as kernels of libraries do: nothing of it can be seen from outside. One
``OperationSpec`` says how its arguments are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import distillkit as dk
from distillkit import losses, testing


class _Kernel(torch.autograd.Function):
    """Attention as a kernel: no product and no softmax that anybody can follow with gradient."""

    @staticmethod
    def forward(ctx, packed: Tensor, scale: float) -> Tensor:
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        probabilities = (query @ key.mT * scale).softmax(-1)
        ctx.save_for_backward(packed, probabilities)
        ctx.scale = scale
        return (probabilities @ value).transpose(1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        packed, p = ctx.saved_tensors
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        upstream = gradient.transpose(1, 2)
        of_p = upstream @ value.mT
        of_scores = p * (of_p - (of_p * p).sum(-1, keepdim=True)) * ctx.scale
        parts = torch.stack([of_scores @ key, of_scores.mT @ query, p.mT @ upstream])
        return parts.permute(1, 3, 0, 2, 4), None


def packed_attention(packed: Tensor, scale: float | None = None) -> Tensor:
    """``(b, n, 3, h, d) -> (b, n, h, d)``."""
    return _Kernel.apply(packed, packed.shape[-1] ** -0.5 if scale is None else scale)


def read_packed_attention(packed: Tensor, scale: float | None = None) -> dk.Attention:
    """The same call as an ``Attention``."""
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    return dk.Attention(query, key, value, scale=scale)


SPEC = dk.OperationSpec("packed_attention", target=packed_attention, read=read_packed_attention)


class Block(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = packed_attention(self.qkv(x).unflatten(-1, (3, self.heads, -1)))
        return self.out(mixed.flatten(2))


def main() -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 7, 3, 4, 8, requires_grad=True)
    for result in testing.check_operation(SPEC, lambda: packed_attention(packed)):
        print(result)

    dk.register(SPEC)  # a distribution returns it from the hook distillkit_operations instead
    student, teacher, x = Block(), Block(), torch.randn(2, 7, 32)
    with dk.capture(student, "") as s, dk.capture(teacher, "", detach=True) as t:
        student(x)
        teacher(x)
    loss = losses.masked_mean(losses.attention_kl(s[""], t[""]))
    loss.backward()
    print(
        f"attention KL {loss:.3f}, gradient of the projections {student.qkv.weight.grad.norm():.3f}"
    )


if __name__ == "__main__":
    main()
