"""Codings that write one number of an example beside its logits."""

import pytest
import torch
from torch.nn import functional as F

import distillkit as dk


class Answers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 40)

    def forward(self, x):
        return {"logits": self.head(x)}


@pytest.mark.parametrize("coding", ["top_k:32", "int8"])
def test_logits_are_read_as_they_were_coded(tmp_path, coding):
    torch.manual_seed(0)
    teacher, batch = Answers(), {"id": torch.arange(6), "x": 5 * torch.randn(6, 4)}
    recipe = dk.Objective([dk.Term("kl_divergence", on="logits")])
    cache = dk.SignalCache(tmp_path / "cache", recipe, codings={"logits": coding})
    adapter = dk.DeclarativeAdapter(streams={}, logits="logits")
    cache.fill(dk.Backbone(teacher, adapter), [batch], progress=False)
    read = cache.signals(batch)["logits"]
    given = teacher(batch["x"])["logits"].detach()
    error = F.kl_div(read.log_softmax(-1), given.log_softmax(-1), log_target=True, reduction="none")
    assert 0 < error.sum(-1).mean() < 0.05
    assert torch.equal(read.argmax(-1), given.argmax(-1))
    assert torch.equal(cache.signals([3, 1])["logits"], read[[3, 1]])
