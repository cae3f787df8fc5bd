"""What one attention operation consumed; its scores and probabilities are computed on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ._kept import Masks, rows_with_keys
from ._selection import Selection, Tokens
from ._source import Source
from ._transfer import Destination, is_inference, portable, trackable
from .errors import CaptureError, ShapeError


class Attention:
    r"""Queries, keys and masks of one attention operation, with gradient.

    .. math:: P = \mathrm{softmax}(\mathrm{scale} \cdot Q K^\top + \mathrm{bias})

    over the keys that the mask keeps. Nothing of size ``q x k`` is held; an ``Attention`` is never
    changed, its methods return new ones.

    It can be moved (:meth:`to`, :meth:`pin_memory`), copied and pickled. ``copy.copy`` shares its
    tensors; a deep copy and a pickle hold them without gradient, because torch copies no tensor
    that is inside of a graph, and hold the scores of a replayed attention as a tensor.

    Args:
        query: ``(b, h, q, d)``.
        key: ``(b, g, k, d)``, g dividing h: query head i reads key head ``i // (h // g)``.
        value: ``(b, g, k, e)``, where it was seen.
        scale: factor of the products; ``d ** -0.5`` by default.
        mask: boolean, True = keep, broadcastable to ``(b, h, q, k)``.
        bias: added to the scaled products, broadcastable to ``(b, h, q, k)``; entries at or below
            half of their dtype's lowest number, -inf among them, drop a key as the mask does.
        rows: boolean ``(b, q)`` or ``(b, 1 or h, q)``: the query positions that count.
        causal: row i sees the keys 0 ... i only.

    Raises:
        ShapeError: shapes or dtypes that do not fit, with both printed.

    Examples:
        >>> import torch
        >>> attention = Attention(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 5, 8))
        >>> attention.probabilities()[0, 0, 0]
        tensor([0.2000, 0.2000, 0.2000, 0.2000, 0.2000])
        >>> attention.between(slice(0, 2), [3, 4]).shape
        (2, 4, 2, 2)
    """

    __slots__ = (
        "_key", "_query", "_source", "bias", "causal", "mask", "rows", "scale", "shape", "value",
    )  # fmt: skip

    shape: tuple[int, int, int, int]
    """``(b, h, q, k)`` of scores and probabilities."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        scale: float | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        rows: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        _check_heads(query, key)
        b, h, q, _ = query.shape
        self.shape = shape = (b, h, q, key.shape[2])
        self._query: Tensor | None = query
        self._key: Tensor | None = key
        self._source: Source | None = None
        self.value = value
        self.scale = query.shape[-1] ** -0.5 if scale is None else scale
        self.mask = _as_map("mask", mask, shape)
        self.bias = _as_map("bias", bias, shape)
        self.rows = _as_rows(rows, shape)
        self.causal = causal

    @classmethod
    def from_scores(
        cls, scores: Tensor, *, mask: Tensor | None = None, rows: Tensor | None = None
    ) -> Attention:
        """An attention known by its scores ``(b, h, q, k)`` alone; -inf marks dropped keys."""
        return cls._known_by(Source("scores", scores), scores.shape, mask=mask, rows=rows)

    @classmethod
    def from_probabilities(
        cls, probabilities: Tensor, *, mask: Tensor | None = None, rows: Tensor | None = None
    ) -> Attention:
        """An attention known by its probabilities ``(b, h, q, k)`` alone; 0 marks dropped keys."""
        source = Source("probabilities", probabilities)
        return cls._known_by(source, probabilities.shape, mask=mask, rows=rows)

    @classmethod
    def replayed(
        cls,
        shape: Sequence[int],
        *,
        scores: Callable[[], Tensor] | None = None,
        used: Callable[[], Tensor] | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Attention:
        """An attention that queries and keys alone cannot rebuild.

        Args:
            shape: ``(b, h, q, k)``.
            scores: computes all scores, such as soft-capped ones.
            used: computes all probabilities instead, where a model changes them before it weighs
                its values (mixed heads, attention sinks). Losses compare them renormalised over
                the keys.
            query: the queries, where they are known.
            key: the keys.
            value: the values.
            mask: as of any attention.
            rows: as of any attention.
        """
        source = None
        if used is not None:
            source = Source("used", used)
        elif scores is not None:
            source = Source("scores", scores)
        return cls._known_by(source, shape, query=query, key=key, value=value, mask=mask, rows=rows)

    @classmethod
    def _known_by(
        cls,
        source: Source | None,
        shape: Sequence[int],
        *,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Attention:
        if len(shape) != 4:
            raise ShapeError(f"an attention map is (b, h, q, k), 4 axes; got shape {tuple(shape)}")
        b, h, q, k = shape
        made = cls.__new__(cls)
        made.shape = (b, h, q, k)
        made._query, made._key, made.value = query, key, value
        made._source = source
        made.scale = math.nan if query is None else query.shape[-1] ** -0.5
        made.mask, made.bias = _as_map("mask", mask, made.shape), None
        made.rows, made.causal = _as_rows(rows, made.shape), False
        return made

    @classmethod
    def cross(
        cls,
        query_of: Attention,
        key_of: Attention,
        *,
        rows: Tensor | None = None,
        keys: Tensor | None = None,
        heads: int | None = None,
    ) -> Attention:
        """The attention that a dual encoder never computed: one tower's queries, the other's keys.

        The towers' own masks, biases and causal flags are about their own tokens and are dropped.

        Args:
            query_of: the attention whose queries (and scale) are taken, ``(b, h, q, d)``.
            key_of: the attention whose keys are taken, ``(b, h, k, d)``.
            rows: boolean ``(b, q)``: the queries that count (no padding).
            keys: boolean ``(b, k)``: the keys that exist (no padding).
            heads: split both total widths into this many heads first.

        Raises:
            ShapeError: unequal batches, heads or widths; never read as grouped queries.

        Source: Wang et al. 2022 (DiDE), "Cross-Modal Attention Distillation", the student's side.
        """
        query, key, scale = query_of.query, key_of.key, query_of.scale
        if heads is not None:
            query, key = split_heads(query, heads), split_heads(key, heads)
            scale = query.shape[-1] ** -0.5
        if query.shape[0] != key.shape[0]:
            raise ShapeError(
                f"cross pairs example i with example i, but the queries' tower ran "
                f"{query.shape[0]} examples and the keys' tower {key.shape[0]}; pair them first "
                "with take(index), or name the index entries in the adapter's `pairs`"
            )
        if query.shape[1] != key.shape[1] or query.shape[3] != key.shape[3]:
            raise ShapeError(
                f"cross needs equal heads and head widths: queries {tuple(query.shape)} against "
                f"keys {tuple(key.shape)}, both (b, h, n, d); heads=R re-splits equal total widths"
            )
        mask = None if keys is None else keys[:, None, None, :]
        return cls(query, key, scale=scale, mask=mask, rows=rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Attention]) -> Attention:
        """The examples of several attentions over the same heads and tokens, one after another.

        A part without a mask, a bias or ``rows`` keeps everything.

        Raises:
            ShapeError: no parts; parts that differ in heads, tokens or scale, or in what is known
                of them.

        Examples:
            >>> parts = [Attention.from_scores(torch.zeros(b, 1, 2, 3)) for b in (1, 4)]
            >>> Attention.concatenate(parts)
            Attention(b=5, h=1, q=2, k=3)
        """
        if not parts:
            raise ShapeError("there are no attentions to concatenate: pass at least one")
        first = parts[0]
        # a scale that means nothing is NaN, which equals nothing
        scales = [None if math.isnan(part.scale) else part.scale for part in parts]
        if len({(part.shape[1:], scale) for part, scale in zip(parts, scales, strict=True)}) > 1:
            raise ShapeError(
                "attentions to concatenate share heads, tokens and scale; got "
                + ", ".join(f"{part} of scale {part.scale:.4g}" for part in parts)
            )
        sizes = [part.shape[0] for part in parts]
        made = cls.__new__(cls)
        made.shape = (sum(sizes), *first.shape[1:])
        made._query = _joined("queries", [part._query for part in parts], sizes)
        made._key = _joined("keys", [part._key for part in parts], sizes)
        made.value = _joined("values", [part.value for part in parts], sizes)
        # a model that is causal says so by a mask instead where there is padding too
        made.causal = all(part.causal for part in parts)
        masks = [part.mask if made.causal else part._masked() for part in parts]
        made.mask = _joined_masks(masks, sizes, nothing=True)
        made.bias = _joined_masks([part.bias for part in parts], sizes, nothing=0.0)
        made.rows = _joined_masks([part.rows for part in parts], sizes, nothing=True)
        made.scale = first.scale
        made._source = Source.concatenate([part._source for part in parts])
        return made

    @property
    def query(self) -> Tensor:
        """``(b, h, q, d)``."""
        return _known("queries", self._query)

    @property
    def key(self) -> Tensor:
        """``(b, g, k, d)``."""
        return _known("keys", self._key)

    @property
    def requires_grad(self) -> bool:
        """Whether a loss on this attention can teach anything."""
        known = [x for x in (self._query, self._key, self.bias) if x is not None]
        if self._source is not None and not known:
            return self._source.tensor().requires_grad
        return any(x.requires_grad for x in known)

    @property
    def is_replayed(self) -> bool:
        """Whether its scores are more than scaled products with a mask and a bias."""
        return self._source is not None

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        known = self._tensors()
        if known:
            return known[0].device
        assert self._source is not None
        return self._source.tensor().device

    def keep(self) -> Tensor | None:
        """The entries that count, boolean, broadcastable to ``(b, h, q, k)``; None: all do.

        Dropped are what the mask, the causal flag and ``rows`` drop, and what an additive mask
        does: bias or scores at or below half of their dtype's lowest number.
        """
        source = self._source
        if source is None:
            return self._kept(None)
        if source.kind == "used":
            return self._kept(None, source.tensor() != 0)
        return self._kept(source.scores())

    def _kept(self, replayed: Tensor | None, kept: Tensor | None = None) -> Tensor | None:
        rows = None if self.rows is None else self.rows[..., None]
        kept = _both(kept, _both(self._masked(), rows))
        for added in (self.bias, replayed):
            if added is not None:
                kept = _both(kept, added > torch.finfo(added.dtype).min / 2)
        return kept

    def _masked(self) -> Tensor | None:
        """What mask and causal flag keep, whichever rows count."""
        if not self.causal:
            return self.mask
        ones = torch.ones(self.shape[2:], dtype=torch.bool, device=self.query.device)
        return _both(self.mask, ones.tril()[None, None])

    def valid_rows(self) -> Tensor:
        """The rows that count and have a key left, boolean ``(b, h, q)``."""
        kept: Tensor | None
        keep = self.keep() if self.is_replayed else None
        if keep is not None:
            kept, device = keep.any(-1), keep.device
        else:  # no map of queries x keys is made
            device = self.query.device
            kept = rows_with_keys(Masks(self.mask, self.bias, self.causal, self.shape), device)
            kept = _both(kept, self.rows)
        if kept is None or self.shape[3] == 0:
            return torch.full(self.shape[:3], self.shape[3] > 0, device=device)
        return kept.expand(self.shape[:3])

    def scores(self) -> Tensor:
        """Scaled products plus bias, ``(b, h, q, k)``; -inf where an entry does not count.

        Computed in float32 at least, whatever the inputs and autocast: scores rounded to bfloat16
        give gradients that are wrong near convergence. What a dropped entry held, NaN too, reaches
        neither value nor gradient.
        """
        replayed = None if self._source is None else self._source.scores()
        keep = self._kept(replayed)
        raw = self._products(keep) if replayed is None else widen(replayed)
        return raw if keep is None else torch.where(keep, raw, -torch.inf)

    def _products(self, keep: Tensor | None) -> Tensor:
        query, key, bias = widen(self.query), widen(self.key), self.bias
        groups = key.shape[1]
        if keep is not None:  # 0 * NaN is NaN: what is dropped must be gone before the product
            query = torch.where(keep.any(-1)[..., None], query, 0)
            key = torch.where(_per_group(keep.any(-2), groups)[..., None], key, 0)
            bias = None if bias is None else torch.where(keep, bias, 0)
        folded = rearrange(query, "b (g r) q d -> b g (r q) d", g=groups)
        products = inner_products(folded, key) * self.scale
        products = rearrange(products, "b g (r q) k -> b (g r) q k", r=query.shape[1] // groups)
        return products if bias is None else products + widen(bias)

    def probabilities(self) -> Tensor:
        """``(b, h, q, k)``; 0 where an entry does not count, so a row without keys is all 0."""
        if self._source is not None and self._source.kind == "used":
            used, kept = self._source.tensor(), self._kept(None)
            return widen(used if kept is None else torch.where(kept, used, 0))
        scores = self.scores()
        kept = scores > -torch.inf
        seen = kept.any(-1, keepdim=True)
        return torch.where(kept, torch.where(seen, scores, 0).softmax(-1), 0)

    def detach(self) -> Attention:
        """The same numbers without gradient."""
        return self._map(Tensor.detach, self.shape)

    def to(self, *args: Any, **kwargs: Any) -> Attention:
        """The same attention on another device or in another floating point dtype.

        Masks and rows stay boolean, and what a bias or scores dropped stays dropped. What is
        replayed is moved when it is computed.

        Args:
            args: as of :meth:`torch.Tensor.to`: a device, a dtype, both, or a tensor.
            kwargs: ``device``, ``dtype``, ``non_blocking``, ``copy``.

        Raises:
            OptionError: a dtype that is not floating point.

        Examples:
            >>> attention = Attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
            >>> attention.to("cpu", torch.float16).query.dtype
            torch.float16
        """
        destination = Destination.of(args, kwargs)
        return self._map(destination.move, self.shape, of_scores=destination.move_scores)

    def pin_memory(self) -> Attention:
        """The same attention in page-locked memory, from where it moves without waiting."""
        return self._map(Tensor.pin_memory, self.shape)

    def trackable(self) -> Attention:
        """The same attention, of which autograd may save every tensor.

        Tensors that were made under ``torch.inference_mode()`` are copied. Itself, where there are
        none, and inside of inference mode.

        Examples:
            >>> with torch.inference_mode():
            ...     attention = Attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
            >>> attention.trackable().query.is_inference()
            False
        """
        if torch.compiler.is_compiling() or not self.is_inference():
            return self
        return self if torch.is_inference_mode_enabled() else self._map(trackable, self.shape)

    def is_inference(self) -> bool:
        """Whether it holds a tensor that was made under ``torch.inference_mode()``."""
        return any(map(is_inference, self._tensors()))

    def take(self, index: Tensor | slice) -> Attention:
        """Examples of the batch, in the order of ``index``; one may come several times."""
        b, *rest = self.shape
        positions = torch.arange(b, device=getattr(index, "device", None))[index]

        def chosen(x: Tensor) -> Tensor:
            return x if x.shape[0] == 1 != b else x[index]

        return self._map(chosen, (len(positions), *rest))

    def with_rows(self, rows: Tensor | None) -> Attention:
        """The same attention, in which these query positions count, ``(b, q)``; None: all."""
        made = self.__copy__()
        made.rows = _as_rows(rows, self.shape)
        return made

    def _map(
        self,
        function: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        *,
        of_scores: Callable[[Tensor], Tensor] | None = None,
    ) -> Attention:
        """Every tensor through ``function``, which keeps the axes where they are.

        A bias and given scores go through ``of_scores`` instead, where there is one.
        """

        def of(x: Tensor | None) -> Tensor | None:
            return None if x is None else function(x)

        of_scores = of_scores or function
        source = self._source
        made = Attention.__new__(Attention)
        made.shape = tuple(shape)  # type: ignore[assignment]
        made._query, made._key, made.value = of(self._query), of(self._key), of(self.value)
        made.mask, made.rows = of(self.mask), of(self.rows)
        made.bias = None if self.bias is None else of_scores(self.bias)
        made.scale, made.causal = self.scale, self.causal
        made._source = None
        if source is not None:
            made._source = source.map(of_scores if source.kind == "scores" else function)
        return made

    def _tensors(self) -> list[Tensor]:
        """Every tensor that is held; what is replayed is not computed for it."""
        held = None if self._source is None else self._source.held
        known = (self._query, self._key, self.value, self.mask, self.bias, self.rows, held)
        return [x for x in known if x is not None]

    def __copy__(self) -> Attention:
        made = Attention.__new__(Attention)
        for name in self.__slots__:
            setattr(made, name, getattr(self, name))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What a deep copy and a pickle hold: tensors without gradient, replayed ones computed."""
        kept = self._map(portable, self.shape)
        state = {name: getattr(kept, name) for name in self.__slots__}
        if kept._source is not None:
            with torch.no_grad():
                state["_source"] = kept._source._replace(of=kept._source.tensor())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def between(self, query_tokens: Tokens, key_tokens: Tokens) -> Attention:
        """The block of some rows and some keys, *renormalised over the block's own scores*.

        Args:
            query_tokens: a slice, positions, or a boolean ``(b, q)``. Where examples select
                unequally many, their tokens are packed to the front; the padding never counts.
            key_tokens: the same for the keys.

        Examples:
            >>> scores = torch.tensor([[[[0.0, 1.0, 2.0]]]])
            >>> Attention.from_scores(scores).between([0], [0, 2]).probabilities()
            tensor([[[[0.1192, 0.8808]]]])

        Source: Wang et al. 2022 (DiDE), "Cross-Modal Attention Distillation", the teacher's side.
        """
        b, h, q, k = self.shape
        rows, keys = Selection(query_tokens, q), Selection(key_tokens, k)

        def block(x: Tensor) -> Tensor:
            return keys.along(rows.along(x, 2), 3)

        masked = self._masked()
        kept = None if masked is None else block(masked)
        mask = _both(kept, _both(rows.present(2), keys.present(3)))
        counted = None if self.rows is None else rows.along(self.rows, 2)
        source = self._source
        if source is not None:
            return Attention.replayed(
                (b, h, rows.count, keys.count),
                scores=lambda: block(source.scores()),
                query=None if self._query is None else rows.along(self._query, 2),
                key=None if self._key is None else keys.along(self._key, 2),
                mask=mask,
                rows=counted,
            )
        return Attention(
            rows.along(self.query, 2),
            keys.along(self.key, 2),
            None if self.value is None else keys.along(self.value, 2),
            scale=self.scale,
            mask=mask,
            bias=None if self.bias is None else block(self.bias),
            rows=counted,
        )

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={size}" for name, size in zip("bhqk", self.shape, strict=True))
        return f"Attention({facts}{', causal' if self.causal else ''})"


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Kept by both; None keeps everything."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _joined(what: str, tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """The examples of several parts; known of all of them, or of none."""
    given = [x for x in tensors if x is not None]
    if not given:
        return None
    if len(given) < len(tensors):
        raise ShapeError(f"some attentions to concatenate hold {what}, others none")
    if len({x.shape[1:] for x in given}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ShapeError(f"the {what} of attentions to concatenate are of one size; got {shapes}")
    return torch.cat([x.expand(b, *x.shape[1:]) for x, b in zip(given, sizes, strict=True)])


def _joined_masks(
    masks: Sequence[Tensor | None], sizes: Sequence[int], *, nothing: float
) -> Tensor | None:
    """Masks, biases or rows of several parts; a part without one has ``nothing`` everywhere.

    Models leave a mask out of a batch that has no padding.
    """
    given = [x for x in masks if x is not None]
    if not given:
        return None
    # one entry for all heads or rows becomes one for each, where another part tells them apart
    whole = [max(lengths) for lengths in zip(*(x.shape[1:] for x in given), strict=True)]
    alone = given[0].new_full((1,) * given[0].ndim, nothing)
    parts = zip(masks, sizes, strict=True)
    return torch.cat([(alone if x is None else x).expand(b, *whole) for x, b in parts])


def _known(what: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise CaptureError(
            f"this Attention holds no {what}: it was made from scores or probabilities; "
            "losses and signals that need them take an Attention that was captured"
        )
    return tensor


def widen(x: Tensor) -> Tensor:
    """At least float32, half precision is for storage; and nothing that autograd cannot save."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else trackable(x)


def inner_products(one: Tensor, other: Tensor) -> Tensor:
    """``(n, d), (m, d) -> (n, m)`` in the tensors' own dtype, whatever autocast says."""
    if not torch.amp.is_autocast_available(one.device.type):  # meta
        return one @ other.mT
    with torch.autocast(one.device.type, enabled=False):
        return one @ other.mT


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


def _check_heads(query: Tensor, key: Tensor) -> None:
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


def _as_map(name: str, x: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """A mask or bias with all four axes, each 1 or whole."""
    if x is None:
        return None
    if name == "mask" and x.dtype != torch.bool:
        raise ShapeError(f"mask is boolean, True = keep; got {x.dtype} (additive masks are `bias`)")
    full = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape)) if x.ndim < 4 else x
    if full.ndim != 4 or not all(
        n in (1, whole) for n, whole in zip(full.shape, shape, strict=True)
    ):
        raise ShapeError(
            f"{name} of shape {tuple(x.shape)} does not broadcast to (b, h, q, k) = {tuple(shape)}"
        )
    return full


def _as_rows(rows: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """Rows as ``(b or 1, h or 1, q)``."""
    if rows is None:
        return None
    full = rows[:, None] if rows.ndim == 2 else rows
    b, h, q, _ = shape
    fits = full.ndim == 3 and full.shape[0] in (1, b) and full.shape[1] in (1, h)
    if rows.dtype != torch.bool or not fits or full.shape[2] != q:
        raise ShapeError(
            f"rows is boolean (b, q) or (b, 1 or h, q) for (b, h, q, k) = {tuple(shape)}; "
            f"got {rows.dtype} {tuple(rows.shape)}"
        )
    return full
