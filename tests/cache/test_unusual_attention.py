"""Teachers whose attention queries and keys do not say: sinks, mixed heads, few keys, causal."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support import cached, tiny
from tests.support.cached import collate, distiller_of, recipe_of

HEADS = tiny.HEADS
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


class Scored(tiny.EagerAttention):
    """Attention that is written out; what is done to it is the subclass's."""

    def forward(self, x, mask):
        q, k, v = self.heads(x)
        scores = (2 * q @ k.transpose(-1, -2)).masked_fill(~mask[:, None, None], -1e9)
        return self.out((self.weigh(scores) @ v).transpose(1, 2).flatten(2))


class Sinks(Scored):
    """A learned entry beside the keys takes probability."""

    def __init__(self):
        super().__init__()
        self.sink = nn.Parameter(torch.randn(HEADS))

    def weigh(self, scores):
        sink = self.sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


class Talking(Scored):
    """Heads are mixed after the softmax."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.rand(HEADS, HEADS))

    def weigh(self, scores):
        return torch.einsum("hg,bgqk->bhqk", self.mix.softmax(-1), scores.softmax(-1))


class Grouped(tiny.FusedAttention):
    """Two heads of keys and values for four of queries."""

    def forward(self, x, mask):
        q, k, v = self.heads(x)
        k, v = k[:, ::2], v[:, ::2]
        mixed = F.scaled_dot_product_attention(
            2 * q, k, v, attn_mask=mask[:, None, None], enable_gqa=True
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Causal(tiny.FusedAttention):
    """Each token sees those before it and itself."""

    def forward(self, x, mask):
        q, k, v = self.heads(x)
        before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        mixed = F.scaled_dot_product_attention(2 * q, k, v, attn_mask=mask[:, None, None] & before)
        return self.out(mixed.transpose(1, 2).flatten(2))


FORMS = {Sinks: "used", Talking: "used", Grouped: "products", Causal: "log_probabilities"}
OPTIONS = {
    "example": {},
    "row": {"per": "row"},
    "mean": {"options": {"heads": "mean"}},
    "all layers": {"layers": "all"},
}
KIND = {"attention.text": tiny.Dual, "attention.image_to_text": tiny.Fusion}


def teacher(attention, name):
    taught = cached.teacher(attention=attention, model=KIND[name])
    with torch.no_grad():
        for block in taught.model.modules():
            if isinstance(block, tiny.FusedAttention):
                block.qkv.weight.mul_(2)
    return taught


COMPARED = [
    (name, options)
    for name in KIND
    for options in OPTIONS
    # of which the student has one layer
    if (name, options) != ("attention.image_to_text", "all layers")
]


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize(("name", "options"), COMPARED)
def test_losses_are_those_of_the_teacher(attention, options, name, tmp_path):
    recipe = recipe_of({"loss": "attention_kl", "on": name, **OPTIONS[options]})
    taught = teacher(attention, name)
    some = cached.examples()
    as_vectors = attention is Grouped and options != "mean"
    codings = {name: "exact"} if as_vectors and name == "attention.text" else {}
    cache = cached.filled(tmp_path, recipe, some, taught=taught, codings=codings)
    (spec,) = cache.header.signals
    given = taught.signals(collate(some))[name][-1]
    if name == "attention.text":  # the part of a map that was used is a map of its own
        assert given.is_as_used == (FORMS[attention] == "used")
        assert spec.form == FORMS[attention] or (attention is Grouped and not as_vectors)
    for chosen in ((5, 0, 3), (1, 2, 3, 4)):
        batch = collate([some[i] for i in chosen], 8)
        ran, read = (distiller_of(one, recipe)(batch) for one in (taught, cache))
        torch.testing.assert_close(read.loss, ran.loss, **CLOSE)
        torch.testing.assert_close(read.counts, ran.counts)
        assert ran.loss > 1e-3


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("name", KIND)
def test_probabilities_and_rows_are_those_of_the_teacher(attention, name, tmp_path):
    taught = teacher(attention, name)
    some = cached.examples()
    recipe = recipe_of({"loss": "attention_mse", "on": name})
    cache = cached.filled(tmp_path, recipe, some, taught=taught)
    batch = collate(some, 7)
    expected, found = (one.signals(batch)[name][-1] for one in (taught, cache))
    assert torch.equal(found.valid_rows(), expected.valid_rows())
    rows = expected.valid_rows().expand(expected.shape[:3])
    mine, its = (x.probabilities()[rows] for x in (found, expected))
    torch.testing.assert_close(mine, its, **CLOSE)
    if attention is Sinks and name == "attention.text":
        assert mine.sum(-1).min() < 0.9  # as the model used them
