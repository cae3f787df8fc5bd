"""Where an attention's scores come from: queries and keys, scores, or weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from einops import rearrange
from torch import Tensor

from .._torch_private import is_functorch_wrapped_tensor
from .._transfer import trackable
from ..errors import CaptureError, ShapeError
from .keep import block_of, is_kept
from .precision import inner_products, widen
from .selection import Selection

Replayed: TypeAlias = "Tensor | Callable[[], Tensor]"
"""A map ``(b, h, q, k)``, or what computes it from the model's own tensors."""

OfTensor: TypeAlias = "Callable[[Tensor], Tensor]"


class Products(NamedTuple):
    """Queries and keys; the scores are their scaled products.

    Attributes:
        query: ``(b, h, q, d)``.
        key: ``(b, g, k, d)``, g dividing h.
        scale: what the products are multiplied by.
    """

    query: Tensor
    key: Tensor
    scale: float

    @property
    def held(self) -> tuple[Tensor | None, ...]:
        """The tensors that are held."""
        return self.query, self.key

    @property
    def requires_grad(self) -> bool:
        """Whether it has a gradient."""
        return self.query.requires_grad or self.key.requires_grad

    def scores(self, keep: Tensor | None, bias: Tensor | None) -> Tensor:
        """Scaled products plus bias, in float32 at least; 0 * NaN stays out of what is kept."""
        query, key = widen(self.query), widen(self.key)
        groups = key.shape[1]
        if keep is not None:  # 0 * NaN is NaN: what is dropped must be gone before the product
            query = torch.where(keep.any(-1)[..., None], query, 0)
            key = torch.where(_per_group(keep.any(-2), groups)[..., None], key, 0)
            bias = None if bias is None else torch.where(keep, bias, 0)
        folded = rearrange(query, "b (g r) q d -> b g (r q) d", g=groups)
        products = inner_products(folded, key) * self.scale
        products = rearrange(products, "b g (r q) k -> b (g r) q k", r=query.shape[1] // groups)
        return products if bias is None else products + widen(bias)

    def map(self, function: OfTensor, of_scores: OfTensor) -> Products:
        """The same through the first function."""
        del of_scores
        return Products(function(self.query), function(self.key), self.scale)

    def between(self, rows: Selection, keys: Selection) -> Products:
        """Some rows and keys."""
        return Products(rows.along(self.query, 2), keys.along(self.key, 2), self.scale)


class Replay:
    """A map of queries x keys that is held, or computed when it is asked for.

    Who only looks at the map (has it a gradient, which rows have a key) makes it be computed; it is
    then held until it is asked for itself, so that nothing is computed twice.

    Args:
        of: the tensor ``(b, h, q, k)``, or what computes it.
    """

    __slots__ = ("_of", "_waiting")

    def __init__(self, of: Replayed) -> None:
        self._of, self._waiting = of, None

    _waiting: tuple[Tensor, bool] | None

    @property
    def held(self) -> Tensor | None:
        """The tensor, where it need not be computed."""
        return self._of if isinstance(self._of, Tensor) else None

    def tensor(self) -> Tensor:
        """The map."""
        if isinstance(self._of, Tensor):
            return trackable(self._of)
        waiting, self._waiting = self._waiting, None
        # what was looked at without gradient is no answer to who needs one
        if waiting is None or torch.is_grad_enabled() != waiting[1]:
            return trackable(self._of())
        return trackable(waiting[0])

    def looked_at(self) -> Tensor:
        """The map, for who will not compute with it; the next who asks for it gets the same."""
        found = self.tensor()
        # a tensor of torch.func ends with its transform, and compiled code keeps nothing
        stays = not torch.compiler.is_compiling() and not is_functorch_wrapped_tensor(found)
        if stays and self.held is None:
            self._waiting = found, torch.is_grad_enabled()
        return found

    def map(self, function: OfTensor) -> Replay:
        """The same through a function: now where it is held, and otherwise when it is computed."""
        if isinstance(self._of, Tensor):
            return Replay(function(self._of))
        return Replay(lambda: function(self.tensor()))


@dataclass(frozen=True, slots=True)
class _Map:
    """A map of queries x keys of the model's own, and the queries and keys where they are known."""

    replay: Replay
    query: Tensor | None = None
    key: Tensor | None = None

    @property
    def scale(self) -> float:
        """The factor that products of its queries would have."""
        return default_scale(self.query)

    @property
    def held(self) -> tuple[Tensor | None, ...]:
        """The tensors that are held."""
        return self.query, self.key, self.replay.held

    @property
    def requires_grad(self) -> bool:
        """Whether it has a gradient; the map is computed where nothing else tells."""
        known = [x for x in (self.query, self.key) if x is not None]
        if known:
            return any(x.requires_grad for x in known)
        return self.replay.looked_at().requires_grad


@dataclass(frozen=True, slots=True)
class Scores(_Map):
    """Scores of the model's own, such as soft-capped ones; -inf marks dropped keys."""

    def scores(self) -> Tensor:
        """The scores ``(b, h, q, k)``."""
        return self.replay.tensor()

    def kept(self) -> Tensor:
        """The entries that the map itself keeps, boolean."""
        return is_kept(self.replay.looked_at())

    def map(self, function: OfTensor, of_scores: OfTensor) -> Scores:
        """The same, the scores through the second function."""
        query, key = _of(function, self.query), _of(function, self.key)
        return Scores(self.replay.map(of_scores), query, key)

    def between(self, rows: Selection, keys: Selection) -> Scores:
        """Some rows and keys."""
        return _scores_between(self, rows, keys)


@dataclass(frozen=True, slots=True)
class Weights(_Map):
    """Probabilities, of which the logarithms are the scores; 0 marks dropped keys.

    Attributes:
        as_used: the model weighed its values with them as they are, whatever they add up to: what
            is dropped is not made up for by the others.
    """

    as_used: bool = False

    def scores(self) -> Tensor:
        """The scores ``(b, h, q, k)`` whose softmax they are."""
        return _logs(self.replay.tensor())

    def kept(self) -> Tensor:
        """The entries that the map itself keeps, boolean."""
        weights = self.replay.looked_at()
        return weights != 0 if self.as_used else _checked_weights(weights) > 0

    def map(self, function: OfTensor, of_scores: OfTensor) -> Weights:
        """The same through the first function."""
        del of_scores
        query, key = _of(function, self.query), _of(function, self.key)
        return Weights(self.replay.map(function), query, key, self.as_used)

    def between(self, rows: Selection, keys: Selection) -> Scores:
        """Some rows and keys, renormalised over them: scores."""
        return _scores_between(self, rows, keys)


Source: TypeAlias = "Products | Scores | Weights"


def _scores_between(source: Scores | Weights, rows: Selection, keys: Selection) -> Scores:
    return Scores(
        Replay(lambda: block_of(source.scores(), rows, keys)),
        _of(lambda x: rows.along(x, 2), source.query),
        _of(lambda x: keys.along(x, 2), source.key),
    )


def _of(function: OfTensor, x: Tensor | None) -> Tensor | None:
    return None if x is None else function(x)


def concatenate_sources(parts: Sequence[Source]) -> Source:
    """The examples of several, one after another.

    Raises:
        ShapeError: they are known by different things.
    """
    kinds = {_kind(part) for part in parts}
    maps = [part for part in parts if not isinstance(part, Products)]
    if (maps and len(maps) < len(parts)) or ("used" in kinds and len(kinds) > 1):
        raise ShapeError(
            "attentions to concatenate are known by the same thing; these are by "
            f"{', '.join(map(_kind, parts))}. Attention.from_scores(attention.scores()) makes "
            "scores of each"
        )
    query = join_known("queries", [part.query for part in parts])
    key = join_known("keys", [part.key for part in parts])
    if not maps:
        assert query is not None
        assert key is not None
        return Products(query, key, parts[0].scale)
    if len(kinds) > 1:
        scores = Replay(lambda: torch.cat([part.scores() for part in maps]))
        return Scores(scores, query, key)
    replays = [part.replay for part in maps]
    replay = Replay(lambda: torch.cat([one.tensor() for one in replays]))
    if all(one.held is not None for one in replays):
        replay = Replay(replay.tensor())
    return replace(maps[0], replay=replay, query=query, key=key)


def _kind(source: Source) -> str:
    if isinstance(source, Products):
        return "queries and keys"
    if isinstance(source, Scores):
        return "scores"
    return "used" if source.as_used else "probabilities"


def join_known(what: str, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The examples of several parts; known of all of them, or of none."""
    given = [x for x in tensors if x is not None]
    if not given:
        return None
    if len(given) < len(tensors):
        raise ShapeError(f"some attentions to concatenate hold {what}, others none")
    if len({x.shape[1:] for x in given}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ShapeError(f"the {what} of attentions to concatenate are of one size; got {shapes}")
    return torch.cat(given)


def _logs(probabilities: Tensor) -> Tensor:
    """Their logarithms, -inf where there is nothing."""
    kept = _checked_weights(probabilities) > 0
    return torch.where(kept, torch.where(kept, probabilities, 1).log(), -torch.inf)


def _checked_weights(probabilities: Tensor) -> Tensor:
    """The same, if they have logarithms."""
    if bool((probabilities < 0).any()):
        raise CaptureError(
            "this attention has negative weights (its model mixes heads or subtracts softmaxes), "
            "which no divergence compares; probabilities() has them as they are"
        )
    return probabilities


def _per_group(seen: Tensor, groups: int) -> Tensor:
    """``(b, h or 1, k)`` over query heads -> over the key heads that they share."""
    if seen.shape[1] in (1, groups):
        return seen
    return rearrange(seen, "b (g r) k -> b g r k", g=groups).any(2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Heads concatenated per token, in order, and split into ``heads`` again."""
    width = x.shape[1] * x.shape[3]
    if width % heads:
        raise ShapeError(f"a width of {width} does not split into {heads} heads")
    joined = rearrange(x, "b h n d -> b n (h d)")
    return rearrange(joined, "b n (r e) -> b r n e", r=heads)


def checked_products(query: Tensor, key: Tensor, scale: float | None) -> Products:
    """Queries and keys of equal batch and width, whose heads fit.

    Raises:
        ShapeError: shapes or dtypes that do not fit, with both printed.
    """
    wrong = ""
    if query.ndim != 4 or key.ndim != 4:
        wrong = "query is (b, h, q, d) and key (b, g, k, d), 4 axes each"
    elif query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        wrong = "query (b, h, q, d) and key (b, g, k, d) share b and d"
    elif key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        wrong = "the key's heads must divide the query's (grouped queries)"
    if wrong:
        raise ShapeError(f"{wrong}; got query {tuple(query.shape)}, key {tuple(key.shape)}")
    if not (query.is_floating_point() and key.is_floating_point()):
        raise ShapeError(f"query and key are floating point; got {query.dtype} and {key.dtype}")
    return Products(query, key, default_scale(query) if scale is None else scale)


def default_scale(query: Tensor | None) -> float:
    """The usual factor of products, 1 / sqrt(d); NaN where there are no queries."""
    return math.nan if query is None else query.shape[-1] ** -0.5
