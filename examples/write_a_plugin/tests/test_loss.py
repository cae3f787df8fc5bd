"""The loss keeps what its spec promises."""

import torch
from acme_distill.losses import jeffreys_divergence
from acme_distill.plugin import distillkit_losses

from distillkit import testing


@testing.parametrize_with_loss_checks(distillkit_losses())
def test_loss(loss, check):
    check(loss)


def test_a_value_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): the sum of (p - q) log (p / q) is log(3) / 4
    student, teacher = torch.tensor([3.0, 1.0]).log(), torch.zeros(2)
    expected = torch.tensor(3.0).log() / 4
    torch.testing.assert_close(jeffreys_divergence(student, teacher), expected)
