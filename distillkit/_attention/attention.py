"""What one attention operation consumed; its scores and probabilities are computed on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._transfer import Destination, is_fleeting, is_inference, portable, trackable
from ..errors import CaptureError, OptionError, ShapeError
from .keep import Keep, all_rows, both, is_kept
from .precision import inner_products, widen
from .selection import Selection, Tokens
from .source import (
    Products,
    Replay,
    Scores,
    Source,
    Weights,
    checked_products,
    concatenate_sources,
    join_known,
    split_heads,
)


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

    __slots__ = ("_keep", "_source", "_valid", "value")

    _keep: Keep
    _source: Source
    _valid: Tensor | None  # the valid rows, once somebody has asked
    value: Tensor | None
    """The values ``(b, g, k, e)``, where they were seen."""

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
        self._source = checked_products(query, key, scale)
        b, h, q, _ = query.shape
        shape = (b, h, q, key.shape[2])
        self._keep = Keep.checked(shape, mask, bias, rows, causal=causal)
        self._valid = None
        self.value = value

    @classmethod
    def from_scores(
        cls, scores: Tensor, *, mask: Tensor | None = None, rows: Tensor | None = None
    ) -> Attention:
        """An attention known by its scores ``(b, h, q, k)`` alone; -inf marks dropped keys."""
        return cls._from(Scores(Replay(scores)), scores.shape, mask=mask, rows=rows)

    @classmethod
    def from_probabilities(
        cls, probabilities: Tensor, *, mask: Tensor | None = None, rows: Tensor | None = None
    ) -> Attention:
        """An attention known by its probabilities ``(b, h, q, k)`` alone; 0 marks dropped keys."""
        source = Weights(Replay(probabilities))
        return cls._from(source, probabilities.shape, mask=mask, rows=rows)

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

        Raises:
            OptionError: neither ``scores`` nor ``used``, or both.
        """
        source: Source
        if scores is not None and used is None:
            source = Scores(Replay(scores), query, key)
        elif used is not None and scores is None:
            source = Weights(Replay(used), as_used=True, query=query, key=key)
        else:
            raise OptionError(
                "Attention.replayed takes one of two functions: scores= computes all scores, used= "
                f"all probabilities as the model used them; got {'both' if scores else 'none'}"
            )
        return cls._from(source, shape, value, mask=mask, rows=rows)

    @classmethod
    def _from(
        cls,
        source: Source,
        shape: Sequence[int],
        value: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Attention:
        if len(shape) != 4:
            raise ShapeError(f"an attention map is (b, h, q, k), 4 axes; got shape {tuple(shape)}")
        b, h, q, k = shape
        return cls._made(source, Keep.checked((b, h, q, k), mask, rows=rows), value)

    @classmethod
    def _made(cls, source: Source, keep: Keep, value: Tensor | None) -> Attention:
        made = cls.__new__(cls)
        made._source, made._keep, made._valid = source, keep, None
        made.value = value
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

    def through(self, latents: Attention) -> Attention:
        r"""Where these queries look through latents: what each latent looks at, by its weight.

        .. math:: P_{qk} = \sum_m P_{qm} \, \frac{1}{|G_m|} \sum_{g \in G_m} P_{gmk}

        for tokens that no place can be said of (a resampler's, a Q-Former's). :math:`G_m` are the
        heads in which latent m counts and keeps a key. A latent without any is dropped, and the
        rows are renormalised over the others first. Rows that do not count here do not count in
        the result, which is computed when it is asked for, with the gradient of both.

        Args:
            latents: the attention of the latents, ``(b, g, m, k)``, for queries over them,
                ``(b, h, q, m)``.

        Returns:
            ``(b, h, q, k)``, known by its probabilities.

        Raises:
            ShapeError: the batches or the numbers of latents differ.

        Examples:
            >>> of_text = Attention.from_probabilities(torch.tensor([[[[0.5, 0.5]]]]))
            >>> of_latents = Attention.from_probabilities(
            ...     torch.tensor([[[[0.2, 0.8], [0.6, 0.4]]]])
            ... )
            >>> of_text.through(of_latents).probabilities()
            tensor([[[[0.4000, 0.6000]]]])
        """
        b, h, q, m = self.shape
        if latents.shape[0] != b or latents.shape[2] != m:
            raise ShapeError(
                "through composes queries over latents (b, h, q, m) with latents over keys "
                f"(b, g, m, k), of equal b and m; got {self.shape} and {latents.shape}. Latents "
                "that ran for other examples are put in order with latents.take(index)"
            )

        def composed() -> Tensor:
            seen = latents.valid_rows()
            reads = torch.where(seen[..., None], _softmax(latents.scores()), 0).sum(1)
            reads = reads / seen.sum(1).clamp(min=1)[..., None]
            kept = seen.any(1)[:, None, None, :]
            weights = _softmax(torch.where(kept, self.scores(), -torch.inf))
            return inner_products(weights, reads.mT[:, None])

        keep = Keep((b, h, q, latents.shape[3]), rows=self._keep.rows)
        return Attention._made(Weights(Replay(composed)), keep, None)

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
        source = concatenate_sources([part._source for part in parts])
        keep = Keep.concatenate([part._keep for part in parts], first.device)
        return cls._made(source, keep, join_known("values", [part.value for part in parts]))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(b, h, q, k)`` of scores and probabilities."""
        return self._keep.shape

    @property
    def query(self) -> Tensor:
        """``(b, h, q, d)``."""
        return _known("queries", self._source.query)

    @property
    def key(self) -> Tensor:
        """``(b, g, k, d)``."""
        return _known("keys", self._source.key)

    @property
    def scale(self) -> float:
        """The factor of the products; NaN where there are no queries."""
        return self._source.scale

    @property
    def mask(self) -> Tensor | None:
        """The entries that are kept, boolean, broadcastable to ``(b, h, q, k)``; None: all."""
        return self._keep.mask

    @property
    def bias(self) -> Tensor | None:
        """The term that is added to the scaled products, broadcastable to ``(b, h, q, k)``."""
        return self._keep.bias

    @property
    def rows(self) -> Tensor | None:
        """The query positions that count, ``(b or 1, h or 1, q)``; None: all."""
        return self._keep.rows

    @property
    def causal(self) -> bool:
        """Whether row i sees the keys 0 ... i only."""
        return self._keep.causal

    @property
    def requires_grad(self) -> bool:
        """Whether a loss on this attention can teach anything."""
        bias = self._keep.bias
        return (bias is not None and bias.requires_grad) or self._source.requires_grad

    @property
    def is_replayed(self) -> bool:
        """Whether its scores are more than scaled products with a mask and a bias."""
        return not isinstance(self._source, Products)

    @property
    def is_as_used(self) -> bool:
        """Whether it is known by probabilities as a model used them, whatever they add up to."""
        return isinstance(self._source, Weights) and self._source.as_used

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        held = self._tensors()
        if held or isinstance(self._source, Products):
            return held[0].device
        return self._source.replay.tensor().device

    def keep(self) -> Tensor | None:
        """The entries that count, boolean, broadcastable to ``(b, h, q, k)``; None: all do.

        Dropped are what the mask, the causal flag and ``rows`` drop, and what an additive mask
        does: bias or scores at or below half of their dtype's lowest number.
        """
        source = self._source
        if isinstance(source, Products):
            return self._keep.entries(source.query.device)
        kept = source.kept()
        return both(self._keep.entries(kept.device), kept)

    def valid_rows(self) -> Tensor:
        """The rows that count and have a key left, boolean ``(b, h, q)``."""
        if self._valid is not None:
            return self._valid
        if isinstance(self._source, Products):
            found = self._keep.valid_rows(self._source.query.device)
        else:
            keep = self.keep()
            assert keep is not None  # a map drops what its own numbers drop
            found = all_rows(keep.any(-1), self.shape, keep.device)
        # compiled code keeps nothing; what torch.func maps, or inference mode makes, ends with it
        if not torch.compiler.is_compiling() and not is_fleeting(found):
            self._valid = found
        return found

    def scores(self) -> Tensor:
        """Scaled products plus bias, ``(b, h, q, k)``; -inf where an entry does not count.

        Computed in float32 at least, whatever the inputs and autocast: scores rounded to bfloat16
        give gradients that are wrong near convergence. What a dropped entry held, NaN too, reaches
        neither value nor gradient.
        """
        source = self._source
        if isinstance(source, Products):
            keep = self._keep.entries(source.query.device)
            raw = source.scores(keep, self._keep.bias)
        else:
            replayed = source.scores()
            keep = both(self._keep.entries(replayed.device), is_kept(replayed))
            raw = widen(replayed)
        return raw if keep is None else torch.where(keep, raw, -torch.inf)

    def probabilities(self) -> Tensor:
        """``(b, h, q, k)``; 0 where an entry does not count, so a row without keys is all 0."""
        if isinstance(self._source, Weights) and self._source.as_used:
            used = self._source.replay.tensor()
            keep = self._keep.entries(used.device)
            return widen(used if keep is None else torch.where(keep, used, 0))
        return _softmax(self.scores())

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
        return Attention._made(self._source, self._keep.with_rows(rows), self.value)

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
        of_scores = of_scores or function
        b, h, q, k = shape
        return Attention._made(
            self._source.map(function, of_scores),
            self._keep.map(function, of_scores, (b, h, q, k)),
            None if self.value is None else function(self.value),
        )

    def _tensors(self) -> list[Tensor]:
        """Every tensor that is held; what is replayed is not computed for it."""
        known = (*self._source.held, self.value, *self._keep.tensors)
        return [x for x in known if x is not None]

    def __copy__(self) -> Attention:
        return Attention._made(self._source, self._keep, self.value)

    def __getstate__(self) -> dict[str, Any]:
        """The contents of a copy: tensors without gradient, replayed ones computed."""
        kept = self._map(portable, self.shape)
        source = kept._source
        if not isinstance(source, Products):
            with torch.no_grad():
                source = replace(source, replay=Replay(source.replay.tensor()))
        return {"source": source, "keep": kept._keep, "value": kept.value}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._source, self._keep, self._valid = state["source"], state["keep"], None
        self.value = state["value"]

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
        _, _, q, k = self.shape
        rows, keys = Selection(query_tokens, q), Selection(key_tokens, k)
        held = self._tensors()
        device = held[0].device if held else None  # of a replayed map, which is not causal
        value = None if self.value is None else keys.along(self.value, 2)
        keep = self._keep.between(rows, keys, device)
        return Attention._made(self._source.between(rows, keys), keep, value)

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={size}" for name, size in zip("bhqk", self.shape, strict=True))
        return f"Attention({facts}{', causal' if self.causal else ''})"


def _softmax(scores: Tensor) -> Tensor:
    """Over the entries that are not -inf; a row of nothing else is all 0."""
    kept = scores != -torch.inf  # NaN of a broken model stays, and is seen
    seen = kept.any(-1, keepdim=True)
    return torch.where(kept, torch.where(seen, scores, 0).softmax(-1), 0)


def _known(what: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise CaptureError(
            f"this Attention holds no {what}: it was made from scores or probabilities; "
            "losses and signals that need them take an Attention that was captured"
        )
    return tensor
