"""Every way of computing an attention loss gives the same value and the same gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distillkit import Attention, errors, losses
from distillkit.losses import _attention
from distillkit.losses._tiled import tiling
from tests.support.versions import whole_graphs_of_attentions

WAYS = ["saved", "recompute", "guess", "blocked"]
FUNCTIONS = [losses.attention_kl, losses.attention_reverse_kl, losses.attention_jsd]


@dataclass
class Case:
    """Two attentions over the same tokens, as what they are made of."""

    leaves: list[Tensor]  # queries and keys of student and teacher
    student: dict = field(default_factory=dict)
    teacher: dict = field(default_factory=dict)

    def sides(self, leaves):
        query, key, teacher_query, teacher_key = leaves
        return (
            Attention(query, key, **self.student),
            Attention(teacher_query, teacher_key, **self.teacher),
        )


@st.composite
def cases(draw, *, dtype=torch.float64):
    b, unit, q, k, d = (
        draw(st.integers(low, n)) for low, n in [(0, 3), (1, 2), (0, 7), (0, 9), (1, 4)]
    )
    repeats = draw(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3])))
    h = unit * math.lcm(*repeats)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    size = draw(st.sampled_from([0.1, 1.0, 30.0]))

    def normal(*shape):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * size).to(dtype)

    def boolean(*shape):
        return torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.1]))

    def masks():
        kind = draw(
            st.sampled_from(["none", "keys", "head", "full", "additive", "bias", "both", "causal"])
        )
        lowest = draw(st.sampled_from([-math.inf, torch.finfo(dtype).min]))
        each = b or 1  # one mask for every example, or for all
        keep = boolean(draw(st.sampled_from([1, each])) if b else 1, 1, 1, k)
        if kind == "keys":
            return {"mask": keep}
        if kind == "head":
            return {"mask": boolean(1, h, 1, k)}
        if kind == "full":
            return {"mask": boolean(each if b else 1, 1, q, k)}
        if kind == "additive":
            return {"bias": torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, lowest)}
        if kind == "bias":
            return {"bias": normal(1, h, q, k)}
        if kind == "both":
            additive = normal(1, 1, q, k).masked_fill(~boolean(1, 1, q, k), lowest)
            return {"bias": additive, "mask": keep}
        return {"causal": True} if kind == "causal" else {}

    student = masks()
    teacher = student if draw(st.booleans()) else masks()
    rows = draw(st.sampled_from(["none", "all heads", "by head"]))
    counted = {
        "none": {},
        "all heads": {"rows": boolean(b, q)},
        "by head": {"rows": boolean(b, h, q)},
    }
    leaves = [normal(b, h, q, d), normal(b, h // repeats[0], k, d)]
    leaves += [normal(b, h, q, d + 1), normal(b, h // repeats[1], k, d + 1)]
    return Case(leaves, {**student, **counted[rows], "scale": 0.7}, teacher)


def value_and_gradients(way, monkey, function, case, weights, asked, **options):
    leaves = [x.clone().requires_grad_(some) for x, some in zip(case.leaves, asked, strict=True)]
    with monkey.context() as patch:
        patch.setattr(tiling, "CACHE_BYTES", options.pop("cache", 2 << 20))
        patch.setattr(tiling, "LONG_BYTES", 600)
        patch.setattr(tiling, "MIN_ROWS", 2)
        if way == "accelerator":  # where no mask is looked at
            patch.setattr(tiling, "can_sync", lambda _: False)
        patch.setattr(_attention, "DENSE_SCORES", -1)
        method = {"guess": "auto", "accelerator": "recompute"}.get(way, way)
        value = function(*case.sides(leaves), method=method, **options)
        weighted = torch.where(value.isfinite(), value * weights(value), 0).sum()
        wanted = [x for x in leaves if x.requires_grad]
        return value, *torch.autograd.grad(weighted, wanted)


def uneven(value):
    return torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)


def even(value):
    return torch.full_like(value, 0.3)


def by_example(value):
    return even(value) * torch.arange(1, len(value) + 1)[:, None, None]


@pytest.fixture(scope="module")
def monkey():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("way", [*WAYS, "accelerator"])
@pytest.mark.parametrize("function", FUNCTIONS)
@given(
    case=cases(),
    temperature=st.floats(0.3, 4),
    heads=st.sampled_from([None, "mean"]),
    asked=st.sampled_from([(1, 1, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 1)]),
    weights=st.sampled_from([uneven, even, by_example]),
    cache=st.sampled_from([64, 1000, 2 << 20]),
)
def test_all_ways_agree(way, function, monkey, case, temperature, heads, asked, weights, cache):
    options = {"temperature": temperature, "heads": heads}
    asked = [bool(some) for some in asked]
    ours = value_and_gradients(way, monkey, function, case, weights, asked, cache=cache, **options)
    dense = value_and_gradients("dense", monkey, function, case, weights, asked, **options)
    for one, other in zip(ours, dense, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.fixture(params=[*WAYS, "dense"])
def way(request, monkeypatch):
    """A way, as ``method=`` takes it."""
    monkeypatch.setattr(_attention, "DENSE_SCORES", -1)
    return "auto" if request.param == "guess" else request.param


def small(*, dtype=torch.float64, causal=False):
    """Leaves with gradient to the student, and a mask with holes."""
    shapes = [(2, 4, 5, 3), (2, 2, 6, 3), (2, 4, 5, 2), (2, 4, 6, 2)]
    leaves = [torch.randn(shape, dtype=dtype) for shape in shapes]
    mask = torch.tensor([[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    return Case(leaves, {"mask": mask, "causal": causal}, {"mask": mask, "causal": causal})


def loss_of(case, way, **options):
    def loss(*leaves):
        return losses.attention_kl(*case.sides(leaves), method=way, **options)

    return loss


@pytest.mark.parametrize("heads", [None, "mean"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradcheck_both_sides(way, function, heads):
    case = small(causal=heads is None)
    leaves = [x[:, :, 2:].requires_grad_() for x in case.leaves]
    case.student["mask"] = case.teacher["mask"] = case.student["mask"][..., 2:]

    def loss(*leaves):
        return function(*case.sides(leaves), method=way, heads=heads, temperature=1.5)

    torch.autograd.gradcheck(loss, leaves)
    torch.autograd.gradcheck(loss, [x.detach().requires_grad_(i < 2) for i, x in enumerate(leaves)])


@pytest.mark.parametrize("look", [True, False])
def test_what_is_dropped_may_hold_anything(way, look, monkeypatch):
    """NaN in padded keys and rows reaches neither value nor gradient, however they are dropped."""
    monkeypatch.setattr(tiling, "can_sync", lambda _: look)  # False: as on an accelerator
    keep = torch.tensor([True, False, True, True, False])
    rows = torch.tensor([False, True, True, False])
    full = keep[None, :] & torch.ones(4, 1, dtype=torch.bool)
    ways = [
        {"mask": keep},
        {"mask": full},
        {"bias": torch.zeros(4, 5).masked_fill(~full, -math.inf)},
    ]
    for student in ways:
        for teacher in ways:
            leaves = [torch.randn(1, 2, n, 3, dtype=torch.float64) for n in (4, 5, 4, 5)]
            for i, x in enumerate(leaves):
                x[:, :, ~(rows if i % 2 == 0 else keep)] = [math.nan, math.inf][i // 2]
            case = Case(
                [x.requires_grad_() for x in leaves], {**student, "rows": rows[None]}, teacher
            )
            value = loss_of(case, way)(*case.leaves)
            gradients = torch.autograd.grad(
                (value * torch.rand(4, dtype=value.dtype)).sum(), leaves
            )
            assert value[:, :, rows].gt(0).all()
            assert not value[:, :, ~rows].any()
            assert all(x.isfinite().all() for x in gradients)


def test_student_equal_to_teacher_is_exactly_zero(way):
    query, key = torch.randn(2, 3, 40, 8, requires_grad=True), torch.randn(2, 3, 50, 8)
    student, teacher = Attention(query, key), Attention(query.detach().clone(), key.clone())
    value = losses.attention_kl(student, teacher, method=way)
    value.mean().backward()
    assert not value.any()
    if way != "dense":
        assert not query.grad.any()


def test_backward_twice_gives_the_same(way):
    case = small()
    leaves = [x.requires_grad_(i < 2) for i, x in enumerate(case.leaves)]
    total = loss_of(case, way)(*leaves).sum()
    first = torch.autograd.grad(total, leaves[:2], retain_graph=True)
    kept = [x.clone() for x in first]
    first[0].mul_(7)  # a gradient is the caller's to change
    again = torch.autograd.grad(3 * total, leaves[:2], retain_graph=True)
    third = torch.autograd.grad(total, leaves[:2])
    for one, two, three in zip(kept, again, third, strict=True):
        torch.testing.assert_close(3 * one, two)
        torch.testing.assert_close(one, three)


def test_only_what_is_asked_for_gets_a_gradient(way):
    for asked in ((True, False), (False, True)):
        case = small()
        leaves = [x.requires_grad_(i < 2 and asked[i]) for i, x in enumerate(case.leaves)]
        loss_of(case, way)(*leaves).sum().backward()
        assert [x.grad is not None for x in leaves] == [*asked, False, False]


def test_no_grad_does_no_gradient_work(way, monkeypatch):
    case = small()
    leaves = [x.requires_grad_() for x in case.leaves]
    products = []
    monkeypatch.setattr(torch, "bmm", lambda *args, **kwargs: products.append(args))
    with torch.no_grad():
        value = loss_of(case, way)(*leaves)
    assert not value.requires_grad
    assert not products  # only a gradient is a plain product of maps and vectors


def test_a_second_derivative_is_an_error_that_names_the_dense_way(way):
    case = small()
    leaves = [x.requires_grad_(i < 2) for i, x in enumerate(case.leaves)]
    total = loss_of(case, way)(*leaves).sum()
    gradient = torch.autograd.grad(total, leaves[0], create_graph=True)[0]
    penalised = total + gradient.square().sum()
    if way == "dense":
        penalised.backward()
        return
    with pytest.raises(RuntimeError, match='no second derivative.*method="dense"'):
        penalised.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_accuracy_of_storage_is_all_that_is_lost(way, dtype):
    """The bounds that docs/performance.md states, near convergence too."""
    query, key = torch.randn(2, 2, 60, 16).to(dtype), torch.randn(2, 2, 70, 16).to(dtype)
    near = (query.float() + 0.1 * torch.randn(query.shape)).to(dtype)
    results = []
    for kind in (dtype, torch.float64):
        leaf = near.to(kind, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = losses.attention_kl(
                Attention(leaf, key.to(kind)), Attention(query.to(kind), key.to(kind)), method=way
            )
        value.sum().backward()
        results.append((value.detach().double(), leaf.grad.double()))
        assert value.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        assert leaf.grad.dtype == kind
    (value, gradient), (exact, exact_gradient) = results
    torch.testing.assert_close(value, exact, rtol=2e-4, atol=1e-6)
    bound = {torch.bfloat16: 3e-3, torch.float16: 1e-3, torch.float32: 2e-5}[dtype]
    assert (gradient - exact_gradient).norm() / exact_gradient.norm() < bound


def test_autocast_does_not_round_the_products(way):
    case = small(dtype=torch.float32)
    leaves = [x.requires_grad_(i < 2) for i, x in enumerate(case.leaves)]
    plain = loss_of(case, way)(*leaves)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss_of(case, way)(*leaves)
    gradients = [torch.autograd.grad(x.sum(), leaves[:2]) for x in (plain, cast)]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain, cast)


@whole_graphs_of_attentions
def test_a_compiled_caller_has_no_graph_break(way):
    case = small(dtype=torch.float32)

    def mean(*leaves):
        student, teacher = case.sides((leaves[0].tanh(), *leaves[1:]))
        rows = losses.attention_kl(student, teacher, method=way)
        return losses.masked_mean(rows, losses.shared_rows(student, teacher))

    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    results = []
    for function in (mean, compiled):
        leaves = [x.clone().requires_grad_(i < 2) for i, x in enumerate(case.leaves)]
        value = function(*leaves)
        value.backward()
        results.append((value, leaves[0].grad, leaves[1].grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_torch_func(way):
    case = small()
    query, *others = case.leaves
    loss = loss_of(case, way)

    def total(query):
        return (loss(query, *others) * torch.linspace(0.5, 1.5, 5, dtype=query.dtype)).sum()

    leaf = query.clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(torch.func.grad(total)(query), leaf.grad)
    queries = torch.stack([query, 2 * query, query / 2], dim=1)
    mapped = torch.func.vmap(lambda q: loss(q, *others), in_dims=1)(queries)
    torch.testing.assert_close(mapped[1], loss(2 * query, *others))
    gradients = torch.func.vmap(torch.func.grad(total), in_dims=1)(queries)
    torch.testing.assert_close(gradients[0], leaf.grad)


def test_a_batch_of_backwards(way):
    case = small()
    query, *others = case.leaves
    value = loss_of(case, way)(query.requires_grad_(), *others).sum((1, 2))
    batched = torch.autograd.grad(
        value, query, torch.eye(2, dtype=value.dtype), is_grads_batched=True, retain_graph=True
    )[0]
    each = [torch.autograd.grad(x, query, retain_graph=True)[0] for x in value]
    torch.testing.assert_close(batched, torch.stack(each))


def test_vmap_over_nothing(way):
    case = small()
    query, *others = case.leaves
    loss = loss_of(case, way)
    nothing = query.new_empty((0, *query.shape))
    assert torch.func.vmap(lambda q: loss(q, *others))(nothing).shape == (0, 2, 4, 5)


def test_shapes_alone(way):
    from torch._subclasses.fake_tensor import FakeTensorMode

    case = small()
    meta = [Attention(*[x.to("meta") for x in pair]) for pair in (case.leaves[:2], case.leaves[2:])]
    assert losses.attention_kl(*meta, method=way).shape == (2, 4, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        leaves = [torch.empty(x.shape, requires_grad=i < 2) for i, x in enumerate(case.leaves)]
        attentions = Attention(*leaves[:2]), Attention(*leaves[2:])
        value = losses.attention_kl(*attentions, method=way)
        value.sum().backward()
    assert value.shape == (2, 4, 5)
    assert leaves[0].grad.shape == leaves[0].shape


def test_repetition_is_equal_bit_by_bit(way):
    case = small(dtype=torch.float32)
    results = []
    for _ in range(3):
        leaves = [x.clone().requires_grad_(i < 2) for i, x in enumerate(case.leaves)]
        value = loss_of(case, way)(*leaves)
        value.sum().backward()
        results.append((value, leaves[0].grad, leaves[1].grad))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_views_and_expanded_tensors(way):
    base = torch.randn(5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    shared = torch.randn(1, 2, 7, 4, dtype=torch.float64, requires_grad=True)
    teacher = Attention(*[torch.randn(3, 2, n, 4, dtype=torch.float64) for n in (5, 7)])
    query, key = base.permute(1, 2, 0, 3), shared.expand(3, -1, -1, -1)
    results = []
    for method in (way, "dense"):
        value = losses.attention_kl(Attention(query, key), teacher, method=method)
        results.append((value, *torch.autograd.grad(value.square().sum(), [base, shared])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_scale_zero_and_a_single_key(way):
    for k, scale in ((1, None), (3, 0.0)):
        leaves = [torch.randn(1, 1, n, 2, requires_grad=True) for n in (2, k, 2, k)]
        student, teacher = Attention(*leaves[:2], scale=scale), Attention(*leaves[2:], scale=scale)
        value = losses.attention_kl(student, teacher, method=way)
        assert not value.any()
        value.sum().backward()
        assert not leaves[0].grad.any()


def test_no_map_is_held(monkeypatch):
    """Forward and backward of 2 heads x 3000 x 3000 allocate less than one map of one head."""
    leaves = [torch.randn(1, 2, 3000, 8, requires_grad=i < 2) for i in range(4)]
    for method in ("auto", "recompute"):
        with torch.profiler.profile(profile_memory=True) as profile:
            student, teacher = Attention(*leaves[:2]), Attention(*leaves[2:])
            value = losses.attention_kl(student, teacher, method=method)
            losses.masked_mean(value, losses.shared_rows(student, teacher)).backward()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        assert 0 < peak < 3000 * 3000 * 4


def test_relations_by_every_way(way):
    vectors = [torch.randn(2, 4, 6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    where = torch.rand(2, 6) < 0.7
    results = []
    for method in (way, "dense"):
        value = losses.relation_kl(*vectors, relation_heads=2, where=where, method=method)
        results.append((value, *torch.autograd.grad(value.square().sum(), vectors)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


class TestTheChoice:
    def sides(self, q, *, bias=None):
        leaves = [torch.randn(1, 2, n, 4, requires_grad=True) for n in (q, q, q, q)]
        return Attention(*leaves[:2], bias=bias), Attention(*leaves[2:]).detach()

    def ways(self, student, teacher):
        return _attention._way("attention_kl", student, teacher, "auto")

    def test_sizes_decide(self):
        assert self.ways(*self.sides(20)) == "dense"
        assert self.ways(*self.sides(400)) == "guess"
        student, _ = self.sides(400)
        assert self.ways(student, student) == "saved"
        student, _ = self.sides(2000)
        assert self.ways(student, student) == "recompute"

    def test_what_blocks_cannot_do_takes_the_dense_way(self):
        bias = torch.zeros(400, 400, requires_grad=True)
        student, teacher = self.sides(400, bias=bias)
        assert self.ways(student, teacher) == "dense"
        losses.attention_kl(student, teacher).mean().backward()
        assert bias.grad.any()
        with pytest.raises(errors.OptionError, match="bias asks for a gradient.*auto"):
            losses.attention_kl(student, teacher, method="recompute")
        replayed = Attention.from_scores(torch.zeros(1, 2, 400, 400))
        assert self.ways(teacher, replayed) == "dense"
        with pytest.raises(errors.OptionError, match="replayed"):
            losses.attention_kl(teacher, replayed, method="saved")

    def test_an_unknown_method(self):
        with pytest.raises(errors.OptionError, match='method is one of "auto", .*; got .fast'):
            losses.attention_kl(*self.sides(2), method="fast")
