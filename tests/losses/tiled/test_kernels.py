"""The kernels for a GPU, interpreted, against float64 on the same inputs."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from distillkit import Attention, errors, losses

pytest.importorskip("triton", reason="the kernels need triton (pip install triton)")

from distillkit.losses._tiled._triton import attention, support
from distillkit.losses._tiled._triton.geometry import Geometry
from tests.support.versions import whole_graphs_of_attentions

pytestmark = [
    pytest.mark.skipif(
        not support.IS_INTERPRETED, reason="kernels are interpreted where TRITON_INTERPRET=1"
    ),
    # numpy says so of numbers that a kernel goes on to mask
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
]

FUNCTIONS = [losses.attention_kl, losses.attention_reverse_kl, losses.attention_jsd]
BOUNDS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SMALL = Geometry(16, 16, 4, 1)


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Tiles so small that a few rows and keys are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "candidates", lambda *_, **__: [SMALL])
        yield


@st.composite
def cases(draw):  # noqa: C901 (a case for each kind of mask)
    b, unit, q, k = (draw(st.integers(*x)) for x in [(1, 2), (1, 2), (1, 20), (1, 36)])
    repeats = draw(st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2])))
    h = math.lcm(*repeats) * (unit if max(repeats) == 1 else 1)
    widths = draw(st.tuples(*[st.sampled_from([1, 7, 16, 20, 33])] * 2))
    dtypes = draw(st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16, torch.float16])] * 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    size = draw(st.sampled_from([0.1, 1.0, 4.0]))

    def normal(*shape, dtype=torch.float32):
        return (torch.randn(shape, generator=generator) * size).to(dtype)

    def boolean(*shape):
        return torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.1]))

    def masks(dtype):
        kind = draw(
            st.sampled_from(
                ["none", "keys", "head", "rows", "full", "additive", "bias", "both", "causal"]
            )
        )
        lowest = draw(st.sampled_from([-math.inf, torch.finfo(dtype).min]))
        if kind == "keys":
            return {"mask": boolean(draw(st.sampled_from([1, b])), 1, 1, k)}
        if kind == "head":
            return {"mask": boolean(1, h, 1, k), "causal": draw(st.booleans())}
        if kind == "rows":
            return {"mask": boolean(b, 1, q, 1)}
        if kind == "full":
            return {"mask": boolean(b, 1, q, k)}
        if kind == "additive":
            return {
                "bias": torch.zeros(b, 1, 1, k, dtype=dtype).masked_fill(
                    ~boolean(b, 1, 1, k), lowest
                )
            }
        if kind == "bias":
            return {"bias": normal(1, h, q, k, dtype=dtype)}
        if kind == "both":
            bias = normal(1, 1, k, q, dtype=dtype).mT  # neighbouring keys are no neighbours
            return {
                "bias": bias.masked_fill(~boolean(1, 1, q, k), lowest),
                "mask": boolean(b, 1, 1, k),
            }
        return {"causal": True} if kind == "causal" else {}

    student = masks(dtypes[0])
    teacher = student if draw(st.booleans()) else masks(dtypes[1])
    rows = draw(st.sampled_from(["none", "all heads", "by head"]))
    counted = {
        "none": {},
        "all heads": {"rows": boolean(b, q)},
        "by head": {"rows": boolean(b, h, q)},
    }
    leaves = [
        normal(b, heads, n, width, dtype=dtype)
        for width, dtype, repeat in zip(widths, dtypes, repeats, strict=True)
        for heads, n in ((h, q), (h // repeat, k))
    ]
    return leaves, {**student, **counted[rows]}, teacher


def in_float64(options):
    """The same masks beside float64; a bias drops the keys that it drops in its own dtype."""
    bias = options.get("bias")
    if bias is None:
        return options
    dropped = bias <= torch.finfo(bias.dtype).min / 2
    return {**options, "bias": bias.double().masked_fill(dropped, -math.inf)}


def value_and_gradients(function, leaves, student, teacher, asked, **options):
    leaves = [
        x.detach().clone().requires_grad_(some) for x, some in zip(leaves, asked, strict=True)
    ]
    sides = Attention(*leaves[:2], **student), Attention(*leaves[2:], **teacher)
    value = function(*sides, **options)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    weighted = torch.where(value.isfinite(), value * weights, 0).sum()
    return value, *torch.autograd.grad(weighted, [x for x in leaves if x.requires_grad])


@pytest.mark.parametrize("function", FUNCTIONS)
@given(
    case=cases(),
    temperature=st.floats(0.5, 4),
    asked=st.sampled_from([(1, 1, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 1)]),
)
@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])  # shrinking takes an hour
def test_the_kernels_agree_with_float64(function, case, temperature, asked):
    leaves, student, teacher = case
    asked = [bool(x) for x in asked]
    ours = value_and_gradients(
        function, leaves, student, teacher, asked, method="triton", temperature=temperature
    )
    exact = value_and_gradients(
        function, [x.double() for x in leaves], in_float64(student), in_float64(teacher), asked,
        method="dense", temperature=temperature,
    )  # fmt: skip
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-4, atol=3e-5)
    wanted = [x for x, some in zip(leaves, asked, strict=True) if some]
    for leaf, one, other in zip(wanted, ours[1:], exact[1:], strict=True):
        assert one.dtype == leaf.dtype
        dtypes = [leaf.dtype, *(x.dtype for x in leaves)]
        bound = max(BOUNDS[x] for x in dtypes[:1])
        # what a sum of small gradients loses to the size of what is summed
        scale = other.norm() + 1e-3 * math.sqrt(other.numel())
        assert (one.double() - other).norm() <= 3 * bound * scale


def small(*, width=8, dtype=torch.float32):
    """Leaves of grouped heads, the student's asking for a gradient, and a mask with holes."""
    shapes = [(2, 2, 5, width), (2, 1, 18, width), (2, 2, 5, 4), (2, 2, 18, 4)]
    leaves = [
        torch.randn(shape, dtype=dtype, requires_grad=i < 2) for i, shape in enumerate(shapes)
    ]
    mask = torch.rand(2, 1, 1, 18) < 0.7
    mask[:, :, :, 3] = True
    return leaves, {"mask": mask}


