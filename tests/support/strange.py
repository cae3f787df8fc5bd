"""Attention as people write it: hand-written models, each with the truth computed beside it.

A spelling is a function ``(module, q, k, v, keep) -> mixed`` over heads ``(b, h, n, d)``; what it
must come to is ``truth``, scores written in the plainest way. Wirings that do not fit this shape
are modules of their own with a method ``truth``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

BATCH, HEADS, TOKENS, DEPTH = 2, 4, 5, 4
WIDTH = HEADS * DEPTH
LOWEST = torch.finfo(torch.float32).min


class Truth(NamedTuple):
    """What one attention computed."""

    probabilities: Tensor  # (b, h, q, k)
    value: Tensor  # (b, h, k, e)


def inputs() -> tuple[Tensor, Tensor]:
    """Tokens ``(b, n, width)`` and which of them are no padding ``(b, n)``."""
    generator = torch.Generator().manual_seed(3)
    keep = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    keep[1, 3:] = False
    return torch.randn(BATCH, TOKENS, WIDTH, generator=generator) * 1.5, keep


class Model(nn.Module):
    """An attention and a head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.head(self.attention(x, keep))


class Spelled(nn.Module):
    """Projections around one spelling."""

    def __init__(self, spelling: Callable[..., Tensor], scores: Callable[..., Tensor]) -> None:
        super().__init__()
        self.spelling, self.scores = spelling, scores
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.linspace(-0.5, 0.5, HEADS).view(HEADS, 1, 1))
        self.bias = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))
        self.near = nn.Parameter(torch.randn(TOKENS, TOKENS, DEPTH))
        self.sink = nn.Parameter(torch.randn(HEADS))
        self.mix = nn.Parameter(torch.eye(HEADS) + 0.3 * torch.randn(HEADS, HEADS))
        self.softmax = nn.Softmax(dim=-1)
        self.norm = nn.LayerNorm(DEPTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        mixed = self.spelling(self, *self.heads(x), keep[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))

    def truth(self, x: Tensor, keep: Tensor) -> list[Truth]:
        q, k, v = self.heads(x)
        found = self.scores(self, q, k, keep[:, None, None, :])
        return [
            Truth(
                found if found.ndim == 4 and self.scores in PROBABILITIES else found.softmax(-1), v
            )
        ]


# the truth: scores in the plainest way


def products(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)


def padded(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return products(m, q, k, keep).masked_fill(~keep, -torch.inf)


def causal(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return products(m, q, k, keep).masked_fill(later(), -torch.inf)


def heated(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return torch.einsum("bhqd,bhkd->bhqk", q, k) * m.temperature.exp()


def biased(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return (products(m, q, k, keep) + m.bias).masked_fill(~keep, -torch.inf)


def relative(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return products(m, q, k, keep) + torch.einsum("bhqd,qkd->bhqk", q, m.near)


def sloped(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return products(m, q, k, keep) + slopes()


def capped(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return (2 * torch.tanh(products(m, q, k, keep) / 2)).masked_fill(~keep, -torch.inf)


def cosines(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return torch.einsum("bhqd,bhkd->bhqk", F.normalize(q, dim=-1), F.normalize(k, dim=-1)) * 8


def normalised(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return products(m, m.norm(q), m.norm(k), keep)


def talking(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return torch.einsum("bhqk,hg->bgqk", products(m, q, k, keep), m.mix)


def talked(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    return torch.einsum("bhqk,hg->bgqk", products(m, q, k, keep).softmax(-1), m.mix)


def sunk(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    scores = padded(m, q, k, keep).exp()
    return scores / (scores.sum(-1, keepdim=True) + m.sink.exp().view(HEADS, 1, 1))


def off_by_one(m: Spelled, q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    scores = products(m, q, k, keep).exp()
    return scores / (scores.sum(-1, keepdim=True) + 1)


PROBABILITIES = {talked, sunk, off_by_one}
"""These truths are no scores but already what meets the value."""


def later() -> Tensor:
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)


def slopes() -> Tensor:
    distance = torch.arange(TOKENS) - torch.arange(TOKENS)[:, None]
    return -(2.0 ** -torch.arange(1.0, HEADS + 1)).view(HEADS, 1, 1) * distance.abs()


class Case(NamedTuple):
    """A strange model.

    Attributes:
        make: builds it.
        may_be_named: an error that names the module is an honest answer.
        dropout: its output is not probabilities @ value.
        folded: its axes do not say which of them are examples and which are heads.
        hidden_value: no product of probabilities and value is to be seen.
    """

    make: Callable[[], nn.Module]
    may_be_named: bool = False
    dropout: bool = False
    folded: bool = False
    hidden_value: bool = False


CASES: dict[str, Case] = {}


def spelling(
    scores: Callable[..., Tensor], **facts: bool
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        CASES[function.__name__] = Case(lambda: Model(Spelled(function, scores)), **facts)
        return function

    return add


def wiring(**facts: bool) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(module: type[nn.Module]) -> type[nn.Module]:
        CASES[module.__name__] = Case(lambda: Model(module()), **facts)
        return module

    return add


# the product


@spelling(products)
def scores_divided(m, q, k, v, keep):
    return (q @ k.transpose(-1, -2) / math.sqrt(DEPTH)).softmax(-1) @ v


@spelling(products)
def keys_times_queries(m, q, k, v, keep):
    p = torch.softmax(k @ q.mT / math.sqrt(DEPTH), dim=-2)
    return p.mT @ v


@spelling(products)
def keys_times_queries_turned_before_the_softmax(m, q, k, v, keep):
    return (k @ q.mT).mT.mul(DEPTH**-0.5).softmax(-1) @ v


@spelling(products)
def value_on_the_left(m, q, k, v, keep):
    p = (q @ k.mT * DEPTH**-0.5).softmax(-1)
    return (v.mT @ p.mT).mT


@spelling(products)
def scale_on_query(m, q, k, v, keep):
    return torch.matmul(q * DEPTH**-0.5, k.permute(0, 1, 3, 2)).softmax(3) @ v


@spelling(products)
def scale_on_key(m, q, k, v, keep):
    return (q @ (k / math.sqrt(DEPTH)).mT).softmax(-1) @ v


@spelling(products)
def scale_on_both(m, q, k, v, keep):
    return ((q * DEPTH**-0.25) @ (k * DEPTH**-0.25).mT).softmax(-1) @ v


@spelling(products)
def scale_as_tensor(m, q, k, v, keep):
    return (q @ k.mT / torch.sqrt(torch.tensor(k.shape[-1], dtype=q.dtype))).softmax(-1) @ v


@spelling(products)
def scale_in_place(m, q, k, v, keep):
    scores = q @ k.mT
    scores /= math.sqrt(DEPTH)
    return scores.softmax(-1) @ v


@spelling(products)
def einsum_heads_first(m, q, k, v, keep):
    p = torch.einsum("bhqd,bhkd->bhqk", q * DEPTH**-0.5, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", p, v)


@spelling(products)
def einsum_with_spaces_and_ellipsis(m, q, k, v, keep):
    p = torch.einsum("... i d, ... j d -> ... i j", q * DEPTH**-0.5, k).softmax(-1)
    return torch.einsum("... i j, ... j d -> ... i d", p, v)


@spelling(products)
def einsum_tokens_first(m, q, k, v, keep):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    p = torch.einsum("bqhd,bkhd->bhqk", q * DEPTH**-0.5, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", p, v).transpose(1, 2)


@spelling(products)
def einsum_heads_between(m, q, k, v, keep):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    p = torch.einsum("bqhd,bkhd->bqhk", q * DEPTH**-0.5, k).softmax(-1)
    return torch.einsum("bqhk,bkhd->bqhd", p, v).transpose(1, 2)


@spelling(products)
def einsum_length_first(m, q, k, v, keep):
    q, k, v = (x.permute(2, 0, 1, 3) for x in (q, k, v))
    p = torch.einsum("ibnd,jbnd->ijbn", q * DEPTH**-0.5, k).softmax(1)
    return torch.einsum("ijbn,jbnd->ibnd", p, v).permute(1, 2, 0, 3)


@spelling(products)
def einsum_keys_before_queries(m, q, k, v, keep):
    p = torch.einsum("bhkd,bhqd->bhkq", k, q).div(math.sqrt(DEPTH)).softmax(2)
    return torch.einsum("bhkd,bhkq->bhqd", v, p)


@spelling(products)
def einsum_of_a_list(m, q, k, v, keep):
    p = torch.einsum("bhqd,bhkd->bhqk", [q * DEPTH**-0.5, k]).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", [p, v])


@spelling(heated, may_be_named=True)
def einsum_of_three(m, q, k, v, keep):
    p = torch.einsum("bhqd,bhkd,h->bhqk", q, k, m.temperature.exp().flatten()).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", p, v)


@spelling(products)
def einsum_by_axis_numbers(m, q, k, v, keep):
    p = torch.einsum(q * DEPTH**-0.5, [0, 1, 2, 4], k, [0, 1, 3, 4], [0, 1, 2, 3]).softmax(-1)
    return torch.einsum(p, [0, 1, 2, 3], v, [0, 1, 3, 4], [0, 1, 2, 4])


@spelling(products)
def flat_heads(m, q, k, v, keep):
    q, k, v = (x.reshape(-1, TOKENS, DEPTH) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)) * DEPTH**-0.5
    return torch.bmm(F.softmax(scores, dim=-1), v).view(BATCH, HEADS, TOKENS, DEPTH)


@spelling(padded)
def flat_heads_opened_for_the_mask(m, q, k, v, keep):
    q, k, v = (x.reshape(-1, TOKENS, DEPTH) for x in (q * DEPTH**-0.5, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(BATCH, HEADS, TOKENS, TOKENS)
    scores = scores.masked_fill(~keep, -torch.inf).view(-1, TOKENS, TOKENS)
    return torch.bmm(F.softmax(scores, dim=-1), v).view(BATCH, HEADS, TOKENS, DEPTH)


@spelling(products, folded=True)
def heads_before_batch(m, q, k, v, keep):
    q, k, v = (x.transpose(0, 1).reshape(-1, TOKENS, DEPTH) for x in (q, k, v))
    p = torch.softmax(q.bmm(k.mT) / math.sqrt(DEPTH), -1)
    return p.bmm(v).view(HEADS, BATCH, TOKENS, DEPTH).transpose(0, 1)


@spelling(sloped)
def added_inside_baddbmm(m, q, k, v, keep):
    bias = slopes().expand(BATCH, -1, -1, -1).reshape(-1, TOKENS, TOKENS)
    q, k, v = (x.reshape(-1, TOKENS, DEPTH) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.mT, beta=1.0, alpha=DEPTH**-0.5)
    return (scores.softmax(-1) @ v).view(BATCH, HEADS, TOKENS, DEPTH)


@spelling(sloped)
def added_by_the_method_baddbmm(m, q, k, v, keep):
    bias = slopes().expand(BATCH, -1, -1, -1).reshape(-1, TOKENS, TOKENS)
    q, k, v = (x.reshape(-1, TOKENS, DEPTH) for x in (q, k, v))
    scores = bias.baddbmm(q, k.transpose(1, 2), alpha=1 / math.sqrt(DEPTH))
    return (scores.softmax(-1) @ v).view(BATCH, HEADS, TOKENS, DEPTH)


@spelling(products)
def nothing_to_add_in_baddbmm(m, q, k, v, keep):
    q, k, v = (x.reshape(-1, TOKENS, DEPTH) for x in (q, k, v))
    empty = torch.empty(BATCH * HEADS, TOKENS, TOKENS)
    scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=DEPTH**-0.5)
    return (scores.softmax(-1) @ v).view(BATCH, HEADS, TOKENS, DEPTH)


@spelling(products)
def product_by_broadcasting(m, q, k, v, keep):
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) / math.sqrt(DEPTH)
    return scores.softmax(-1) @ v


@spelling(products)
def value_by_broadcasting(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
    return (p[..., None] * v[..., None, :, :]).sum(-2)


@spelling(products, may_be_named=True)
def vmap_over_heads(m, q, k, v, keep):
    def one(q, k, v):
        return (q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v

    return torch.vmap(one, in_dims=1, out_dims=1)(q, k, v)


@spelling(products, may_be_named=True)
def vmap_over_batch_and_heads(m, q, k, v, keep):
    def one(q, k, v):
        return torch.softmax(q @ k.T * DEPTH**-0.5, -1) @ v

    return torch.vmap(torch.vmap(one))(q, k, v)


@spelling(products)
def one_head_at_a_time(m, q, k, v, keep):
    mixed = []
    for head in range(HEADS):
        p = (q[:, head] @ k[:, head].mT / math.sqrt(DEPTH)).softmax(-1)
        mixed.append(p @ v[:, head])
    return torch.stack(mixed, 1)


@spelling(products)
def one_example_at_a_time(m, q, k, v, keep):
    mixed = [(q[i] @ k[i].mT / math.sqrt(DEPTH)).softmax(-1) @ v[i] for i in range(BATCH)]
    return torch.stack(mixed)


# the softmax


@spelling(padded)
def softmax_in_float32(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, LOWEST)
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@spelling(products)
def softmax_module(m, q, k, v, keep):
    return m.softmax(q @ k.mT / math.sqrt(DEPTH)) @ v


@spelling(products)
def softmax_of_torch_special(m, q, k, v, keep):
    return torch.special.softmax(q @ k.mT / math.sqrt(DEPTH), -1) @ v


@spelling(products)
def exponential_of_log_softmax(m, q, k, v, keep):
    return (q @ k.mT / math.sqrt(DEPTH)).log_softmax(-1).exp() @ v


@spelling(products)
def softmax_by_hand(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


@spelling(padded)
def maximum_taken_off_first(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, LOWEST)
    scores = scores - scores.amax(-1, keepdim=True).detach()
    return scores.softmax(-1) @ v


@spelling(sunk)
def sink_dropped_after_the_softmax(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, -torch.inf)
    sink = m.sink.view(1, HEADS, 1, 1).expand(BATCH, HEADS, TOKENS, 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v


@spelling(off_by_one)
def zero_key_before_the_softmax(m, q, k, v, keep):
    scores = F.pad(q @ k.mT / math.sqrt(DEPTH), (1, 0))
    return scores.softmax(-1)[..., 1:] @ v


# what happens to scores on the way


@spelling(heated)
def temperature_per_head(m, q, k, v, keep):
    return (q @ k.mT * m.temperature.exp()).softmax(-1) @ v


@spelling(heated)
def temperature_on_the_query(m, q, k, v, keep):
    return ((q * m.temperature.exp()) @ k.mT).softmax(-1) @ v


@spelling(biased)
def learned_position_bias(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH) + m.bias
    return (scores + torch.zeros(keep.shape).masked_fill(~keep, LOWEST)).softmax(-1) @ v


@spelling(biased)
def position_bias_and_mask_added_at_once(m, q, k, v, keep):
    added = m.bias + torch.zeros(keep.shape).masked_fill(~keep, LOWEST)
    return (added + q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v


@spelling(relative)
def position_bias_of_the_query(m, q, k, v, keep):
    near = (q.unsqueeze(3) @ m.near.mT).squeeze(3)
    return (q @ k.mT * DEPTH**-0.5 + near).softmax(-1) @ v


@spelling(relative)
def position_bias_of_the_query_in_place(m, q, k, v, keep):
    scores = q @ k.mT * DEPTH**-0.5
    scores += torch.einsum("bhqd,qkd->bhqk", q, m.near)
    return scores.softmax(-1) @ v


@spelling(sloped)
def alibi(m, q, k, v, keep):
    return (q @ k.mT / math.sqrt(DEPTH) + slopes()).softmax(-1) @ v


@spelling(capped)
def soft_cap(m, q, k, v, keep):
    scores = torch.tanh(q @ k.mT / math.sqrt(DEPTH) / 2) * 2
    return scores.masked_fill(~keep, -torch.inf).softmax(-1) @ v


@spelling(cosines)
def cosine_attention(m, q, k, v, keep):
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 8).softmax(-1) @ v


@spelling(normalised)
def normalised_queries_and_keys(m, q, k, v, keep):
    return (m.norm(q) @ m.norm(k).mT / math.sqrt(DEPTH)).softmax(-1) @ v


@spelling(talking)
def heads_mixed_before_the_softmax(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return torch.einsum("bhqk,hg->bgqk", scores, m.mix).softmax(-1) @ v


@spelling(talking)
def heads_mixed_by_a_matrix_product(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).permute(0, 2, 3, 1) @ m.mix
    return scores.permute(0, 3, 1, 2).softmax(-1) @ v


@spelling(talking)
def heads_mixed_by_a_convolution(m, q, k, v, keep):
    scores = F.conv2d(q @ k.mT / math.sqrt(DEPTH), m.mix.T[:, :, None, None])
    return scores.softmax(-1) @ v


@spelling(talked)
def heads_mixed_after_the_softmax(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
    return torch.einsum("bhqk,hg->bgqk", p, m.mix) @ v


@spelling(talked)
def heads_mixed_after_the_softmax_by_a_convolution(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
    return F.conv2d(p, m.mix.T[:, :, None, None]) @ v


# masks


@spelling(padded)
def mask_filled(m, q, k, v, keep):
    return (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, -torch.inf).softmax(-1) @ v


@spelling(padded)
def mask_filled_in_place(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    scores.masked_fill_(keep.logical_not(), LOWEST)
    return scores.softmax(-1) @ v


@spelling(padded)
def mask_by_where(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return torch.where(keep, scores, torch.full((), LOWEST)).softmax(-1) @ v


@spelling(padded)
def mask_by_the_method_where(m, q, k, v, keep):
    return (q @ k.mT / math.sqrt(DEPTH)).where(keep, -1e30).softmax(-1) @ v


@spelling(padded)
def stabilised_by_an_operator(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, LOWEST)
    return (scores - torch.ops.aten.amax(scores, [-1], True)).softmax(-1) @ v


@spelling(padded)
def mask_by_the_method_where_with_keywords(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return scores.where(other=torch.tensor(LOWEST), condition=keep).softmax(-1) @ v


@spelling(padded)
def mask_by_where_with_keywords_in_any_order(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return torch.where(input=scores, other=torch.tensor(-1e9), condition=keep).softmax(-1) @ v


@spelling(padded)
def mask_by_where_of_what_is_dropped(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return torch.where(~keep, torch.tensor(-1e9), scores).softmax(-1) @ v


@spelling(padded)
def mask_filled_with_keywords_in_any_order(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return scores.masked_fill(value=-1e9, mask=~keep).softmax(-1) @ v


@spelling(padded)
def mask_added(m, q, k, v, keep):
    return (torch.zeros(keep.shape).masked_fill(~keep, -torch.inf) + q @ k.mT / 2).softmax(-1) @ v


@spelling(padded)
def mask_subtracted(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return (scores - (~keep).float() * 1e30).softmax(-1) @ v


@spelling(padded)
def mask_of_ten_thousand(m, q, k, v, keep):
    return (q @ k.mT / math.sqrt(DEPTH) + (1 - keep.float()) * -1e4).softmax(-1) @ v


@spelling(padded)
def mask_multiplied_and_added(m, q, k, v, keep):
    mask, scores = keep.float(), q @ k.mT / math.sqrt(DEPTH)
    return (scores * mask - 1e4 * (1 - mask)).softmax(-1) @ v


@spelling(padded)
def mask_written_by_index(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    scores[~keep.expand_as(scores)] = -torch.inf
    return scores.softmax(-1) @ v


@spelling(padded)
def mask_written_by_slice(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    scores[1, :, :, 3:] = -torch.inf
    return scores.softmax(-1) @ v


@spelling(padded)
def mask_written_through_a_view(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    scores[1].masked_fill_(~keep[1], LOWEST)
    return scores.softmax(-1) @ v


@spelling(padded)
def mask_applied_after_the_softmax(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1) * keep
    return p / p.sum(-1, keepdim=True) @ v


@spelling(causal)
def causal_by_fill(m, q, k, v, keep):
    return (q @ k.mT / math.sqrt(DEPTH)).masked_fill(later(), -torch.inf).softmax(-1) @ v


@spelling(causal)
def causal_by_where_of_tril(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    lower = torch.tril(torch.ones_like(scores)).bool()
    return torch.where(lower, scores, LOWEST).softmax(-1) @ v


@spelling(causal)
def causal_by_adding_triu(m, q, k, v, keep):
    added = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
    return (q @ k.mT / math.sqrt(DEPTH) + added).softmax(-1) @ v


# what is done with the probabilities


@spelling(products, dropout=True)
def dropout_active(m, q, k, v, keep):
    return F.dropout((q @ k.mT / math.sqrt(DEPTH)).softmax(-1), 0.5, training=True) @ v


@spelling(products)
def probabilities_logged(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
    m.last = p.detach().mean(1)
    m.entropy = -(p * p.clamp_min(1e-9).log()).sum(-1).mean()
    m.top = p.flatten(0, 1).topk(2, -1)
    return p @ v


@spelling(products)
def probabilities_rolled_out_on_the_side(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
    mean = p.mean(1)
    m.rollout = mean @ mean
    m.second = p @ p
    return p @ v


@spelling(products)
def probabilities_averaged_before_they_are_used(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
    m.importance = p.mean(1).sum(1)
    p = p.view(BATCH * HEADS, TOKENS, TOKENS)
    m.pooled = m.importance[:, None] @ v.transpose(1, 2).flatten(2)
    return torch.bmm(p, v.reshape(-1, TOKENS, DEPTH)).view(BATCH, HEADS, TOKENS, DEPTH)


@spelling(products)
def scores_looked_at_on_the_side(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    m.sharpest = scores.softmax(-1).amax()
    m.over_queries = (scores * 3).detach().softmax(-2)
    return scores.softmax(-1) @ v


# fused


@spelling(padded)
def fused(m, q, k, v, keep):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


@spelling(padded)
def fused_and_imported_by_name(m, q, k, v, keep):
    return scaled_dot_product_attention(q, k, v, keep)


@spelling(padded)
def fused_by_torchs_private_name(m, q, k, v, keep):
    return torch._C._nn.scaled_dot_product_attention(q, k, v, attn_mask=keep)


@spelling(causal)
def fused_causal(m, q, k, v, keep):
    return scaled_dot_product_attention(q, k, v, is_causal=True)


@spelling(biased)
def fused_with_a_learned_bias(m, q, k, v, keep):
    added = m.bias.masked_fill(~keep, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added)


@spelling(padded)
def fused_over_flat_heads(m, q, k, v, keep):
    mask = keep.expand(BATCH, HEADS, 1, TOKENS).reshape(-1, 1, TOKENS)
    q, k, v = (x.reshape(-1, TOKENS, DEPTH) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.view(BATCH, HEADS, TOKENS, DEPTH)


@spelling(products, folded=True)
def fused_over_five_axes(m, q, k, v, keep):
    q, k, v = (x.view(1, BATCH, HEADS, TOKENS, DEPTH) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)[0]


@spelling(padded, dropout=True)
def fused_with_dropout(m, q, k, v, keep):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=0.5)


class Fused(torch.autograd.Function):
    """Stands for a kernel of one's own with a hand-written backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = torch.softmax(q @ k.mT / math.sqrt(DEPTH), -1)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, p = ctx.saved_tensors
        through = gradient @ v.mT
        through = p * (through - (through * p).sum(-1, keepdim=True)) / math.sqrt(DEPTH)
        return through @ k, through.mT @ q, p.mT @ gradient


@spelling(products, may_be_named=True)
def kernel_as_autograd_function(m, q, k, v, keep):
    return Fused.apply(q, k, v)


@torch.library.custom_op("distillkit_tests::opaque_attention", mutates_args=())
def opaque_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v).contiguous()


@opaque_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty(*q.shape[:-1], v.shape[-1])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _opaque_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    q, k, v = ctx.saved_tensors
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
    through = gradient @ v.mT
    through = p * (through - (through * p).sum(-1, keepdim=True)) / math.sqrt(DEPTH)
    return through @ k, through.mT @ q, p.mT @ gradient


opaque_attention.register_autograd(_opaque_backward, setup_context=_keep_inputs)


@spelling(products, may_be_named=True)
def kernel_as_custom_op(m, q, k, v, keep):
    return opaque_attention(q, k, v)


# wirings


class Projected(nn.Module):
    """Three projections, and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(
            layer(x).view(*x.shape[:-1], HEADS, DEPTH).transpose(-2, -3)
            for layer in (self.q, self.k, self.v)
        )

    def joined(self, mixed: Tensor) -> Tensor:
        return self.out(mixed.transpose(-2, -3).flatten(-2))

    def truth(self, x: Tensor, keep: Tensor) -> list[Truth]:
        q, k, v = self.heads(x)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)
        return [Truth(scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1), v)]


class Multiply(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one @ other


class MaskedSoftmax(nn.Module):
    def forward(self, scores: Tensor, keep: Tensor) -> Tensor:
        return scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1)


@wiring()
class ProductSoftmaxAndValueInThreeChildren(Projected):
    def __init__(self) -> None:
        super().__init__()
        self.scores, self.softmax, self.mix = Multiply(), MaskedSoftmax(), Multiply()

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        return self.joined(self.mix(self.softmax(self.scores(q / math.sqrt(DEPTH), k.mT), keep), v))


class Scores(nn.Module):
    """Projects and multiplies; its parent does the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            layer(x).view(*x.shape[:2], HEADS, DEPTH).transpose(1, 2) for layer in (self.q, self.k)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.heads(x)
        return q @ k.mT / math.sqrt(DEPTH)


@wiring()
class ProductInAChildSoftmaxInTheParent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores, self.v = Scores(), nn.Linear(WIDTH, WIDTH)

    def _value(self, x):
        return self.v(x).view(*x.shape[:2], HEADS, DEPTH).transpose(1, 2)

    def forward(self, x, keep):
        p = self.scores(x).masked_fill(~keep[:, None, None], LOWEST).softmax(-1)
        return (p @ self._value(x)).transpose(1, 2).flatten(2)

    def truth(self, x, keep):
        q, k = self.scores.heads(x)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)
        return [
            Truth(scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1), self._value(x))
        ]


@wiring()
class QueriesAreAParameter(Projected):
    """A pooling head: learned queries, which have no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = nn.Parameter(torch.randn(HEADS, 3, DEPTH))

    def forward(self, x, keep):
        _, k, v = self.heads(x)
        scores = (self.seeds @ k.mT / math.sqrt(DEPTH)).masked_fill(
            ~keep[:, None, None], -torch.inf
        )
        return self.joined(scores.softmax(-1) @ v)

    def truth(self, x, keep):
        _, k, v = self.heads(x)
        scores = torch.einsum("hqd,bhkd->bhqk", self.seeds, k) / math.sqrt(DEPTH)
        return [Truth(scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1), v)]


@wiring()
class KeysAndValuesAreParameters(Projected):
    """A memory of learned keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(HEADS, 6, DEPTH) * 2)
        self.content = nn.Parameter(torch.randn(HEADS, 6, DEPTH))

    def forward(self, x, keep):
        q, _, _ = self.heads(x)
        return self.joined((q @ self.memory.mT / math.sqrt(DEPTH)).softmax(-1) @ self.content)

    def truth(self, x, keep):
        q, _, _ = self.heads(x)
        scores = torch.einsum("bhqd,hkd->bhqk", q, self.memory) / math.sqrt(DEPTH)
        return [Truth(scores.softmax(-1), self.content.expand(BATCH, -1, -1, -1))]


@wiring()
class ALearnedKeyBesideTheOthers(Projected):
    """One learned key and value, joined to those of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(2, 1, HEADS, 1, DEPTH))

    def _joined_heads(self, x):
        q, k, v = self.heads(x)
        key, value = self.extra.expand(2, len(x), HEADS, 1, DEPTH)
        return q, torch.cat([key, k], 2), torch.cat([value, v], 2)

    def forward(self, x, keep):
        q, k, v = self._joined_heads(x)
        return self.joined((q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v)

    def truth(self, x, keep):
        q, k, v = self._joined_heads(x)
        return [Truth((torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)).softmax(-1), v)]


@wiring()
class NoHeadAxis(Projected):
    def forward(self, x, keep):
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = (torch.bmm(q, k.mT) / 4).masked_fill(~keep[:, None], -torch.inf)
        return self.out(torch.bmm(scores.softmax(-1), v))

    def truth(self, x, keep):
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / 4
        return [Truth(scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1), v)]


@wiring(folded=True)
class NoBatchAxis(Projected):
    """Runs on the first example alone, heads in front."""

    def forward(self, x, keep):
        q, k, v = self.heads(x[0])
        return self.joined((q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v)

    def truth(self, x, keep):
        q, k, v = self.heads(x[:1])
        return [Truth((torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)).softmax(-1), v)]


@wiring()
class NeitherBatchNorHeads(Projected):
    def forward(self, x, keep):
        q, k, v = self.q(x[0]), self.k(x[0]), self.v(x[0])
        return self.out((q @ k.T / 4).softmax(-1) @ v)

    def truth(self, x, keep):
        q, k, v = (layer(x[0])[None, None] for layer in (self.q, self.k, self.v))
        return [Truth((torch.einsum("bhqd,bhkd->bhqk", q, k) / 4).softmax(-1), v)]


@wiring(folded=True)
class FiveAxes(Projected):
    """Two windows of two tokens; the window is an axis of its own, after the batch."""

    def forward(self, x, keep):
        q, k, v = self.heads(x[:, :4].view(BATCH, 2, 2, WIDTH))
        p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
        return self.joined(p @ v).flatten(1, 2)

    def truth(self, x, keep):
        q, k, v = self.heads(x[:, :4].reshape(BATCH * 2, 2, WIDTH))
        return [Truth((torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)).softmax(-1), v)]


@wiring(folded=True)
class FiveAxesWithHeadsBeforeTheWindow(Projected):
    def forward(self, x, keep):
        q, k, v = (y.transpose(1, 2) for y in self.heads(x[:, :4].view(BATCH, 2, 2, WIDTH)))
        mixed = torch.einsum("bhwqk,bhwkd->bhwqd", (q @ k.mT / math.sqrt(DEPTH)).softmax(-1), v)
        return self.joined(mixed.transpose(1, 2)).flatten(1, 2)

    truth = FiveAxes.truth


@wiring()
class OneKeyHeadForAll(Projected):
    def forward(self, x, keep):
        q, k, v = self.heads(x)
        p = (q @ k[:, :1].mT / math.sqrt(DEPTH)).softmax(-1)
        return self.joined(p @ v[:, :1])

    def truth(self, x, keep):
        q, k, v = self.heads(x)
        scores = torch.einsum("bhqd,bkd->bhqk", q, k[:, 0]) / math.sqrt(DEPTH)
        return [Truth(scores.softmax(-1), v[:, :1].expand(-1, HEADS, -1, -1))]


@wiring()
class OneKeyHeadWithoutAnAxis(OneKeyHeadForAll):
    def forward(self, x, keep):
        q, k, v = self.heads(x)
        p = torch.einsum("bhqd,bkd->bhqk", q, k[:, 0]).div(math.sqrt(DEPTH)).softmax(-1)
        return self.joined(torch.einsum("bhqk,bkd->bhqd", p, v[:, 0]))


@wiring()
class OneKeyHeadAgainstFlattenedQueries(OneKeyHeadForAll):
    """(b, n * h, d) queries against (b, n, d) keys, opened before the softmax."""

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        flat = q.reshape(BATCH, HEADS * TOKENS, DEPTH)
        scores = torch.bmm(flat, k[:, 0].mT).view(BATCH, HEADS, TOKENS, TOKENS) / math.sqrt(DEPTH)
        p = scores.softmax(-1).view(BATCH, HEADS * TOKENS, TOKENS)
        return self.joined(torch.bmm(p, v[:, 0]).view(BATCH, HEADS, TOKENS, DEPTH))


class GroupedQueries(Projected):
    def truth(self, x, keep):
        q, k, v = self.heads(x)
        k, v = (y[:, :2].repeat_interleave(2, 1) for y in (k, v))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)
        return [Truth(scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1), v)]


@wiring()
class GroupedQueriesRepeated(GroupedQueries):
    def forward(self, x, keep):
        q, k, v = self.heads(x)
        k, v = (y[:, :2].repeat_interleave(2, 1) for y in (k, v))
        scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep[:, None, None], -torch.inf)
        return self.joined(scores.softmax(-1) @ v)


@wiring()
class GroupedQueriesOnFiveAxes(GroupedQueries):
    def forward(self, x, keep):
        q, k, v = self.heads(x)
        q = q.view(BATCH, 2, 2, TOKENS, DEPTH)
        scores = q @ k[:, :2, None].mT / math.sqrt(DEPTH)
        p = scores.masked_fill(~keep[:, None, None, None], -torch.inf).softmax(-1)
        return self.joined((p @ v[:, :2, None]).flatten(1, 2))


@wiring()
class GroupedQueriesFused(GroupedQueries):
    def forward(self, x, keep):
        q, k, v = self.heads(x)
        mask = keep[:, None, None]
        return self.joined(
            F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], attn_mask=mask, enable_gqa=True)
        )


@wiring()
class CrossAttention(Projected):
    """Queries of all tokens, keys of the first three."""

    def forward(self, x, keep):
        q, k, v = self.heads(x)[0], *self.heads(x[:, :3])[1:]
        return self.joined((q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v)

    def truth(self, x, keep):
        q, k, v = self.heads(x)[0], *self.heads(x[:, :3])[1:]
        return [Truth((torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)).softmax(-1), v)]


@wiring()
class TwoAttentionsInOneModule(Projected):
    """Both directions, one after the other."""

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        there = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v
        back = (k @ q.mT / math.sqrt(DEPTH)).softmax(-1) @ v
        return self.joined(there + back)

    def truth(self, x, keep):
        q, k, v = self.heads(x)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)
        return [Truth(scores.softmax(-1), v), Truth(scores.mT.softmax(-1), v)]


@wiring()
class OneProductTwoSoftmaxes(Projected):
    """Grounding's trick: one product serves both directions."""

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        scores = q @ k.mT / math.sqrt(DEPTH)
        return self.joined(scores.softmax(-1) @ v + scores.transpose(-1, -2).softmax(-1) @ q)

    def truth(self, x, keep):
        q, k, v = self.heads(x)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)
        return [Truth(scores.softmax(-1), v), Truth(scores.mT.softmax(-1), q)]


@wiring(may_be_named=True)
class DifferenceOfTwoSoftmaxes(Projected):
    """Differential attention: two maps, one value product of their difference."""

    def forward(self, x, keep):
        p = self._map(*self.heads(x)[:2])
        return self.joined(p @ self.heads(x)[2])

    def _map(self, q, k):
        half = DEPTH // 2
        one = (q[..., :half] @ k[..., :half].mT).softmax(-1)
        return one - 0.3 * (q[..., half:] @ k[..., half:].mT).softmax(-1)

    def truth(self, x, keep):
        q, k, v = self.heads(x)
        return [Truth(self._map(q, k), v)]


@wiring()
class ValuesOfAnotherWidth(Projected):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def _value(self, x):
        return self.wide(x).view(BATCH, TOKENS, HEADS, 3 * DEPTH).transpose(1, 2)

    def forward(self, x, keep):
        q, k, _ = self.heads(x)
        return self.joined((q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ self._value(x))

    def truth(self, x, keep):
        q, k, _ = self.heads(x)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)
        return [Truth(scores.softmax(-1), self._value(x))]


@wiring()
class MeanOfTheValuesOverHeads(Projected):
    """The value product gives one vector that all heads share."""

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
        mixed = torch.einsum("bhqk,bhkd->bhqd", p, v).mean(1, keepdim=True)
        return self.joined(mixed.expand(-1, HEADS, -1, -1))

    def truth(self, x, keep):
        q, k, v = self.heads(x)
        return [Truth((torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)).softmax(-1), v)]


class NoAttention(NamedTuple):
    """A model whose module ``attention`` computes none: what the table must say of it."""

    make: Callable[[], nn.Module]
    looks_like_it: bool


NONE: dict[str, NoAttention] = {}


def no_attention(*, looks_like_it: bool) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(module: type[nn.Module]) -> type[nn.Module]:
        NONE[module.__name__] = NoAttention(module, looks_like_it)
        return module

    return add


@no_attention(looks_like_it=True)
class LinearAttention(Projected):
    def forward(self, x, keep):
        q, k, v = self.heads(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        mixed = q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)
        return self.joined(mixed)


@no_attention(looks_like_it=True)
class EfficientAttention(Projected):
    """Shen et al.: softmax of the queries and of the keys, each alone."""

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        return self.joined(q.softmax(-1) @ (k.softmax(-2).mT @ v))


@no_attention(looks_like_it=True)
class PerformerAttention(Projected):
    """Random features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("features", torch.randn(DEPTH, 8))

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        q, k = ((y @ self.features - y.square().sum(-1, keepdim=True) / 2).exp() for y in (q, k))
        return self.joined(q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT))


@no_attention(looks_like_it=True)
class NystromAttention(Projected):
    """Three softmaxes of products, whose product approximates the attention; none is it."""

    def forward(self, x, keep):
        q, k, v = self.heads(x[:, :4])
        few_q, few_k = (y.view(BATCH, HEADS, 2, 2, DEPTH).mean(-2) for y in (q, k))
        one = (q @ few_k.mT).softmax(-1)
        two = (few_q @ few_k.mT).softmax(-1)
        three = (few_q @ k.mT).softmax(-1)
        return self.joined(one @ torch.linalg.pinv(two) @ (three @ v))


@no_attention(looks_like_it=True)
class AttentionPooling(nn.Module):
    """A weight for each token from a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 1)

    def forward(self, x, keep):
        return (self.gate(x).softmax(1) * x).sum(1, keepdim=True)


@no_attention(looks_like_it=True)
class AdditiveAttention(Projected):
    """Bahdanau: a tanh of a sum, no product."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Linear(DEPTH, 1)

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        scores = self.energy(torch.tanh(q[..., :, None, :] + k[..., None, :, :])).squeeze(-1)
        return self.joined(scores.softmax(-1) @ v)


@no_attention(looks_like_it=False)
class Router(nn.Module):
    """A mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, keep):
        weights = self.router(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        return (weights[..., None, :] @ outputs).squeeze(-2)


@no_attention(looks_like_it=False)
class RouterWithoutALayer(nn.Module):
    """The same, the weight multiplied by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 3))
        self.experts = nn.Parameter(torch.randn(3, WIDTH, WIDTH) / 4)

    def forward(self, x, keep):
        weights = F.softmax(x @ self.weight, dim=-1)
        outputs = torch.einsum("bnd,edf->bnef", x, self.experts)
        return torch.einsum("bne,bnef->bnf", weights, outputs)


@no_attention(looks_like_it=False)
class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x, keep):
        return torch.softmax(torch.matmul(x, self.weight), dim=-1)


@no_attention(looks_like_it=False)
class Contrast(nn.Module):
    """Similarities of a batch, as a contrastive loss takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, keep):
        one, other = (
            F.normalize(self.one(x[:, 0]), dim=-1),
            F.normalize(self.other(x[:, 1]), dim=-1),
        )
        matched = (one @ other.T * 10).softmax(-1).diagonal()
        return x * matched[:, None, None]


@no_attention(looks_like_it=False)
class SpatialGate(nn.Module):
    """Squeeze and excite: a product with a weight, a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, x, keep):
        return x * torch.sigmoid(self.up(self.down(x.mean(1, keepdim=True)).relu()))


class Beside(nn.Module):
    """A real attention next to something that is none."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.real = Spelled(mask_filled, padded)
        self.other = other

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.real(x, keep).sum() + self.other(x, keep).sum()
