"""More attention as people write it: softmax by hand, maps that are no softmax, and none at all.

Those with a map of their own join ``strange.CASES``. ``UNREAD`` holds those of which capture can
only say that there is an attention that it does not read: each must be named, also in a module that
looks like none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.strange import (
    BATCH,
    DEPTH,
    HEADS,
    LOWEST,
    PROBABILITIES,
    TOKENS,
    WIDTH,
    Projected,
    Truth,
    cosines,
    off_by_one,
    padded,
    products,
    spelling,
    sunk,
    wiring,
)

# softmax by hand


@spelling(padded)
def softmax_by_hand_with_the_maximum_taken_off(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, -torch.inf)
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return (weights / weights.sum(dim=-1, keepdim=True)) @ v


@spelling(padded)
def softmax_by_hand_with_a_detached_maximum(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, LOWEST)
    weights = (scores - scores.detach().amax(-1, True)).exp()
    return weights.div(weights.sum(-1, True)) @ v


@spelling(padded)
def softmax_by_hand_masked_by_zeros(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp() * keep
    return weights / weights.sum(-1, keepdim=True) @ v


@spelling(products)
def softmax_by_hand_with_the_sum_given_an_axis(m, q, k, v, keep):
    weights = torch.exp(q @ k.mT / math.sqrt(DEPTH))
    return weights / weights.sum(-1)[..., None] @ v


@spelling(products)
def softmax_by_hand_with_an_unsqueezed_sum(m, q, k, v, keep):
    weights = torch.exp(q @ k.mT / math.sqrt(DEPTH))
    total = torch.sum(weights, dim=-1).unsqueeze(-1)
    return torch.div(weights, total) @ v


@spelling(products)
def softmax_by_hand_with_a_little_added(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return weights / (weights.sum(-1, keepdim=True) + 1e-9) @ v


@spelling(products)
def softmax_by_hand_with_the_sum_clamped(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9) @ v


@spelling(products)
def softmax_by_hand_in_place(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp_()
    weights /= weights.sum(-1, keepdim=True)
    return weights @ v


@spelling(products)
def softmax_by_hand_with_the_reciprocal(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return weights * weights.sum(-1, keepdim=True).reciprocal() @ v


@spelling(products)
def softmax_by_hand_by_normalize(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return F.normalize(weights, p=1, dim=-1) @ v


@spelling(products)
def softmax_by_hand_summed_by_einsum(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return weights / torch.einsum("bhqk->bhq", weights)[..., None] @ v


@spelling(products)
def softmax_by_hand_over_turned_scores(m, q, k, v, keep):
    weights = (k @ q.mT / math.sqrt(DEPTH)).exp()
    return (weights / weights.sum(-2, keepdim=True)).mT @ v


@spelling(off_by_one)
def softmax_by_hand_off_by_one(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return weights / (1 + weights.sum(-1, keepdim=True)) @ v


@spelling(sunk)
def softmax_by_hand_with_a_sink(m, q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, -torch.inf).exp()
    return weights / (weights.sum(-1, keepdim=True) + m.sink.exp().view(HEADS, 1, 1)) @ v


@spelling(padded)
def exponential_of_log_softmax_by_function(m, q, k, v, keep):
    scores = (q @ k.mT / math.sqrt(DEPTH)).masked_fill(~keep, LOWEST)
    return torch.exp(F.log_softmax(scores, dim=-1)) @ v


@spelling(products)
def exponential_of_log_softmax_module(m, q, k, v, keep):
    return nn.LogSoftmax(-1)(q @ k.mT / math.sqrt(DEPTH)).exp() @ v


@spelling(products)
def logsumexp_taken_off_by_hand(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


@spelling(products)
def softmin_of_the_negative(m, q, k, v, keep):
    return F.softmin(-(q @ k.mT) / math.sqrt(DEPTH), dim=-1) @ v


@spelling(products)
def softmax_by_an_aten_operator(m, q, k, v, keep):
    return torch.ops.aten._softmax(q @ k.mT / math.sqrt(DEPTH), -1, False) @ v


@spelling(products)
def softmax_with_an_output(m, q, k, v, keep):
    with torch.autocast("cpu", enabled=False):
        return torch.softmax(input=q @ k.mT / math.sqrt(DEPTH), dim=-1) @ v


@spelling(padded)
def softmax_of_torch_masked(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    return torch.masked.softmax(scores, -1, mask=keep.expand_as(scores)) @ v


# products that are no matrix product


@spelling(products)
def product_by_broadcasting_the_other_way(m, q, k, v, keep):
    scores = torch.sum(k[:, :, None] * q[:, :, :, None], dim=-1) / math.sqrt(DEPTH)
    return scores.softmax(-1) @ v


@spelling(padded)
def product_by_broadcasting_tokens_first(m, q, k, v, keep):
    q, k = q.transpose(1, 2), k.transpose(1, 2)  # (b, n, h, d)
    scores = torch.mul(q.unsqueeze(2), k.unsqueeze(1)).sum(dim=4).permute(0, 3, 1, 2)
    return (scores / math.sqrt(DEPTH)).masked_fill(~keep, -torch.inf).softmax(-1) @ v


@spelling(products)
def product_by_vecdot(m, q, k, v, keep):
    scores = torch.linalg.vecdot(q[..., :, None, :], k[..., None, :, :])
    return (scores / math.sqrt(DEPTH)).softmax(-1) @ v


@spelling(products)
def everything_by_broadcasting(m, q, k, v, keep):
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) / math.sqrt(DEPTH)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


@spelling(cosines, may_be_named=True)
def cosine_by_broadcasting(m, q, k, v, keep):
    scores = F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    return (scores * 8).softmax(-1) @ v


@spelling(products)
def einsum_in_an_odd_order(m, q, k, v, keep):
    p = torch.einsum("bhkd,bhqd->qhbk", k, q).div(math.sqrt(DEPTH)).softmax(-1)
    return torch.einsum("bhkd,qhbk->bhqd", v, p)


@spelling(products, may_be_named=True)
def tensordot_for_each_head(m, q, k, v, keep):
    rows = []
    for i in range(BATCH):
        for h in range(HEADS):
            p = (torch.tensordot(q[i, h], k[i, h], dims=([1], [1])) / math.sqrt(DEPTH)).softmax(-1)
            rows.append(p @ v[i, h])
    return torch.stack(rows).view(BATCH, HEADS, TOKENS, DEPTH)


# what is done to the map


@spelling(padded)
def masked_after_the_softmax_and_normalised_again(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1).masked_fill(~keep, 0.0)
    return p / p.sum(-1, keepdim=True).clamp_min(1e-6) @ v


def best(m, q, k, keep):
    scores = products(m, q, k, keep)
    return scores.masked_fill(scores < scores.topk(2, -1).values[..., -1:], -torch.inf)


@spelling(best)
def only_the_best_by_a_threshold(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    least = scores.topk(2, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, -torch.inf).softmax(-1) @ v


@spelling(best)
def only_the_best_by_scattering(m, q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    kept, places = scores.topk(2, dim=-1)
    sparse = torch.full_like(scores, -torch.inf).scatter(-1, places, kept)
    return sparse.softmax(-1) @ v


@spelling(best, may_be_named=True)
def only_the_best_gathered(m, q, k, v, keep):
    kept, places = (q @ k.mT / math.sqrt(DEPTH)).topk(2, dim=-1)
    p = torch.zeros(BATCH, HEADS, TOKENS, TOKENS).scatter(-1, places, kept.softmax(-1))
    return p @ v


def sharpened(m, q, k, keep):
    p = products(m, q, k, keep).softmax(-1).square()
    return p / p.sum(-1, keepdim=True)


def slotted(m, q, k, keep):
    p = products(m, q, k, keep).softmax(-2) + 1e-8
    return p / p.sum(-1, keepdim=True)


def over_the_queries(m, q, k, keep):
    return products(m, q, k, keep).softmax(-2)


def stretched(m, q, k, keep):
    return products(m, q, k, keep).softmax(-1) * 1.2 - 0.1


def twice(m, q, k, keep):
    return products(m, q, k, keep).softmax(-1).softmax(-1)


def squared(m, q, k, keep):
    p = products(m, q, k, keep).relu().square()
    return p / (p.sum(-1, keepdim=True) + 1e-6)


PROBABILITIES |= {sharpened, slotted, over_the_queries, stretched, twice, squared}


@spelling(squared)
def squared_relu_divided_by_its_sum(m, q, k, v, keep):
    p = F.relu(q @ k.mT / math.sqrt(DEPTH)).square()
    return torch.einsum("bhqk,bhkd->bhqd", p / (p.sum(-1, keepdim=True) + 1e-6), v)


@spelling(sharpened)
def sharpened_after_the_softmax(m, q, k, v, keep):
    p = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1).pow(2)
    return p / p.sum(-1, keepdim=True) @ v


@spelling(stretched)
def stretched_after_the_softmax(m, q, k, v, keep):
    return ((q @ k.mT / math.sqrt(DEPTH)).softmax(-1) * 1.2 - 0.1) @ v


@spelling(twice)
def softmax_of_the_softmax(m, q, k, v, keep):
    return (q @ k.mT / math.sqrt(DEPTH)).softmax(-1).softmax(-1) @ v


# softmax over the queries, as slots do


@spelling(slotted)
def slots(m, q, k, v, keep):
    p = (q @ k.mT * DEPTH**-0.5).softmax(dim=-2) + 1e-8
    return p / p.sum(-1, keepdim=True) @ v


@spelling(slotted)
def slots_from_the_tokens_side(m, q, k, v, keep):
    p = torch.softmax(k @ q.mT * DEPTH**-0.5, dim=-1) + 1e-8  # every token chooses a slot
    p = p / p.sum(dim=-2, keepdim=True)
    return torch.matmul(p.mT, v)


@spelling(slotted)
def slots_by_einsum(m, q, k, v, keep):
    p = torch.einsum("bhid,bhjd->bhij", q, k * DEPTH**-0.5).softmax(dim=2) + 1e-8
    p = p / p.sum(dim=-1, keepdim=True)
    return torch.einsum("bhjd,bhij->bhid", v, p)


@spelling(slotted)
def slots_by_hand(m, q, k, v, keep):
    p = (q @ k.mT * DEPTH**-0.5).exp()
    p = p / p.sum(-2, keepdim=True) + 1e-8
    return p / p.sum(-1, keepdim=True) @ v


@spelling(over_the_queries)
def slots_that_are_not_normalised(m, q, k, v, keep):
    return (q @ k.mT * DEPTH**-0.5).softmax(dim=-2) @ v


@wiring()
class SlotAttention(Projected):
    """Locatello et al., three slots, two rounds; one head."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(1, 3, WIDTH) * 2)
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def _round(self, slots, k):
        p = torch.einsum("bid,bjd->bij", self.q(slots), k).mul(WIDTH**-0.5).softmax(1) + 1e-8
        return p / p.sum(-1, keepdim=True)

    def _rounds(self, x):
        k, v, slots = self.k(x), self.v(x), self.slots.expand(BATCH, -1, -1)
        for _ in range(2):
            p = self._round(slots, k)
            yield p, v
            mixed = torch.einsum("bij,bjd->bid", p, v)
            slots = self.cell(mixed.flatten(0, 1), slots.flatten(0, 1)).view(BATCH, 3, WIDTH)
            self.last = slots

    def forward(self, x, keep):
        for _ in self._rounds(x):
            pass
        return self.out(self.last)

    def truth(self, x, keep):
        return [Truth(p[:, None], v[:, None]) for p, v in self._rounds(x)]