def loss_of(options, **more):
    def loss(*leaves):
        student, teacher = (Attention(*x, **options) for x in (leaves[:2], leaves[2:]))
        return losses.attention_kl(student, teacher, method="triton", **more)

    return loss


def test_student_equal_to_teacher_is_exactly_zero():
    query, key = torch.randn(1, 2, 20, 8, requires_grad=True), torch.randn(1, 2, 40, 8)
    student, teacher = Attention(query, key), Attention(query.detach().clone(), key.clone())
    for function in FUNCTIONS:
        query.grad = None
        value = function(student, teacher, method="triton")
        value.mean().backward()
        if function is losses.attention_jsd:  # a mixture is rounded once more
            assert value.max() < 1e-6
            assert query.grad.abs().max() < 1e-6
        else:
            assert not value.any()
            assert not query.grad.any()


@pytest.mark.parametrize("kind", ["key", "full", "additive"])
def test_what_is_dropped_may_hold_anything(kind):
    """NaN in padded keys and rows reaches neither value nor gradient."""
    keep = torch.rand(20) < 0.5
    keep[0] = True
    rows = torch.tensor([False, True, True, False])
    full = keep[None, :] & torch.ones(4, 1, dtype=torch.bool)
    options = {
        "key": {"mask": keep},
        "full": {"mask": full},
        "additive": {"bias": torch.zeros(4, 20).masked_fill(~full, -math.inf)},
    }[kind]
    leaves = [torch.randn(1, 2, n, 3) for n in (4, 20, 4, 20)]
    for i, kept in enumerate((rows, keep, rows, keep)):
        leaves[i][:, :, ~kept] = math.nan
        leaves[i].requires_grad_()
    counted = {"rows": rows[None]}
    student, teacher = (Attention(*x, **options, **counted) for x in (leaves[:2], leaves[2:]))
    value = losses.attention_kl(student, teacher, method="triton")
    (value * torch.rand(4)).sum().backward()
    assert value[:, :, rows].gt(0).all()
    assert not value[:, :, ~rows].any()
    for leaf, kept in zip(leaves, (rows, keep, rows, keep), strict=True):
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[:, :, ~kept].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_at_infinity_has_no_gradient(dtype):
    """The student drops a key, as a model of its dtype writes it, that the teacher uses."""
    leaves = [
        torch.randn(1, 1, n, 4, dtype=dtype, requires_grad=i < 2)
        for i, n in enumerate((2, 3, 2, 3))
    ]
    bias = torch.zeros(2, 3, dtype=dtype)
    bias[1, 2] = torch.finfo(dtype).min
    student, teacher = Attention(*leaves[:2], bias=bias), Attention(*leaves[2:])
    value = losses.attention_kl(student, teacher, method="triton")
    value.sum().backward()
    assert value.isinf().tolist() == [[[False, True]]]
    assert leaves[0].grad[0, 0, 0].any()
    assert not leaves[0].grad[0, 0, 1].any()
    assert leaves[1].grad.isfinite().all()
    reverse = losses.attention_reverse_kl(teacher.detach(), student, method="triton")
    assert reverse.isinf().tolist() == [[[False, True]]]


