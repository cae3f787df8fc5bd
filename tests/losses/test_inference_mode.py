"""A teacher that ran under ``torch.inference_mode()`` teaches as any other does."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit import Attention, errors, losses
from distillkit._plugins.builtins import distillkit_losses
from distillkit._plugins.specs import resolve
from distillkit.losses import _attention
from distillkit.testing.strategies import GENERIC, arguments, floating

SPECS = {spec.name: spec for spec in distillkit_losses()}
TAKES_WHERE = [
    name for name, spec in SPECS.items() if "where" in inspect.signature(resolve(spec.function)).parameters
]  # fmt: skip


def in_inference_mode(change=torch.clone):
    """A function of a tensor that is made under inference mode."""

    def made(x):
        with torch.inference_mode():
            return change(x)

    return made


def outcome(spec, call, leaves):
    """The value, and the gradient of a weighted sum of it to the student."""
    value = resolve(spec.function)(*call.student, *call.teacher, **call.keywords)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    weighted = torch.where(value.isfinite(), value * weights, 0).sum()
    return value, *torch.autograd.grad(weighted, leaves, allow_unused=True)


def assert_same(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert not one.is_inference()
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=8)
@given(data=st.data())
def test_every_loss(name, dtype, data):
    spec = SPECS[name]
    drawn = data.draw(arguments(spec, values=GENERIC, side=(2, 4), leading=((2,), (3,))))
    drawn = drawn.map_floating(lambda x: x.to(dtype))
    call, leaves, _ = drawn.with_leaves()
    theirs = drawn.map(in_inference_mode())
    assert all(x.is_inference() for x in floating(theirs.teacher))
    expected = outcome(spec, replace(call, teacher=drawn.teacher, keywords=drawn.keywords), leaves)
    ours = outcome(spec, replace(call, teacher=theirs.teacher, keywords=theirs.keywords), leaves)
    assert_same(ours, expected)
    assert any(gradient is not None for gradient in ours[1:])


@pytest.mark.parametrize("name", TAKES_WHERE)
def test_classes_and_tokens_that_exist(name):
    spec = SPECS[name]
    torch.manual_seed(0)
    keywords = {"relation_heads": 2} if name == "relation_kl" else {}
    if "labels" in inspect.signature(resolve(spec.function)).parameters:
        keywords["labels"] = torch.tensor([0, 1])
    if name == "relation_kl":
        student, teacher, where = [torch.randn(2, 2, 3, 4)], [torch.randn(2, 2, 3, 4)], (2, 3)
    elif name.startswith("linear"):
        student, teacher = ([torch.randn(5, 3), torch.randn(4, 3)] for _ in "st")
        where = (4,)
    else:
        student, teacher, where = [torch.randn(2, 4)], [torch.randn(2, 4)], (2, 4)
    keywords["where"] = torch.rand(where) < 0.7
    keywords["where"][..., :2] = True
    for x in student:
        x.requires_grad_()
    found = []
    for change in (torch.clone, in_inference_mode()):
        given = {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
        value = resolve(spec.function)(*student, *map(change, teacher), **given)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), student)))
    assert_same(found[1], found[0])
    assert all(gradient.any() for gradient in found[0][1:])


def test_there_are_losses_with_where():
    assert {"kl_divergence", "soft_binary_cross_entropy", "relation_kl", "nkd"} <= set(TAKES_WHERE)


@pytest.mark.parametrize(
    "loss", [losses.linear_kl_divergence, losses.linear_jensen_shannon_divergence]
)
@pytest.mark.parametrize("groups", [False, True])
def test_heads_with_everything(loss, groups):
    torch.manual_seed(0)
    lead = (2,) if groups else ()
    hidden, weight, bias = torch.randn(*lead, 5, 3), torch.randn(*lead, 4, 3), torch.randn(*lead, 4)
    keywords = {
        "teacher_bias": torch.randn(*lead, 4), "where": torch.tensor([True, True, False, True]),
        "mask": torch.rand(*lead, 5) < 0.8,
    }  # fmt: skip
    teacher = [torch.randn(*lead, 5, 2), torch.randn(*lead, 4, 2)]
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    found = []
    for change in (torch.clone, in_inference_mode()):
        given = {name: change(x) for name, x in keywords.items()}
        value = loss(
            hidden, weight, *map(change, teacher), student_bias=bias, teacher_softcap=5.0, **given
        )
        found.append((value.detach(), *torch.autograd.grad(value.sum(), leaves)))
    assert_same(found[1], found[0])


def attentions(kind):
    """The student's and the teacher's attention, known in some way."""
    torch.manual_seed(0)
    query, key, teacher_query, teacher_key = torch.randn(4, 2, 2, 3, 4)
    masks = {
        "mask": torch.rand(2, 1, 1, 3) < 0.8, "rows": torch.tensor([[True, True, False]] * 2),
        "bias": torch.randn(1, 2, 3, 3),
    }  # fmt: skip
    masks["mask"][..., 0] = True
    teacher = Attention(teacher_query, teacher_key, **masks)
    if kind == "scores":
        teacher = Attention.from_scores(teacher.with_rows(None).scores(), rows=masks["rows"])
    elif kind == "probabilities":
        teacher = Attention.from_probabilities(teacher.probabilities(), rows=masks["rows"])
    elif kind == "used":
        used = teacher.with_rows(None).probabilities()
        teacher = Attention.replayed(teacher.shape, used=lambda: used)
    elif kind == "block":
        teacher = Attention.from_scores(teacher.scores()).between(slice(0, 3), [0, 1, 2])
    return (query.requires_grad_(), key.requires_grad_()), masks, teacher


@pytest.mark.parametrize("kind", ["plain", "scores", "probabilities", "used", "block"])
@pytest.mark.parametrize("method", ["dense", "saved", "recompute", "auto"])
@pytest.mark.parametrize("heads", [None, "mean"])
def test_every_way_of_comparing_attentions(kind, method, heads, monkeypatch):
    monkeypatch.setattr(_attention, "DENSE_SCORES", -1)
    if kind != "plain" and method in ("saved", "recompute"):
        leaves, masks, teacher = attentions(kind)
        with pytest.raises(errors.OptionError, match="these scores are replayed from the model"):
            losses.attention_kl(Attention(*leaves, **masks), teacher, method=method, heads=heads)
        return
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            leaves, masks, teacher = attentions(kind)
        leaves, own, _ = attentions(kind)
        student = Attention(*leaves, **(masks if inference else own))
        value = losses.attention_kl(student, teacher, method=method, heads=heads)
        counted = losses.shared_rows(student, teacher)
        mean = losses.masked_mean(value, counted if heads is None else counted.all(1, keepdim=True))
        found.append((mean.detach(), *torch.autograd.grad(mean, leaves)))
    assert_same(found[1], found[0])
    assert found[0][1].any()


def test_the_mean_takes_masks_weights_and_normalisers_of_inference_mode():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    for keep in (mask, mask.float(), None):
        found = []
        for change in (torch.clone, in_inference_mode()):
            given = None if keep is None else change(keep)
            mean = losses.masked_mean(values, given, normalizer=change(torch.tensor(5.0)))
            found.append((mean.detach(), *torch.autograd.grad(mean, values)))
        assert_same(found[1], found[0])


def test_under_the_transforms_of_torch_func():
    student = torch.randn(3, 2, 4, requires_grad=True)
    teacher = torch.randn(3, 2, 4)
    theirs = in_inference_mode()(teacher)

    def mapped(target):
        value = torch.func.vmap(losses.mse)(student, target)
        return value.detach(), *torch.autograd.grad(value.sum(), student)

    def differentiated(target):
        return torch.func.grad(lambda x: losses.kl_divergence(x, target).sum())(student.detach())

    assert_same(mapped(theirs), mapped(teacher))
    assert_same([differentiated(theirs)], [differentiated(teacher)])
    per_example = torch.func.vmap(torch.func.grad(lambda s, t: losses.mse(s, t).sum()))
    assert_same([per_example(student.detach(), theirs)], [per_example(student.detach(), teacher)])


def test_losses_of_other_people_get_it_from_their_first_line():
    def product(student, teacher):
        student, teacher = losses.checked_pair("product", "(d),(d)->()", student, teacher)
        return (student * teacher).sum(-1)

    student, teacher = torch.ones(2, 3, requires_grad=True), in_inference_mode()(torch.ones(2, 3))
    product(student, teacher).sum().backward()
    assert student.grad.tolist() == [[1, 1, 1]] * 2


def test_inside_of_it_nothing_is_copied():
    with torch.inference_mode():
        x = torch.ones(2, 3)
        one, other = losses.checked_pair("mine", "(d),(d)->()", x, x)
        assert one is other is x
    normal = torch.ones(2, 3)
    assert losses.checked_pair("mine", "(d),(d)->()", normal, normal)[0] is normal


def test_a_compiler_still_traces_the_whole_loss():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    compiled = torch.compile(losses.kl_divergence, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), losses.kl_divergence(student, teacher))
