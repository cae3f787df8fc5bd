"""Divergences through the output projection: the dense value and gradient, without the logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillkit import errors, losses
from distillkit.losses._tiled import logits as logits_in_tiles
from distillkit.losses._tiled import tiling

NAMES = ["student_hidden", "student_weight", "student_bias", "teacher_hidden", "teacher_weight", "teacher_bias"]  # fmt: skip
PAIRS = [
    (losses.linear_kl_divergence, losses.kl_divergence),
    (losses.linear_jensen_shannon_divergence, losses.jensen_shannon_divergence),
]


def logits(hidden, weight, bias, softcap):
    x = hidden @ weight.mT if bias is None else hidden @ weight.mT + bias
    capped = x if softcap is None else softcap * torch.tanh(x / softcap)
    return torch.where(x > -torch.inf, capped, -torch.inf)  # a ban stays one under a soft cap


@st.composite
def heads(draw, dtype=torch.float64, classes=7):
    n, v, d = draw(st.integers(0, 6)), draw(st.integers(2, classes)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    tensors = [normal(n, d), normal(v, d), normal(v), normal(n, d + 1), normal(v, d + 1), normal(v)]
    for i in (2, 5):
        kind = draw(st.sampled_from(["none", "bias", "banned"]))
        if kind == "banned":
            tensors[i] = tensors[i].masked_fill(torch.arange(v) % 3 == 2, -math.inf)
        if kind == "none":
            tensors[i] = None
    where = torch.rand(v, generator=generator) < draw(st.sampled_from([0.2, 0.5, 1.1]))
    mask = torch.rand(n, generator=generator) < draw(st.sampled_from([0.5, 1.1]))
    options = {
        "student_softcap": draw(st.sampled_from([None, 2.0])),
        "teacher_softcap": draw(st.sampled_from([None, 3.0])),
        "temperature": draw(st.sampled_from([1.0, 2.5])),
        "where": draw(st.sampled_from([None, where])),
        "mask": draw(st.sampled_from([None, mask])),
    }
    return tensors, options


def through(function, tensors, options):
    sh, sw, sb, th, tw, tb = tensors
    return function(sh, sw, th, tw, student_bias=sb, teacher_bias=tb, **options)


def dense(function, tensors, options):
    options = dict(options)
    caps = options.pop("student_softcap"), options.pop("teacher_softcap")
    mask = options.pop("mask")
    sides = [logits(*tensors[3 * i : 3 * i + 3], caps[i]) for i in (0, 1)]
    value = function(*sides, **options)
    return value if mask is None else torch.where(mask, value, 0)


@pytest.mark.parametrize("pair", PAIRS, ids=["kl", "jsd"])
@given(
    case=heads(),
    asked=st.sampled_from([(1, 1, 1, 0, 0, 0), (1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (1,) * 6]),
    even=st.booleans(),
    tokens=st.sampled_from([1, 2, 256]),
    look=st.booleans(),
)
def test_against_the_dense_divergence(pair, case, asked, even, tokens, look):
    tensors, options = case
    results = []
    for function, compute in ((pair[0], through), (pair[1], dense)):
        leaves = [
            x if x is None else x.clone().requires_grad_(bool(some))
            for x, some in zip(tensors, asked, strict=True)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiling, "can_sync", lambda _: look)  # False: as on an accelerator
            patch.setattr(logits_in_tiles, "FEWEST_TOKENS", 1)
            patch.setattr(logits_in_tiles, "MOST_TOKENS", tokens)
            value = compute(function, leaves, options)
            weights = torch.ones_like(value) if even else torch.arange(1.0, 1 + len(value))
            total = torch.where(value.isfinite(), value * weights, 0).sum()
            wanted = [x for x in leaves if x is not None and x.requires_grad]
            gradients = torch.autograd.grad(total, wanted) if total.requires_grad else ()
        results.append((value, *gradients))
    assert results[0][0].dtype == torch.float64
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def small(dtype=torch.float64, n=5, v=6):
    shapes = [(n, 3), (v, 3), (v,), (n, 2), (v, 2), (v,)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def test_leading_axes_and_masked_tokens_that_hold_anything():
    tensors = small(n=6)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    for x in (tensors[0], tensors[3]):
        x[~mask.flatten()] = math.nan
    tensors[0], tensors[3] = (x.unflatten(0, (2, 3)) for x in (tensors[0], tensors[3]))
    leaves = [x.requires_grad_() for x in tensors]
    value = through(losses.linear_kl_divergence, leaves, {"mask": mask})
    assert value.shape == (2, 3)
    assert not value[~mask].any()
    losses.masked_mean(value, mask).backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    assert not leaves[0].grad[~mask].any()


def test_classes_left_out_may_hold_anything():
    for where in (torch.arange(6) < 4, torch.arange(6) % 2 == 0):
        tensors = small()
        for i in (1, 2, 4, 5):
            tensors[i][~where] = math.nan
        leaves = [x.requires_grad_(i < 3) for i, x in enumerate(tensors)]
        value = through(losses.linear_kl_divergence, leaves, {"where": where})
        value.sum().backward()
        assert value.isfinite().all()
        assert all(x.grad.isfinite().all() for x in leaves[:3])
        assert not leaves[1].grad[~where].any()


@pytest.mark.parametrize("look", [True, False])
def test_a_teacher_without_classes_is_worth_nothing(look, monkeypatch):
    monkeypatch.setattr(tiling, "can_sync", lambda _: look)
    tensors = small()
    tensors[5][[2, 5]] = -math.inf  # the only classes that exist
    leaves = [x.requires_grad_(i < 3) for i, x in enumerate(tensors)]
    value = through(losses.linear_kl_divergence, leaves, {"where": torch.arange(6) % 3 == 2})
    value.sum().backward()
    assert not value.any()
    assert not any(x.grad.any() for x in leaves[:3])


def test_gradcheck():
    leaves = [x.requires_grad_() for x in small(n=2, v=3)]
    torch.autograd.gradcheck(lambda *x: through(losses.linear_kl_divergence, x, {}), leaves)


def test_equal_heads_are_exactly_zero():
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4)
    value = losses.linear_kl_divergence(hidden, weight, hidden.detach(), weight)
    value.sum().backward()
    assert not value.any()
    assert not hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_storage(dtype, monkeypatch):
    monkeypatch.setattr(logits_in_tiles, "TILE", 4)
    tensors = [x.to(dtype) for x in small(v=10, n=8)]
    results = []
    for kind in (dtype, torch.float64):
        leaves = [x.to(kind, copy=True).requires_grad_(i < 3) for i, x in enumerate(tensors)]
        with torch.autocast("cpu", torch.bfloat16):
            value = through(losses.linear_kl_divergence, leaves, {})
        value.sum().backward()
        results.append([value, *[x.grad for x in leaves[:3]]])
    assert results[0][0].dtype == torch.float32
    assert results[0][1].dtype == dtype
    for one, other in zip(*results, strict=True):
        assert (one.double() - other).norm() <= 3e-3 * other.norm()


def test_backward_twice_and_a_second_derivative():
    leaves = [x.requires_grad_(i < 3) for i, x in enumerate(small())]
    total = through(losses.linear_kl_divergence, leaves, {}).sum()
    first = torch.autograd.grad(total, leaves[:3], retain_graph=True)
    kept = [x.clone() for x in first]
    first[1].mul_(5)
    for one, other in zip(
        kept, torch.autograd.grad(total, leaves[:3], retain_graph=True), strict=True
    ):
        torch.testing.assert_close(one, other)
    gradient = torch.autograd.grad(total, leaves[1], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative.*kl_divergence"):
        gradient.square().sum().backward()


def test_compiled_and_transformed():
    tensors = small()

    def total(hidden):
        value = losses.linear_kl_divergence(hidden, tensors[1], tensors[3], tensors[4])
        return (value * torch.arange(1.0, 6.0)).sum()

    leaf = tensors[0].clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(torch.func.grad(total)(tensors[0]), leaf.grad)
    both = torch.stack([tensors[0], 2 * tensors[0]])
    torch.testing.assert_close(torch.func.vmap(total)(both)[0], total(tensors[0]))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(both)[0], leaf.grad)
    again = tensors[0].clone().requires_grad_()
    torch.compile(total, fullgraph=True, backend="aot_eager")(again).backward()
    torch.testing.assert_close(again.grad, leaf.grad)


def test_no_logits_are_held():
    """Forward and backward of 1024 tokens x 4000 classes allocate less than one map of logits."""
    hidden, weight = torch.randn(1024, 8, requires_grad=True), torch.randn(4000, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        losses.linear_kl_divergence(hidden, weight, 2 * hidden.detach(), weight).mean().backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert 0 < peak < 1024 * 4000 * 4


class TestBadInput:
    def call(self, **changes):
        given = {
            "student_hidden": torch.zeros(2, 3),
            "student_weight": torch.zeros(4, 3),
            "teacher_hidden": torch.zeros(2, 5),
            "teacher_weight": torch.zeros(4, 5),
        }
        return losses.linear_kl_divergence(**{**given, **changes})

    def test_sizes(self):
        assert self.call().shape == (2,)
        for changes, message in [
            ({"student_weight": torch.zeros(4, 2)}, r"student: hidden states.*\(2, 3\).*\(4, 2\)"),
            ({"teacher_weight": torch.zeros(6, 5)}, r"class with class.*\(4, 3\) and \(6, 5\)"),
            ({"teacher_hidden": torch.zeros(3, 5)}, "token with token"),
            ({"student_bias": torch.zeros(3)}, "student: hidden states"),
            ({"where": torch.ones(3, dtype=torch.bool)}, r"where is boolean \(4,\)"),
            ({"mask": torch.ones(2)}, r"mask is boolean \(2,\)"),
        ]:
            with pytest.raises(errors.ShapeError, match=message):
                self.call(**changes)

    def test_options(self):
        with pytest.raises(errors.OptionError, match="temperature must be greater"):
            self.call(temperature=0.0)
        with pytest.raises(errors.OptionError, match="student_softcap must be greater"):
            self.call(student_softcap=-1.0)
        with pytest.raises(errors.OptionError, match="beta lies between"):
            losses.linear_jensen_shannon_divergence(*[torch.zeros(1, 1)] * 4, beta=1.0)
