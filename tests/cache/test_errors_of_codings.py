"""The error of a coding, over batches that are too large to be measured at once."""

import pytest
import torch
from torch.nn import functional as F

from distillkit._cache import coding


def test_rows_of_all_examples_count_alike():
    torch.manual_seed(0)
    log_p = torch.randn(7, 9, 2, 2_000).log_softmax(-1)
    assert log_p[:2].numel() > coding._AT_ONCE
    log_p[0, 3:] = -torch.inf  # an example of fewer rows
    log_p[1:] += 3 * torch.randn(6, 9, 2, 2_000)
    log_p[1:] = log_p[1:].log_softmax(-1)
    uint8 = coding.coding("uint8")
    decoded = uint8.decode(uint8.encode(log_p), log_p.dtype, 2_000)
    rows = log_p[..., 0] > -torch.inf
    p, q = log_p[rows].double().log_softmax(-1), decoded[rows].double().log_softmax(-1)
    expected = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().item()
    assert expected > 1e-5
    assert coding.log_probabilities_error(log_p, decoded) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_nothing_has_no_error(shape):
    nothing = torch.zeros(shape)
    assert coding.log_probabilities_error(nothing, nothing) == 0