# windows, latents, loops


@wiring(folded=True)
class ShiftedWindows(Projected):
    """Swin: rolled by one, two windows of two tokens, a bias for each head, a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(HEADS, 2, 2))
        mask = torch.zeros(2, 1, 2, 2)
        mask[1, 0] = torch.tensor([[0.0, -100.0], [-100.0, 0.0]])
        self.register_buffer("mask", mask)

    def _windows(self, x):
        return torch.roll(x[:, :4], -1, 1).view(BATCH * 2, 2, WIDTH)

    def forward(self, x, keep):
        q, k, v = self.heads(self._windows(x))
        scores = q * DEPTH**-0.5 @ k.mT + self.bias
        scores = scores.view(BATCH, 2, HEADS, 2, 2) + self.mask
        p = scores.view(-1, HEADS, 2, 2).softmax(-1)
        return torch.roll(self.joined(p @ v).view(BATCH, 4, WIDTH), 1, 1)

    def truth(self, x, keep):
        q, k, v = self.heads(self._windows(x))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH) + self.bias
        return [Truth((scores + self.mask.repeat(BATCH, 1, 1, 1)).softmax(-1), v)]


@wiring()
class LatentsAndTokensTogether(Projected):
    """Perceiver resampler: latents attend to the tokens and to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, WIDTH))

    def _heads(self, x):
        latents = self.latents.expand(BATCH, -1, -1)
        both = torch.cat([x, latents], 1)
        return self.heads(latents)[0], *self.heads(both)[1:]

    def forward(self, x, keep):
        q, k, v = self._heads(x)
        scores = torch.einsum("bhid,bhjd->bhij", q * DEPTH**-0.5, k)
        scores = scores - scores.amax(dim=-1, keepdim=True).detach()
        return self.joined(scores.softmax(-1) @ v)

    def truth(self, x, keep):
        q, k, v = self._heads(x)
        return [Truth((torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)).softmax(-1), v)]


