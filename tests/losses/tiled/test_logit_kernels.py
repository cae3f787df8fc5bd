"""The kernel for chunks of logits, interpreted, against float64 on the same inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from distillkit import errors, losses
from tests.losses.tiled.test_logits import PAIRS, dense, heads, small, through

pytest.importorskip("triton", reason="the kernels need triton (pip install triton)")

from distillkit.losses._tiled import logits as logits_in_tiles
from distillkit.losses._tiled import tiling
from distillkit.losses._tiled._triton import logits as fused
from distillkit.losses._tiled._triton import support

pytestmark = [
    pytest.mark.skipif(
        not support.IS_INTERPRETED, reason="kernels are interpreted where TRITON_INTERPRET=1"
    ),
    # numpy says so of numbers that a kernel goes on to mask
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=["kl", "jsd"])
@given(
    case=heads(classes=40),
    asked=st.sampled_from([(1, 1, 1, 0, 0, 0), (1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (1,) * 6]),
    tokens=st.sampled_from([2, 256]),
    look=st.booleans(),
)
@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])
def test_the_kernel_agrees_with_float64(pair, case, asked, tokens, look):
    tensors, options = case
    results = []
    for function, compute, dtype in (
        (pair[0], through, torch.float32),
        (pair[1], dense, torch.float64),
    ):
        leaves = [
            x if x is None else x.float().to(dtype).requires_grad_(bool(some))
            for x, some in zip(tensors, asked, strict=True)
        ]
        more = {"method": "triton"} if compute is through else {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiling, "can_sync", lambda _: look)  # False: as on an accelerator
            patch.setattr(logits_in_tiles, "FEWEST_TOKENS", 1)
            patch.setattr(logits_in_tiles, "MOST_TOKENS", tokens)
            patch.setattr(fused, "CLASSES", 16)
            value = compute(function, leaves, {**options, **more})
            total = torch.where(
                value.isfinite(), value * torch.arange(1.0, 1 + len(value)), 0
            ).sum()
            wanted = [x for x in leaves if x is not None and x.requires_grad]
            gradients = torch.autograd.grad(total, wanted) if total.requires_grad else ()
        results.append((value, *gradients))
    assert results[0][0].dtype == torch.float32
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=3e-5)


def test_equal_heads_are_exactly_zero():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(50, 4)
    value = losses.linear_kl_divergence(
        hidden, weight, hidden.detach().clone(), weight.clone(), method="triton"
    )
    value.sum().backward()
    assert not value.any()
    assert not hidden.grad.any()


def test_a_model_that_diverged_is_seen():
    tensors = small(torch.float32)
    tensors[0][1] = torch.nan
    value = through(losses.linear_kl_divergence, tensors, {"method": "triton"})
    assert value.isnan().tolist() == [False, True, False, False, False]


def test_a_compiled_caller_has_no_graph_break():
    tensors = small(torch.float32)

    def mean(hidden):
        given = [hidden.tanh(), *tensors[1:]]
        return through(losses.linear_kl_divergence, given, {"method": "triton"}).mean()

    found = []
    for function in (mean, torch.compile(mean, fullgraph=True, backend="aot_eager")):
        leaf = tensors[0].clone().requires_grad_()
        function(leaf).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_what_the_kernel_cannot_do():
    with pytest.raises(errors.OptionError, match='method="triton".*float64'):
        through(losses.linear_kl_divergence, small(), {"method": "triton"})
    with pytest.raises(
        errors.OptionError, match='method is one of "auto", "blocked", .*; got .fast'
    ):
        through(losses.linear_kl_divergence, small(), {"method": "fast"})
