"""Defects of other libraries that are none here: for each number, the right thing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distillkit import Attention, LossSpec, Projector, Term, errors, losses, testing
from distillkit._plugins.registry import provided
from tests.support.peer_defects import DEFECTS

IMPLEMENTED = {}


def defect(*numbers):
    """Register the test of some defects."""

    def register(test):
        for number in numbers:
            IMPLEMENTED[number] = test
        return test

    return register


@pytest.mark.parametrize("number", sorted(DEFECTS))
def test_not_here(number):
    IMPLEMENTED[number]()


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def two_attentions(mask, rows=None, grad=False):
    q, k = mask.shape[-2:]
    leaves = [normal(2, 2, n, 4, seed=i).requires_grad_(grad) for i, n in enumerate((q, k, q, k))]
    return (
        Attention(*leaves[:2], mask=mask, rows=rows),
        Attention(*leaves[2:], mask=mask, rows=rows),
        leaves,
    )


KEYS = torch.tensor([[True, True, True], [True, True, False]])[:, None, None].expand(2, 1, 3, 3)


@defect(1, 24)
def padded_keys():
    student, teacher, leaves = two_attentions(KEYS, grad=True)
    value = losses.attention_kl(student, teacher)
    assert value.isfinite().all()
    short = losses.attention_kl(
        student.between([0, 1, 2], [0, 1]), teacher.between([0, 1, 2], [0, 1])
    )
    torch.testing.assert_close(value[1], short[1])  # as if the key were not there
    (value / value.shape[0]).sum().backward()
    assert not leaves[1].grad[1, :, 2].any()


@defect(2)
def padded_rows():
    rows = torch.tensor([[True, True, True], [True, True, False]])
    student, teacher, leaves = two_attentions(KEYS, rows, grad=True)
    value = losses.attention_kl(student, teacher)
    mean = losses.masked_mean(value, losses.shared_rows(student, teacher))
    assert mean.item() == pytest.approx(value.sum().item() / 10)  # 5 rows, 2 heads
    mean.backward()
    assert not leaves[0].grad[1, :, 2].any()


@defect(3)
def scales_are_each_sides_own():
    query, key = normal(1, 2, 3, 4), normal(1, 2, 3, 4, seed=1)
    student = Attention(query, key, scale=0.3)
    teacher = Attention(query * 3, key, scale=0.1)
    assert losses.attention_kl(student, teacher).abs().max() < 1e-12


@defect(4)
def every_loss_works_with_its_defaults():
    (shape,) = [check for check in testing.CHECKS if check.name == "shape"]
    for name, by in provided(LossSpec).items():
        if "distillkit" in by:
            shape(name, examples=1)


@defect(5)
def ends_of_options_keep_the_temperature():
    labels = torch.tensor([0, 3])
    student, teacher = normal(2, 5), normal(2, 5, seed=1)

    def value(beta):
        return losses.decoupled_kl_divergence(
            student, teacher, labels=labels, alpha=1.0, beta=beta, temperature=4.0
        )

    torch.testing.assert_close(value(0.0), value(1e-12))
    for beta in (0.0, 1.0):  # here the ends would mean something else: refused
        with pytest.raises(errors.OptionError):
            losses.jensen_shannon_divergence(student, teacher, beta=beta)


@defect(6, 46)
def classes_are_the_last_axis():
    student, teacher = normal(2, 7, 5), normal(2, 7, 5, seed=1)
    for loss in (losses.kl_divergence, losses.soft_cross_entropy, losses.pearson_distance):
        value = loss(student, teacher)
        assert value.shape == (2, 7)
        torch.testing.assert_close(value[1, 3], loss(student[1, 3], teacher[1, 3]))


@defect(7)
def correlated_predictions_are_near():
    x = normal(4, 6)
    for loss in (losses.pearson_distance, losses.intra_class_pearson_distance):
        assert loss(x, x).max() < 1e-12
        assert loss(x, -x).min() > 0.5


@defect(9, 10, 21)
def identity_has_a_finite_gradient():
    for name in (
        "rkd_distance",
        "rkd_angle",
        "cka_distance",
        "pkt",
        "similarity_preserving",
        "mse",
    ):
        x = normal(4, 6).requires_grad_()
        value = getattr(losses, name)(x, x.detach())
        value.sum().backward()
        assert value.abs().max() < 1e-12
        assert x.grad.isfinite().all()
        x.grad = None
        assert getattr(losses, name)(x.bfloat16(), x.detach().bfloat16()).isfinite().all()


@defect(11)
def zero_vectors():
    for name in ("cosine_distance", "normalized_mse", "info_nce", "similarity_preserving", "pkt"):
        student = torch.zeros(3, 4, requires_grad=True)
        value = getattr(losses, name)(student, normal(3, 4, dtype=torch.float32))
        value.sum().backward()
        assert value.isfinite().all(), name
        assert student.grad.isfinite().all(), name


@defect(12)
def distances_in_half_precision():
    far = 100 + normal(4, 8)
    for dtype in (torch.bfloat16, torch.float16):
        x, y = far.to(dtype), normal(4, 8, seed=1).to(dtype)
        exact = losses.rkd_distance(x.double(), y.double())
        torch.testing.assert_close(losses.rkd_distance(x, y).double(), exact, rtol=1e-4, atol=1e-6)
    twice = far[[0, 0, 1]].half().requires_grad_()
    losses.rkd_distance(twice, normal(3, 5).half()).sum().backward()
    assert twice.grad.isfinite().all()


@defect(13)
def pkt_is_a_kl_for_each_example():
    x = normal(5, 4)
    log_p = torch.stack([(F.cosine_similarity(x[i], x, -1) + 1) / 2 for i in range(5)])
    log_p = (log_p / log_p.sum(1, keepdim=True)).log()
    y = normal(5, 4, seed=1)
    log_q = torch.stack([(F.cosine_similarity(y[i], y, -1) + 1) / 2 for i in range(5)])
    log_q = (log_q / log_q.sum(1, keepdim=True)).log()
    expected = (log_p.exp() * (log_p - log_q)).sum(1)
    torch.testing.assert_close(losses.pkt(y, x), expected)
    assert losses.pkt(torch.full((2, 3), math.nan), normal(2, 3)).isnan().all()


@defect(14)
def misspelt_options():
    with pytest.raises(TypeError, match="tua"):
        losses.pearson_distance(normal(2, 3), normal(2, 3), tua=4.0)
    with pytest.raises(errors.RecipeError, match="did you mean 'temperature'"):
        Term("pearson_distance", on="logits", options={"temprature": 4.0})


@defect(16)
def what_learns_is_in_the_parameters():
    term = Term(
        "mse", on="hidden", align=[{"name": "projector", "student_width": 3, "teacher_width": 4}]
    )
    assert sum(p.numel() for p in term.parameters()) == 16
    assert {n for n, p in Projector(student_width=3, teacher_width=4).named_parameters()}


@defect(17)
def confident_teachers():
    for gap, dtype in ((120.0, torch.float32), (20.0, torch.float16), (6e4, torch.float16)):
        teacher = torch.tensor([[gap, 0.0, 0.0]], dtype=dtype)
        student = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
        value = losses.decoupled_kl_divergence(student, teacher, labels=torch.tensor([0]))
        value.sum().backward()
        assert value.item() == pytest.approx(math.log(3), rel=1e-3)
        assert student.grad.isfinite().all()
        back = losses.decoupled_kl_divergence(teacher, student.detach(), labels=torch.tensor([0]))
        assert back.isfinite().all()


@defect(18, 19, 38, 56)
def one_value_for_each_position_and_one_reduction():
    student, teacher = normal(2, 8, 8, 5), normal(2, 8, 8, 5, seed=1)
    value = losses.kl_divergence(student, teacher)
    assert value.shape == (2, 8, 8)
    expected = F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
    ) / (2 * 8 * 8)
    torch.testing.assert_close(losses.masked_mean(value), expected)


@defect(22)
def constant_students_and_batches_of_one():
    student = torch.zeros(2, 5, dtype=torch.float16, requires_grad=True)
    value = losses.pearson_distance(student, normal(2, 5).half())
    value.sum().backward()
    assert value.tolist() == [1, 1]
    assert not student.grad.any()
    one = normal(1, 5)
    assert not losses.intra_class_pearson_distance(one, one).any()


@defect(23)
def small_scores_are_scores():
    scores = torch.tensor([[[[-1.0, -5.0, -50.0, 0.0]]]], dtype=torch.float64)
    teacher = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    value = losses.attention_mse(Attention.from_scores(scores), Attention.from_scores(teacher))
    expected = (scores.softmax(-1) - 0.25).square().mean()
    assert value.item() == pytest.approx(expected.item())


@defect(25)
def temperature_squared():
    student, teacher = normal(4, 10), normal(4, 10, seed=1)
    norms = []
    for temperature in (1.0, 8.0):
        leaf = student.clone().requires_grad_()
        losses.kl_divergence(leaf, teacher, temperature=temperature).sum().backward()
        norms.append(leaf.grad.norm().item())
    assert norms[1] / norms[0] > 0.5


@defect(28, 60)
def nothing_kept():
    student, teacher, leaves = two_attentions(torch.zeros(2, 1, 3, 3, dtype=torch.bool), grad=True)
    for loss in (
        losses.attention_kl,
        losses.attention_jsd,
        losses.attention_mse,
        losses.attention_cosine_distance,
    ):
        value = loss(student, teacher)
        mean = losses.masked_mean(value, losses.shared_rows(student, teacher))
        assert mean.item() == 0
        gradients = torch.autograd.grad(mean, leaves)
        assert not any(gradient.any() for gradient in gradients)
    student, teacher = normal(2, 5).requires_grad_(), normal(2, 5, seed=1)
    value = losses.kl_divergence(student, teacher, where=torch.zeros(5, dtype=torch.bool))
    value.sum().backward()
    assert not value.any()
    assert not student.grad.any()


@defect(32, 54)
def masks_fit_or_fail():
    values = losses.cosine_distance(normal(2, 3, 4), normal(2, 3, 4, seed=1))
    mask = torch.tensor([[True, False, True], [True, True, True]])
    expected = (values.sum() - values[0, 1]) / 5
    torch.testing.assert_close(losses.masked_mean(values, mask), expected)
    with pytest.raises(errors.ShapeError, match="does not broadcast"):
        losses.masked_mean(values, mask[..., None])


@defect(33, 34)
def equal_models_are_at_distance_zero_of_a_stored_teacher():
    logits = torch.cat([normal(1, 4), torch.zeros(1, 996)], -1)
    values, indices = logits.log_softmax(-1).topk(4, -1)
    for temperature in (1.0, 2.0, 4.0):
        value = losses.top_k_kl_divergence(logits, values, indices, temperature=temperature)
        assert value.abs().item() < 1e-10


@defect(35, 36, 45)
def divergences_of_banned_and_certain_classes():
    one_hot = torch.tensor([[0.0, -math.inf, 6e4]], dtype=torch.float16)
    student = torch.tensor([[6e4, -math.inf, 0.0]], dtype=torch.float16, requires_grad=True)
    value = losses.jensen_shannon_divergence(student, one_hot)
    assert value.item() == pytest.approx(math.log(2))
    value.sum().backward()
    assert student.grad.isfinite().all()
    banned = torch.tensor([[0.3, -math.inf, 1.0]], dtype=torch.float64)
    other = torch.tensor([[1.3, -math.inf, 0.0]], dtype=torch.float64)
    for loss in (losses.kl_divergence, losses.reverse_kl_divergence, losses.total_variation):
        torch.testing.assert_close(loss(banned, other), loss(banned[:, [0, 2]], other[:, [0, 2]]))


@defect(37)
def accumulated_parts_are_the_whole():
    values, mask = normal(6, 4), torch.rand(6, 4) < 0.5
    whole, count = losses.masked_mean(values, mask), mask.sum()
    parts = [
        losses.masked_mean(values[part], mask[part], normalizer=count)
        for part in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


@defect(43)
def labels_that_are_no_classes():
    teacher = normal(3, 5, seed=1)
    for loss in (losses.nkd, losses.decoupled_kl_divergence):
        student, labels = normal(3, 5).requires_grad_(), torch.tensor([1, -100, 5])
        value = loss(student, teacher, labels=labels)
        assert value.isnan().tolist() == [False, True, True]
        losses.masked_mean(value, (labels >= 0) & (labels < 5)).backward()
        assert student.grad[0].any()
        assert not student.grad[1:].any()


@defect(47)
def probabilities_are_not_softened_again():
    p = normal(1, 1, 2, 4).softmax(-1)
    q = normal(1, 1, 2, 4, seed=1).softmax(-1)
    made = [Attention.from_probabilities(x) for x in (q, p)]
    torch.testing.assert_close(losses.attention_kl(*made), (p * (p / q).log()).sum(-1))


@defect(49)
def bfloat16_is_storage():
    student, teacher = (3 * normal(4, 32000, seed=i).bfloat16() for i in (0, 1))
    exact = losses.jensen_shannon_divergence(student.double(), teacher.double())
    value = losses.jensen_shannon_divergence(student, teacher)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
    assert losses.jensen_shannon_divergence(student, student).max() < 1e-6


@defect(50)
def unequal_vocabularies_never_meet_in_silence():
    with pytest.raises(errors.ShapeError, match=r"\(2, 5\).*\(2, 7\)"):
        losses.kl_divergence(normal(2, 5), normal(2, 7))


@defect(52)
def float64_stays():
    leaves = [normal(2, 4, seed=i).requires_grad_() for i in (0, 1)]
    torch.autograd.gradcheck(losses.kl_divergence, leaves)


@defect(55)
def both_arguments_get_their_gradient():
    for loss in (losses.kl_divergence, losses.reverse_kl_divergence):
        leaves = [normal(2, 4, seed=i).requires_grad_() for i in (0, 1)]
        gradients = torch.autograd.grad(loss(*leaves).sum(), leaves)
        assert all(gradient.any() for gradient in gradients)


@defect(57)
def temperatures_divide_and_devices_are_the_inputs():
    student, teacher = normal(3, 4), normal(3, 4, seed=1)
    expected = F.cross_entropy(
        F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).T / 0.07,
        torch.arange(3),
        reduction="none",
    )
    torch.testing.assert_close(losses.info_nce(student, teacher), expected)
    assert losses.info_nce(student.to("meta"), teacher.to("meta")).is_meta


@defect(58)
def nan_is_accepted_by_no_check():
    spec = LossSpec("nan", lambda s, t: (s - t).sum(-1) * math.nan, signature="(d),(d)->()")
    failed = {result.name for result in testing.check_loss(spec, examples=1) if not result.passed}
    assert {"finite_gradient", "positions_independent", "memory_layout"} <= failed


@defect(59)
def angles_without_a_large_intermediate():
    """All directions are (n, n, d); nothing of n * n * n * d is ever made."""
    n, d = 24, 512
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest.append(made.untyped_storage().nbytes() // made.element_size())
            return made

    with Watch():
        losses.rkd_angle(normal(n, d), normal(n, d, seed=1))
    assert max(largest) <= n * n * d


def test_the_list_is_complete():
    assert sorted(IMPLEMENTED) == sorted(DEFECTS)