@wiring()
class BlocksOfQueries(Projected):
    """A loop over pieces of the queries, each with its own softmax."""

    def forward(self, x, keep):
        q, k, v = self.heads(x)
        mixed = [(one @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v for one in q.split(3, dim=2)]
        return self.joined(torch.cat(mixed, 2))

    def truth(self, x, keep):
        q, k, v = self.heads(x)
        p = (torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(DEPTH)).softmax(-1)
        return [Truth(p[:, :, :3], v), Truth(p[:, :, 3:], v)]


@wiring(folded=True)
class HashedAttention(Projected):
    """Reformer: sorted into buckets, weights from a logarithm of sums; its map is of the sorted."""

    def _sorted(self, x):
        q, _, v = self.heads(x[:, :4])
        order = q[..., 0].argsort(-1)[..., None].expand(q.shape)
        return order, *(y.gather(2, order).view(BATCH, HEADS, 2, 2, DEPTH) for y in (q, v))

    def forward(self, x, keep):
        order, q, v = self._sorted(x)
        dots = q @ F.normalize(q, dim=-1).mT
        weights = (dots - dots.logsumexp(-1, keepdim=True)).exp()
        mixed = (weights @ v).flatten(2, 3)
        return self.joined(mixed.gather(2, order.argsort(2)))

    def truth(self, x, keep):
        _, q, v = (y.transpose(1, 2).flatten(0, 1) if y.ndim == 5 else y for y in self._sorted(x))
        return [Truth(torch.einsum("bhqd,bhkd->bhqk", q, F.normalize(q, dim=-1)).softmax(-1), v)]


# attention without a map that could be read


UNREAD: dict[str, Callable[..., Tensor]] = {}


def unread(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    UNREAD[function.__name__] = function
    return function


@unread
def sigmoid_attention(q, k, v, keep):
    return torch.sigmoid(q @ k.mT / math.sqrt(DEPTH) - math.log(TOKENS)) @ v


@unread
def relu_attention(q, k, v, keep):
    return F.relu(q @ k.mT / math.sqrt(DEPTH)) / TOKENS @ v


@unread
def attention_without_any_function(q, k, v, keep):
    return (q @ k.mT / TOKENS) @ v


@unread
def decaying_retention(q, k, v, keep):
    decay = 0.9 ** (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).clamp_min(0)
    return (q @ k.mT * decay.tril()) @ v


@unread
def normalised_after_the_values(q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    return (weights @ v) / weights.sum(-1, keepdim=True)


@unread
def ones_joined_to_the_values(q, k, v, keep):
    weights = (q @ k.mT / math.sqrt(DEPTH)).exp()
    mixed = weights @ torch.cat([v, torch.ones_like(v[..., :1])], -1)
    return mixed[..., :-1] / mixed[..., -1:]


@unread
def softmax_over_blocks_of_keys(q, k, v, keep):
    total, mixed, highest = 0.0, 0.0, torch.full((*q.shape[:3], 1), -torch.inf)
    for start in range(0, TOKENS, 2):
        scores = q @ k[:, :, start : start + 2].mT / math.sqrt(DEPTH)
        new = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - new).exp(), (highest - new).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        mixed = mixed * shrink + weights @ v[:, :, start : start + 2]
        highest = new
    return mixed / total


@unread
def linear_attention(q, k, v, keep):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)


@unread
def linear_attention_by_einsum(q, k, v, keep):
    q, k = q.softmax(-1), k.softmax(-2)
    return torch.einsum("bhnd,bhde->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v))


@unread
def causal_linear_attention(q, k, v, keep):
    memory = torch.einsum("bhnd,bhne->bhnde", k.relu(), v).cumsum(2)
    return torch.einsum("bhnd,bhnde->bhne", q.relu(), memory)


@unread
def einsum_of_three_tensors(q, k, v, keep):
    scores = torch.einsum("bhqd,bhkd,h->bhqk", q, k, torch.linspace(0.5, 1, HEADS))
    return scores.softmax(-1) @ v


@unread
def differential_attention(q, k, v, keep):
    half = DEPTH // 2
    one = (q[..., :half] @ k[..., :half].mT).softmax(-1)
    return (one - 0.3 * (q[..., half:] @ k[..., half:].mT).softmax(-1)) @ v


@unread
def dual_softmax(q, k, v, keep):
    scores = q @ k.mT
    return (scores.softmax(-1) * scores.softmax(-2)) @ v


@unread
def graph_attention(q, k, v, keep):
    scores = F.leaky_relu(q.sum(-1)[..., :, None] + k.sum(-1)[..., None, :])
    return scores.softmax(-1) @ v


@unread
def best_keys_gathered(q, k, v, keep):
    kept, places = (q @ k.mT / math.sqrt(DEPTH)).topk(2, dim=-1)
    values = v[:, :, None].expand(-1, -1, TOKENS, -1, -1)
    values = values.gather(3, places[..., None].expand(-1, -1, -1, -1, DEPTH))
    return (kept.softmax(-1)[..., None, :] @ values).squeeze(-2)


@unread
def scores_joined_along_the_keys(q, k, v, keep):
    near, far = q @ k.mT, q @ (2 * k).mT
    p = torch.cat([near, far], -1).softmax(-1)
    return p[..., :TOKENS] @ v + p[..., TOKENS:] @ (2 * v)


@unread
def scores_written_piece_by_piece(q, k, v, keep):
    scores = torch.empty(BATCH, HEADS, TOKENS, TOKENS)
    for start in range(0, TOKENS, 2):
        scores[:, :, start : start + 2] = q[:, :, start : start + 2] @ k.mT
    return scores.softmax(-1) @ v


@unread
def scores_of_heads_stacked(q, k, v, keep):
    scores = [q[:, head] @ k[:, head].mT for head in range(HEADS)]
    return torch.stack(scores, 1).softmax(-1) @ v


@unread
def distances(q, k, v, keep):
    return (-torch.cdist(q, k)).softmax(-1) @ v


@unread
def distances_by_broadcasting(q, k, v, keep):
    return (-(q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)).softmax(-1) @ v


@unread
def differences_through_a_function(q, k, v, keep):
    scores = torch.tanh(q[..., :, None, :] + k[..., None, :, :]).sum(-1)
    return scores.softmax(-1) @ v


@unread
def hard_attention(q, k, v, keep):
    best = (q @ k.mT).argmax(-1)
    return F.one_hot(best, TOKENS).float() @ v


@unread
def gumbel_attention(q, k, v, keep):
    return F.gumbel_softmax(q @ k.mT, dim=-1) @ v


@unread
def sparsemax_attention(q, k, v, keep):
    scores = q @ k.mT / math.sqrt(DEPTH)
    ranked = scores.sort(-1, descending=True).values
    ranks = torch.arange(1, TOKENS + 1)
    support = 1 + ranks * ranked > ranked.cumsum(-1)
    count = support.sum(-1, keepdim=True)
    threshold = ((ranked * support).sum(-1, keepdim=True) - 1) / count
    return (scores - threshold).clamp_min(0) @ v


@unread
def vmap_of_the_fused_kernel(q, k, v, keep):
    return torch.vmap(F.scaled_dot_product_attention)(q, k, v)


@unread
def vmap_of_the_products(q, k, v, keep):
    return torch.vmap(lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v)(q, k, v)


@unread
def nested_tensors(q, k, v, keep):
    def ragged(x):
        rows = [x[0].transpose(0, 1), x[1, :, :3].transpose(0, 1)]
        return torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(ragged(q), ragged(k), ragged(v))
    return (
        mixed.transpose(1, 2).to_padded_tensor(0.0, (BATCH, TOKENS, HEADS, DEPTH)).transpose(1, 2)
    )


def position_by_position(q, k, v, keep):
    """Nothing pairs the tensors: only a module that looks like attention is named."""
    mixed = []
    for i in range(TOKENS):
        weights = [((q[:, :, i] * k[:, :, j]).sum(-1) / 2).exp() for j in range(TOKENS)]
        total = sum(weights)
        mixed.append(
            sum(w[..., None] * v[:, :, j] for j, w in enumerate(weights)) / total[..., None]
        )
    return torch.stack(mixed, 2)


class Disguised(nn.Module):
    """An attention without a name or a layer to tell it by."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(3, WIDTH, WIDTH) / 3)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (F.linear(x, w).view(b, n, HEADS, DEPTH).transpose(1, 2) for w in self.weight)
        return self.function(q, k, v, keep[:, None, None]).transpose(1, 2).flatten(2)


# no attention, though three tensors meet


class Experts(nn.Module):
    """Weights picked for each example: two products with a function between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, WIDTH, 7))
        self.down = nn.Parameter(torch.randn(3, 7, WIDTH))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        chosen = torch.tensor([2, 0])
        return torch.bmm(torch.bmm(x, self.up[chosen]).relu(), self.down[chosen])


class Interpolation(nn.Module):
    """Triangular weights of the distances between two grids, divided by their sum."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        old, new = torch.arange(TOKENS).float(), torch.linspace(0, TOKENS - 1, 7)
        weights = (1 - (new.view(1, -1, 1) - old.view(1, 1, -1)).abs()).clamp_min(0)
        return (weights / weights.sum(-1, keepdim=True)) @ x


class Gram(nn.Module):
    """Correlations of channels, as style losses take them, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 3))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return (x.mT @ x / TOKENS) @ self.weight


class ScoresHandedOn(nn.Module):
    """RealFormer: every layer adds the scores of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AddsScores() for _ in range(2))
        self.heads: list[tuple[Tensor, ...]] = []
        self.scores: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        scores = None
        self.heads, self.scores = [], []
        for layer in self.layers:
            self.heads.append(layer.heads(x))
            x, scores = layer(x, scores)
            self.scores.append(scores)
        return x


class AddsScores(Projected):
    def forward(self, x, before):
        q, k, v = self.heads(x)
        scores = q @ k.mT / math.sqrt(DEPTH)
        if before is not None:
            scores = scores + before
        return self.joined(scores.softmax(-1) @ v), scores