def test_a_side_without_a_key():
    """What is left of a mixture is the other side's half; no other divergence counts such a row."""
    leaves = [torch.randn(1, 1, n, 4, requires_grad=True) for n in (2, 3, 2, 3)]
    nothing = torch.tensor([[True], [False]]).expand(2, 3)
    whole, empty = Attention(*leaves[2:]), Attention(*leaves[:2], mask=nothing)
    for function, options in (
        (losses.attention_kl, {}),
        (losses.attention_reverse_kl, {}),
        (losses.attention_jsd, {"beta": 0.3}),
    ):
        for student, teacher in ((empty, whole), (whole, empty)):
            found = []
            for method in ("triton", "dense"):
                value = function(student, teacher, method=method, **options)
                finite = torch.where(value.isfinite(), value, 0).sum()
                found.append((value, *torch.autograd.grad(finite, leaves)))
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_causal_keys_behind_the_last_row_may_hold_anything():
    rows = torch.tensor([True, True, False, False])
    leaves = [torch.randn(1, 1, n, 3) for n in (4, 20, 4, 20)]
    for i in range(4):
        leaves[i][:, :, 2:] = math.nan
        leaves[i].requires_grad_()
    options = {"causal": True, "rows": rows[None]}
    student, teacher = (Attention(*x, **options) for x in (leaves[:2], leaves[2:]))
    value = losses.attention_kl(student, teacher, method="triton")
    value.sum().backward()
    assert value[0, 0, 1] > 0  # the first row has one key, and so the value 0
    assert value.isfinite().all()
    for leaf in leaves:
        assert leaf.grad.isfinite().all()
        assert leaf.grad[:, :, :2].any()
        assert not leaf.grad[:, :, 2:].any()


def test_a_model_that_diverged_is_seen():
    leaves, options = small()
    with torch.no_grad():
        leaves[0][0, 1, 2] = math.nan
    value = loss_of(options)(*leaves)
    assert value[0, 1, 2].isnan()
    assert value.isnan().sum() == 1


