"""Every registered loss: what its tags say, its gradient, its precision, edges and repetition."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from distillkit import Attention, LossSpec, errors, losses
from distillkit._plugins.registry import provided
from distillkit._plugins.specs import resolve

SPECS = {name: by["distillkit"] for name, by in provided(LossSpec).items() if "distillkit" in by}
FUNCTIONS = {name: resolve(spec.function) for name, spec in SPECS.items()}
SIZES = {"v": 5, "w": 7, "k": 3, "d": 4, "e": 6, "n": 5, "c": 3, "h": 2, "q": 2}


@dataclass
class Case:
    """Tensors for one loss, and the loss as a function of them."""

    name: str
    tensors: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *tensors: Tensor) -> Tensor:
        function = FUNCTIONS[self.name]
        given = tensors or self.tensors
        if SPECS[self.name].signature != "attention":
            return function(*given, **self.options)
        if self.name == "relation_kl":
            return function(*given, relation_heads=2, **self.options)
        return function(Attention(*given[:2]), Attention(*given[2:]), **self.options)


def case_of(name, *, leading=(2, 3), dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)

    if name.startswith("top_k"):
        teacher = normal(*leading, 5).float().log_softmax(-1)
        values, indices = teacher.topk(3, -1)
        return Case(name, [normal(*leading, 5), values.to(dtype), indices])
    if SPECS[name].signature == "attention":
        shapes = [(2, 4, 3, 6), (2, 4, 5, 6), (2, 4, 3, 8), (2, 4, 5, 8)]
        shapes = [(2, 4, 3, 6), (2, 4, 3, 8)] if name == "relation_kl" else shapes
        return Case(name, [normal(*shape) for shape in shapes])
    cores = SPECS[name].signature.split("->")[0].strip("()").split("),(")
    sizes = [tuple(SIZES[axis] for axis in core.split(",")) for core in cores]
    options = {}
    if name in ("decoupled_kl_divergence", "nkd"):
        options["labels"] = torch.randint(5, leading, generator=generator)
    return Case(name, [normal(*leading, *size) for size in sizes], options)


def identical(case):
    """The same tensors for student and teacher."""
    half = len(case.tensors) // 2
    student = case.tensors[:half]
    return [*student, *student]


def floating(tensors):
    return [t for t in tensors if t.is_floating_point()]


every_loss = pytest.mark.parametrize("name", SPECS)


def tagged(tag):
    return pytest.mark.parametrize("name", [n for n, spec in SPECS.items() if tag in spec.tags])


@tagged("nonnegative")
def test_nonnegative(name):
    for seed in range(20):
        assert (case_of(name, seed=seed, scale=3.0)() > -1e-12).all()


@tagged("zero_at_identity")
def test_zero_at_identity_with_a_finite_gradient(name):
    exact = not any(word in name for word in ("jensen", "jsd", "cosine", "pearson", "cka"))
    for seed in range(10):
        case = case_of(name, seed=seed, scale=3.0)
        tensors = [t.requires_grad_() for t in identical(case)]
        value = case(*tensors)
        assert (value.abs() <= (0 if exact else 8 * torch.finfo(torch.float64).eps)).all()
        value.sum().backward()
        assert all(t.grad.isfinite().all() for t in tensors)


@tagged("symmetric")
def test_symmetric(name):
    case = case_of(name)
    half = len(case.tensors) // 2
    swapped = [*case.tensors[half:], *case.tensors[:half]]
    torch.testing.assert_close(case(*swapped), case())


@tagged("shift_invariant")
def test_adding_a_constant_to_logits_changes_nothing(name):
    case = case_of(name)
    torch.testing.assert_close(case(*[t + 7.0 for t in case.tensors]), case())


@tagged("scale_invariant")
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_size_of_the_students_vectors_changes_nothing(name, factor):
    case = case_of(name)
    half = len(case.tensors) // 2
    scaled = [t * factor for t in case.tensors[:half]]
    torch.testing.assert_close(case(*scaled, *case.tensors[half:]), case())


@every_loss
def test_gradcheck_of_every_argument(name):
    case = case_of(name, leading=(2,))
    inputs = [t.requires_grad_() for t in floating(case.tensors)]
    rest = [t for t in case.tensors if not t.is_floating_point()]
    assert torch.autograd.gradcheck(lambda *given: case(*given, *rest), inputs)


@every_loss
def test_the_gradient_reaches_the_student(name):
    case = case_of(name)
    case.tensors[0].requires_grad_()
    case().sum().backward()
    assert case.tensors[0].grad.abs().sum() > 0


@every_loss
def test_positions_are_independent(name):
    case = case_of(name)
    for i in range(2):
        options = {key: value[i : i + 1] for key, value in case.options.items()}
        alone = Case(name, [t[i : i + 1] for t in case.tensors], options)
        torch.testing.assert_close(alone(), case()[i : i + 1])


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_in_float32(name, dtype):
    case = case_of(name, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = case()
    assert value.dtype == torch.float32
    exact = case(*[t.double() if t.is_floating_point() else t for t in case.tensors])
    torch.testing.assert_close(value.double(), exact, rtol=2e-4, atol=2e-6)


@every_loss
def test_the_same_twice_and_for_any_memory_layout_and_inputs_unchanged(name):
    case = case_of(name)
    before = [t.clone() for t in case.tensors]
    first = case()
    assert torch.equal(case(), first)
    strided = [torch.stack([t, t], -1).flatten(-2)[..., ::2] for t in case.tensors]
    turned = [t.mT.contiguous().mT for t in case.tensors]
    for layout in (strided, turned):
        torch.testing.assert_close(case(*layout), first)
    assert all(torch.equal(now, then) for now, then in zip(case.tensors, before, strict=True))


@every_loss
def test_an_empty_batch(name):
    case = case_of(name)
    options = {key: value[:0] for key, value in case.options.items()}
    empty = Case(name, [t[:0] for t in case.tensors], options)()
    assert empty.shape == (0, *case().shape[1:])


@every_loss
def test_it_compiles_without_a_graph_break(name):
    case = case_of(name, leading=(2,))
    torch._dynamo.reset()  # every loss is the same code object to dynamo
    compiled = torch.compile(lambda *t: case(*t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case.tensors), case())


@every_loss
def test_extreme_values_give_no_nan(name):
    for scale in (1e-4, 1e4):
        case = case_of(name, scale=scale)
        inputs = [t.requires_grad_() for t in floating(case.tensors)]
        value = case()
        assert not value.isnan().any()
        value.sum().backward()
        assert all(t.grad.isfinite().all() for t in inputs)


@every_loss
def test_constant_vectors_and_zeros_are_defined(name):
    if name.startswith("top_k"):
        return
    for constant in (0.0, 1.0):
        case = case_of(name)
        inputs = [torch.full_like(t, constant).requires_grad_() for t in case.tensors]
        value = case(*inputs)
        assert value.isfinite().all()
        value.sum().backward()
        assert all(t.grad.isfinite().all() for t in inputs)


@every_loss
def test_shapes_that_do_not_fit_are_printed(name):
    case = case_of(name)
    wrong = [case.tensors[0][:1], *case.tensors[1:]]
    with pytest.raises(errors.ShapeError, match=r"\(1, |\(2, 1"):
        case(*wrong)


LOGITS = [n for n, s in SPECS.items() if s.signature == "(v),(v)->()"]


@pytest.mark.parametrize("name", LOGITS)
def test_where_bans_classes_exactly(name):
    """Banned classes change nothing, whatever they hold, and get no gradient."""
    case = case_of(name)
    where = torch.ones(2, 3, 7, dtype=torch.bool)
    where[..., 2::3] = False  # two of seven
    kept = [torch.nn.functional.pad(t, (0, 2)) for t in case.tensors]
    for fill in (0.0, 1e4, math.nan, -math.inf, math.inf):
        spread = [torch.full((2, 3, 7), fill, dtype=torch.float64) for _ in kept]
        for target, source in zip(spread, case.tensors, strict=True):
            target[where] = source.flatten()
            target.requires_grad_()
        options = dict(case.options)
        if "labels" in options:  # the label's place among seven classes
            options["labels"] = where[0, 0].nonzero()[:, 0][options["labels"]]
        value = Case(name, spread, {**options, "where": where})()
        torch.testing.assert_close(value, case())
        value.sum().backward()
        for tensor in spread:
            assert tensor.grad.isfinite().all()
            assert not tensor.grad[~where].any()
    none = Case(name, case.tensors, {**case.options, "where": torch.zeros(5, dtype=torch.bool)})()
    assert not none.isnan().any()


@pytest.mark.parametrize("name", [n for n in LOGITS if n not in ("nkd", "pearson_distance")])
def test_temperature_squared_keeps_the_size_of_the_gradient(name):
    norms = []
    for temperature in (1.0, 50.0):
        case = case_of(name, scale=0.01)
        case.tensors[0].requires_grad_()
        Case(name, case.tensors, {**case.options, "temperature": temperature})().sum().backward()
        norms.append(case.tensors[0].grad.norm())
    expected = 50.0 if name == "total_variation" else 1.0  # its gradient does not shrink twice
    assert norms[1] / norms[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "name", [n for n in SPECS if "temperature" in resolve(SPECS[n].function).__annotations__]
)
def test_temperatures_are_positive(name):
    with pytest.raises(errors.OptionError, match="temperature must be greater than 0"):
        case = case_of(name)
        Case(name, case.tensors, {**case.options, "temperature": 0.0})()


@every_loss
def test_every_docstring_says_shape_source_and_example(name):
    text = resolve(SPECS[name].function).__doc__
    assert ">>>" in text
    assert "Shape" in text
    assert "Source:" in text
    assert SPECS[name].summary


def test_helpers_of_contrastive_losses_without_processes():
    x = torch.randn(3, 4)
    assert losses.gather(x) is x
    with pytest.raises(errors.ShapeError, match="first axis"):
        losses.gather(torch.tensor(1.0))
