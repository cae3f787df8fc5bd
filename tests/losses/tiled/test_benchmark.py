"""The benchmark of attention losses compares versions that compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

ROOT = Path(__file__).parents[3]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_version_gives_the_same_loss(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention_kl

    # its kernel has no backward on a CPU, and compiling it takes longer than this test
    monkeypatch.setattr(attention_kl, "_compiled_flex_attention", lambda: flex_attention)
    for case in attention_kl.CASES[:3]:
        small = case._replace(shape=(2, 2, *case.shape[2:]))
        x = attention_kl.inputs(small, torch.float32, "cpu")
        x = x._replace(query=x.query.detach(), key=x.key.detach())
        expected = attention_kl.naive(x)
        for version in (attention_kl.good, attention_kl.ours, attention_kl.by_flex_attention):
            torch.testing.assert_close(version(x), expected, rtol=1e-4, atol=1e-6)