def test_scores_of_any_size():
    """A teacher that is sure, a student that is surely wrong, and biases far below."""
    query, key = torch.eye(2)[None, None] * 200, torch.eye(2)[None, None] * 200
    far = torch.tensor([[-1e30, 0.0]]).expand(2, 2)
    for bias in (None, far):
        teacher = Attention(query, key, scale=1.0)
        student = Attention(query.flip(-1), key, bias=bias, scale=1.0)
        ours = losses.attention_kl(student, teacher, method="triton")
        exact = losses.attention_kl(student, teacher, method="dense")
        torch.testing.assert_close(ours, exact)


def test_backward_twice_gives_the_same_bit_by_bit():
    leaves, options = small()
    total = loss_of(options)(*leaves).sum()
    first = torch.autograd.grad(total, leaves[:2], retain_graph=True)
    kept = [x.clone() for x in first]
    first[0].mul_(7)  # a gradient is the caller's to change
    again = torch.autograd.grad(total, leaves[:2])
    assert all(map(torch.equal, kept, again))


def test_a_second_derivative_is_an_error_that_names_the_dense_way():
    leaves, options = small()
    total = loss_of(options)(*leaves).sum()
    gradient = torch.autograd.grad(total, leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match='no second derivative.*method="dense"'):
        (total + gradient.square().sum()).backward()


def test_autocast_does_not_round_the_products():
    leaves, options = small()
    plain = loss_of(options)(*leaves)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss_of(options)(*leaves)
    assert torch.equal(plain, cast)


@whole_graphs_of_attentions
def test_a_compiled_caller_has_no_graph_break():
    leaves, options = small()

    def mean(*leaves):
        rows = loss_of(options)(leaves[0].tanh(), *leaves[1:])
        return losses.masked_mean(rows)

    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    results = []
    for function in (mean, compiled):
        fresh = [x.detach().clone().requires_grad_(i < 2) for i, x in enumerate(leaves)]
        value = function(*fresh)
        value.backward()
        results.append((value, fresh[0].grad, fresh[1].grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_operators_keep_their_promises():
    """Schema, shapes without numbers, and tracing: what ``torch.library`` can check."""
    from distillkit.losses._tiled import operators
    from distillkit.losses._tiled.comparison import Kind, Pair, Side

    leaves, options = small()
    sides = [Side(*x, None, options["mask"], 1.0) for x in (leaves[:2], leaves[2:])]
    pair = Pair(*sides, None, Kind("kl"))
    packed = [x if x is None else x.detach() for x in operators.pack_tensors(pair)]
    given = operators.pack_settings(pair, [True, True] + [False] * 4, "", "triton")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.run_forward, (*packed, *given), test_utils=checks)
    value, *maps = operators.run_forward(*packed, *given)[:3]
    call = (torch.ones_like(value), *maps, *packed, *given)
    torch.library.opcheck(operators.run_backward, call, test_utils=checks)


def test_torch_func():
    leaves, options = small()
    query, *others = (x.detach() for x in leaves)
    loss = loss_of(options)

    def total(query):
        return (loss(query, *others) * torch.linspace(0.5, 1.5, 5)).sum()

    leaf = query.clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(torch.func.grad(total)(query), leaf.grad)
    queries = torch.stack([query, 2 * query, query / 2], dim=1)
    mapped = torch.func.vmap(lambda q: loss(q, *others), in_dims=1)(queries)
    torch.testing.assert_close(mapped[1], loss(2 * query, *others))
    gradients = torch.func.vmap(torch.func.grad(total), in_dims=1)(queries)
    torch.testing.assert_close(gradients[0], leaf.grad)
    torch.testing.assert_close(gradients[1], torch.func.grad(total)(2 * query))


def test_a_batch_of_backwards():
    leaves, options = small()
    value = loss_of(options)(*leaves).sum((1, 2))
    batched = torch.autograd.grad(
        value, leaves[0], torch.eye(2), is_grads_batched=True, retain_graph=True
    )[0]
    each = [torch.autograd.grad(x, leaves[0], retain_graph=True)[0] for x in value]
    torch.testing.assert_close(batched, torch.stack(each))


def test_inference_mode():
    leaves, options = small()
    with torch.inference_mode():
        inferred = loss_of(options)(*leaves)
    assert not inferred.requires_grad
    assert torch.equal(inferred, loss_of(options)(*leaves))


@pytest.mark.parametrize(("b", "q", "k"), [(0, 3, 4), (1, 0, 4), (1, 3, 0)])
def test_nothing_to_compare(b, q, k):
    leaves = [torch.randn(b, 2, n, 4, requires_grad=True) for n in (q, k, q, k)]
    value = losses.attention_kl(Attention(*leaves[:2]), Attention(*leaves[2:]), method="triton")
    assert value.shape == (b, 2, q)
    assert not value.any()
    value.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in leaves)


