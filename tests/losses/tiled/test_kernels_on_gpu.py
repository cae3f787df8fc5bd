"""The kernels on a GPU, with the tiles that they are launched with: ``make test-gpu``."""

from __future__ import annotations

import pytest
import torch

from distillkit import Attention, losses

pytest.importorskip("triton", reason="the kernels need triton (pip install triton)")

from distillkit.losses._tiled._triton import support

if not torch.cuda.is_available() or support.IS_INTERPRETED:
    pytest.skip("needs a GPU, and TRITON_INTERPRET=0: make test-gpu", allow_module_level=True)

FUNCTIONS = [losses.attention_kl, losses.attention_reverse_kl, losses.attention_jsd]
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def leaves_of(dtype, width, q=300, k=430):
    shapes = [(2, 4, q, width), (2, 2, k, width), (2, 4, q, width), (2, 1, k, width)]
    return [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]


def value_and_gradients(function, leaves, options, method):
    fresh = [x.detach().clone().requires_grad_() for x in leaves]
    value = function(*(Attention(*x, **options) for x in (fresh[:2], fresh[2:])), method=method)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device="cuda")
    return value, *torch.autograd.grad((value * weights.view(value.shape)).sum(), fresh)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("width", [16, 40, 64, 128, 256])
@pytest.mark.parametrize("kind", ["plain", "causal", "keys", "map"])
def test_against_float64(function, dtype, width, kind):
    leaves = leaves_of(dtype, width)
    q, k = leaves[0].shape[2], leaves[1].shape[2]
    keep = torch.rand(2, 1, 1, k, device="cuda") < 0.7
    keep[..., 0] = True
    bias = torch.randn(1, 4, q, k, device="cuda")
    rows = torch.arange(q, device="cuda") < torch.tensor([[q], [q // 3]], device="cuda")
    options = {
        "plain": {},
        "causal": {"causal": True, "rows": rows},
        "keys": {"mask": keep, "rows": rows},
        "map": {"mask": keep.expand(-1, 1, q, k).contiguous(), "bias": bias},
    }[kind]
    ours = value_and_gradients(function, leaves, options, "triton")
    exact = value_and_gradients(function, [x.double() for x in leaves], options, "dense")
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-4, atol=1e-4)
    for one, other in zip(ours[1:], exact[1:], strict=True):
        assert (one.double() - other).norm() <= BOUNDS[dtype] * other.norm()
    again = value_and_gradients(function, leaves, options, "triton")
    assert all(map(torch.equal, ours, again))


def test_equal_sides_are_exactly_zero():
    query, key, *_ = leaves_of(torch.bfloat16, 64)
    query.requires_grad_()
    student, teacher = Attention(query, key), Attention(query.detach().clone(), key.clone())
    value = losses.attention_kl(student, teacher, method="triton")
    value.mean().backward()
    assert not value.any()
    assert not query.grad.any()


def test_no_map_is_held():
    leaves = [
        x.requires_grad_(i < 2) for i, x in enumerate(leaves_of(torch.bfloat16, 64, 8192, 8192))
    ]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = losses.attention_kl(Attention(*leaves[:2]), Attention(*leaves[2:]), method="triton")
    value.mean().backward()
    held = torch.cuda.max_memory_allocated() - before
    assert held < 4 * sum(x.numel() * x.element_size() for x in leaves)


def test_a_compiled_caller():
    leaves = leaves_of(torch.float32, 64)

    def mean(query):
        sides = Attention(query.tanh(), leaves[1]), Attention(*leaves[2:])
        return losses.attention_kl(*sides, method="triton").mean()

    found = []
    for function in (mean, torch.compile(mean, fullgraph=True)):
        query = leaves[0].clone().requires_grad_()
        function(query).backward()
        found.append(query.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "function", [losses.linear_kl_divergence, losses.linear_jensen_shannon_divergence]
)
@pytest.mark.parametrize("classes", [50, 32_000])
def test_logits_against_float64(function, classes):
    shapes = [(300, 64), (classes, 64), (300, 96), (classes, 96)]
    tensors = [torch.randn(shape, device="cuda") for shape in shapes]
    results = []
    for dtype, method in ((torch.float32, "triton"), (torch.float64, "blocked")):
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        value = function(*leaves, method=method)
        weights = torch.linspace(0.5, 1.5, len(value), dtype=dtype, device="cuda")
        results.append((value, *torch.autograd.grad((value * weights).sum(), leaves)))
    for one, other in zip(*results, strict=True):
        assert (one.double() - other).norm() <= 1e-4 * other.norm()
