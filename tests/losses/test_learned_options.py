"""Options as tensors that ask for a gradient: right to float64, or an error; never in silence."""

from __future__ import annotations

import pytest
import torch

from distillkit import Attention, LossSpec, errors, losses, testing
from distillkit._plugins.registry import provided
from distillkit.testing.strategies import Draw, made_from

OURS = [by["distillkit"] for by in provided(LossSpec).values() if "distillkit" in by]
REFUSED = {
    ("attention_jsd", "beta"),
    ("dynamic_top_k_kl_divergence", "mass"),
    ("dynamic_top_k_reverse_kl_divergence", "mass"),
    ("linear_jensen_shannon_divergence", "beta"),
    ("linear_jensen_shannon_divergence", "temperature"),
    ("linear_kl_divergence", "temperature"),
    ("smooth_l1", "beta"),
}
NUMBERS = [
    (spec, name)
    for spec in OURS
    for name, parameter in testing.Loss.of(spec).takes.items()
    if isinstance(parameter.default, float)
]


@pytest.mark.parametrize(("spec", "name"), NUMBERS, ids=lambda x: getattr(x, "name", x))
@pytest.mark.parametrize("seed", [0, 1])
def test_a_number_learns_or_is_refused(spec, name, seed):
    sizes = dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 3)
    loss = testing.Loss.of(spec)
    call = made_from(spec, Draw((2,), sizes, "generic", torch.Generator().manual_seed(seed)))
    number = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    if (spec.name, name) in REFUSED:
        with pytest.raises(errors.OptionError, match=f"{name} cannot be learned here"):
            loss(call, **{name: number})
        return
    assert torch.autograd.gradcheck(lambda x: loss(call, **{name: x}), number)
    torch.testing.assert_close(loss(call, **{name: number.detach()}), loss(call, **{name: 0.7}))


def test_what_is_refused_is_there():
    assert {(spec.name, name) for spec, name in NUMBERS} >= REFUSED


@pytest.mark.parametrize("loss", [losses.kl_divergence, losses.reverse_kl_divergence])
def test_a_banned_class_gives_the_temperature_no_nan(loss):
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    student[:, 1] = teacher[:, 1] = -torch.inf
    number = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(student, teacher, temperature=x), number)


def test_tiles_of_attention_refuse_a_temperature_that_learns():
    one, other = (Attention(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)) for _ in "st")
    number = torch.tensor(2.0, requires_grad=True)
    for method in ("saved", "recompute"):
        with pytest.raises(errors.OptionError, match=rf"method='{method}'.*temperature"):
            losses.attention_kl(one, other, temperature=number, method=method)
    with torch.no_grad():
        found = losses.attention_kl(one, other, temperature=number, method="saved")
    torch.testing.assert_close(found, losses.attention_kl(one, other, temperature=2.0))


def test_a_tensor_that_is_not_positive():
    with pytest.raises(errors.OptionError, match="temperature must be greater than 0"):
        losses.kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2), temperature=torch.tensor(-1.0))