def test_shapes_alone():
    leaves, _ = small()
    meta = [Attention(*[x.to("meta") for x in pair]) for pair in (leaves[:2], leaves[2:])]
    assert losses.attention_kl(*meta, method="triton").shape == (2, 2, 5)


def test_padding_is_skipped_by_the_block():
    """Rows and keys of padding take no program's time: their blocks are never loaded."""
    counted = torch.zeros(1, 1, 64, dtype=torch.bool)
    counted[..., 20:30] = True
    used = torch.zeros(1, 1, 96, dtype=torch.bool)
    used[..., 40:60] = True
    from distillkit.losses._tiled.comparison import Sides

    found = attention.spans(torch.Size((2, 3, 64)), 96, counted, Sides(used, used), "cpu")
    assert found.unique(dim=0).shape[0] == 1
    assert found[0, 0].tolist() == [20, 30, 40, 60]
    one_sided = attention.spans(torch.Size((2, 3, 64)), 96, None, Sides(used, None), "cpu")
    assert one_sided[0, 0].tolist() == [0, 64, 0, 96]
    nothing = attention.spans(torch.Size((1, 1, 64)), 96, counted & False, Sides(used, used), "cpu")
    assert nothing[0, 0].tolist() == [0, 0, 40, 60]


class TestWhatTheKernelsCannotDo:
    def attentions(self, **options):
        leaves, more = small(**options)
        return [Attention(*x, **more) for x in (leaves[:2], leaves[2:])]

    def refused(self, match, *sides, **options):
        with pytest.raises(errors.OptionError, match=f"method=.triton.*{match}"):
            losses.attention_kl(*sides, method="triton", **options)

    def test_double_precision(self):
        self.refused(
            "sum in float32 and a tensor here is float64", *self.attentions(dtype=torch.float64)
        )

    def test_wide_heads(self):
        self.refused("width 1 to 256 and one is 300 wide", *self.attentions(width=300))

    def test_means_over_heads(self):
        self.refused('heads="mean" averages', *self.attentions(), heads="mean")

    def test_scores_without_queries(self):
        replayed = Attention.from_scores(torch.zeros(2, 2, 5, 18))
        self.refused("replayed", self.attentions()[0], replayed)

    def test_a_processor(self, monkeypatch):
        monkeypatch.setattr(support, "IS_INTERPRETED", False)
        self.refused("run on a GPU and these tensors are on cpu", *self.attentions())

    def test_a_machine_without_triton(self, monkeypatch):
        monkeypatch.setattr(support, "IS_INSTALLED", False)
        self.refused("not installed .pip install triton.", *self.attentions())


def test_no_other_method_imports_the_kernels():
    """Neither the library nor ``"auto"`` needs triton."""
    script = (
        "import sys, torch, distillkit as dk\n"
        "from distillkit import losses\n"
        "q = torch.randn(1, 2, 300, 4, requires_grad=True)\n"
        "losses.attention_kl(dk.Attention(q, q), dk.Attention(q, q).detach()).sum().backward()\n"
        "assert not [x for x in sys.modules if 'distillkit' in x and x.endswith('_triton.values')]\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
