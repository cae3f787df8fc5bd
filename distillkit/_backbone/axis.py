"""The known facts about the tokens along one axis of a signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .._attention.selection import Selection
from .._transfer import Destination, is_inference, portable, trackable
from ..errors import ShapeError
from .layout import ModalityTokens, check_count
from .tokens import chosen


@dataclass(frozen=True, eq=False)
class TokenAxis:
    """The known facts about the tokens along one axis of a signal, in the order of that axis.

    Attributes:
        modality: whose tokens they are.
        valid: boolean ``(b, m)``: no padding; None: all of them.
        special: positions of tokens that stand for no word or patch, or boolean ``(b, m)``.
        grid: rows and columns of patches, or ``(b, g, 2)`` of several pictures.
        extents: ``(b, m, 2)`` characters, ``(b, m, 4)`` boxes, or ``(b, m, 6)`` boxes of several
            images or frames; nothing of no size and no padding lies anywhere.
        ids: vocabulary entries ``(b, m)``.
        positions: where they sit in their stream's sequence, as ``ModalityTokens.positions`` says;
            None: not known.
        length: the number of tokens in that sequence; None: not known.
    """

    modality: str
    valid: Tensor | None = None
    special: tuple[int, ...] | Tensor = ()
    grid: tuple[int, int] | Tensor | None = None
    extents: Tensor | None = None
    ids: Tensor | None = None
    positions: slice | Tensor | None = None
    length: int | None = None

    def take(self, index: Tensor | slice) -> TokenAxis:
        """Examples of the batch, in the order of ``index``."""
        return self._map(lambda x: chosen(x, index))

    def to(self, *args: Any, **kwargs: Any) -> TokenAxis:
        """The same tokens on another device; no dtype changes, since a place needs its digits.

        Args:
            args: as of :meth:`torch.Tensor.to`.
            kwargs: ``device``, ``dtype``, ``non_blocking``, ``copy``.

        Examples:
            >>> TokenAxis("text", ids=torch.tensor([[7, 8]])).to("cpu", torch.float16).ids
            tensor([[7, 8]])
        """
        return self._map(Destination.of(args, kwargs)._replace(dtype=None).move)

    def pin_memory(self) -> TokenAxis:
        """The same tokens in page-locked memory, from where they move without waiting."""
        return self._map(Tensor.pin_memory)

    def detach(self) -> TokenAxis:
        """The same tokens without gradient, which extents may have."""
        return self._map(Tensor.detach)

    def trackable(self) -> TokenAxis:
        """The same tokens, of which autograd may save every tensor; as of an ``Attention``."""
        return self._map(trackable) if self.is_inference() else self

    def is_inference(self) -> bool:
        """Whether a tensor of them was made under ``torch.inference_mode()``."""
        return any(is_inference(x) for x in vars(self).values() if isinstance(x, Tensor))

    def __getstate__(self) -> dict[str, Any]:
        """The contents of a copy or a pickle: tensors without gradient."""
        return vars(self._map(portable))

    @classmethod
    def concatenate(
        cls, parts: Sequence[TokenAxis], examples: Sequence[int | None] | None = None
    ) -> TokenAxis:
        """The examples of several forwards, one after another.

        Where one of them has no padding, its tokens are valid; what else one of them does not
        know, or where they differ, the whole does not know.

        Args:
            parts: the same tokens of each forward.
            examples: how many examples each forward had. An entry ``(1, m)`` stands for all of
                them, and for one where there is one. None: as many as the part's longest entry,
                where ``valid``, ``ids`` or ``positions`` tell.

        Raises:
            ShapeError: no parts; parts of other modalities or with other special tokens.

        Examples:
            >>> parts = [TokenAxis("text", ids=torch.tensor([[i, 9]])) for i in (7, 8)]
            >>> TokenAxis.concatenate(parts).ids
            tensor([[7, 9],
                    [8, 9]])
        """
        if not parts:
            raise ShapeError("there are no token axes to concatenate: pass at least one")
        counts = [_examples_of(part) for part in parts] if examples is None else list(examples)
        joined: dict[str, Any] = {}
        for one in fields(cls):
            given: Sequence[Any] = [getattr(part, one.name) for part in parts]
            if one.name == "valid":
                given = valid_everywhere(given, counts)
            if one.name == "special":
                given = _alike_special(given)
            if any(isinstance(x, Tensor) for x in given):
                joined[one.name] = joined_entries(given, counts)
            elif all(x == given[0] for x in given):
                joined[one.name] = given[0]
            elif one.default is not None:
                raise ShapeError(
                    f"token axes to concatenate are of the same tokens; their {one.name} is "
                    f"{', '.join(map(repr, given))}"
                )
        return cls(**joined)

    def without_special(self) -> TokenAxis:
        """The axis of the words or patches alone, without the special tokens.

        Examples:
            >>> axis = TokenAxis("text", special=(0,), ids=torch.tensor([[1, 7, 8]]))
            >>> axis.without_special().ids
            tensor([[7, 8]])
        """
        special = self.special_places()
        if not special:
            return replace(self, special=())
        changed: dict[str, Any] = {
            name: _without(x, special)
            for name, x in _tensors_of(self).items()
            if name not in ("positions", "special")
        }
        positions = self._positions_without(special)
        return replace(self, **changed, special=(), positions=positions)

    def special_places(self) -> tuple[int, ...]:
        """The places of the special tokens, the same in all examples.

        Raises:
            ShapeError: they are elsewhere in some examples (``special_ids``).
        """
        if not isinstance(self.special, Tensor):
            return self.special
        if not bool((self.special == self.special[:1]).all()):
            raise ShapeError(
                f"the special tokens of {self.modality} are at other places in each example, so "
                'that leaving them out would move the others; align = ["overlap"] compares by '
                "place, and leaves tokens out that lie nowhere"
            )
        return tuple(int(one) for one in self.special[:1].any(0).nonzero()[:, 0])

    def _positions_without(self, special: tuple[int, ...]) -> slice | Tensor | None:
        """Where the other tokens sit in their sequence; None: not known."""
        positions = self.positions
        if isinstance(positions, Tensor) and positions.dtype == torch.bool:
            rank = positions.long().cumsum(1) - 1
            dropped = torch.tensor(special, device=positions.device)
            return positions & ~torch.isin(rank, dropped)
        if isinstance(positions, Tensor):
            return _without(positions, special)
        if positions is None or positions.start is None or positions.stop is None:
            return None
        places: list[int] = list(range(positions.start, positions.stop))
        kept = [place for i, place in enumerate(places) if i not in special]
        if kept and kept[-1] - kept[0] + 1 == len(kept):
            return slice(kept[0], kept[-1] + 1)
        if self.valid is None:
            return None
        return torch.tensor(kept, device=self.valid.device).expand(len(self.valid), -1)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TokenAxis:
        """Every tensor through a function."""
        changed: dict[str, Any] = {name: function(x) for name, x in _tensors_of(self).items()}
        return replace(self, **changed)


def token_axis(
    tokens: ModalityTokens, modality: str, valid: Tensor | None, length: int | None = None
) -> TokenAxis:
    """The axis that one modality's tokens make, out of a stream with this padding.

    Args:
        tokens: where they sit.
        modality: whose they are.
        valid: boolean ``(b, n)`` of the whole stream; None: no padding.
        length: n, where neither ``valid`` nor boolean positions say it.
    """
    positions = tokens.positions
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        length = positions.shape[-1]
    if valid is not None:
        length = valid.shape[1]
    selected = None if length is None else Selection(positions, length)
    if selected is not None:
        present = selected.present(3)
        _check_tokens(tokens, modality, selected.count, packed=present is not None)
        if valid is not None:
            valid = selected.along(valid, 1)
            valid = valid if present is None else valid & present[:, 0, 0]
    extents = tokens.extents
    if extents is not None:
        _check_extents(extents, modality)
        examples = len(extents) if valid is None else len(valid)
        count = extents.shape[1] if selected is None else selected.count
        if len(extents) not in (1, examples) or extents.shape[1] != count:
            raise ShapeError(
                f"the {modality} extents are of {extents.shape[1]} tokens in {extents.shape[0]} "
                f"examples, but there are {count} {modality} tokens in {examples} examples"
            )
        if valid is not None:
            extents = torch.where(valid[..., None], extents.to(valid.device), 0)
    return TokenAxis(
        modality,
        valid,
        tokens.special,
        tokens.grid,
        extents,
        tokens.ids,
        positions=positions,
        length=length,
    )


def _without(x: Tensor, dropped: Sequence[int]) -> Tensor:
    """What is known of all tokens, ``(b, m, ...)``, of those that are not dropped."""
    kept = [i for i in range(x.shape[1]) if i not in dropped]
    return x[:, kept]


def _tensors_of(axis: TokenAxis) -> dict[str, Tensor]:
    """Field -> its tensor, of the fields that are tensors."""
    return {name: x for name, x in vars(axis).items() if isinstance(x, Tensor)}


def _examples_of(axis: TokenAxis) -> int | None:
    """How many examples it is of, where an entry tells; those of a grid may stand for all."""
    entries = _tensors_of(axis).items()
    for_all = ("extents", "grid", "special")
    return max((len(x) for name, x in entries if name not in for_all or len(x) > 1), default=None)


def _alike_special(parts: Sequence[tuple[int, ...] | Tensor]) -> Sequence[Any]:
    """Special tokens of several forwards, all as positions or all as masks."""
    masks = [x for x in parts if isinstance(x, Tensor)]
    if not masks or len({x.shape[1] for x in masks}) > 1:
        return [() if masks else x for x in parts]
    found = []
    for x in parts:
        mask = x if isinstance(x, Tensor) else torch.zeros_like(masks[0][:1])
        if not isinstance(x, Tensor):
            mask[:, list(x)] = True
        found.append(mask)
    return found


def _check_tokens(tokens: ModalityTokens, modality: str, count: int, *, packed: bool) -> None:
    """Refuse special tokens and a grid that so many tokens cannot have."""
    try:
        check_count(tokens, count)
    except ShapeError as error:
        raise ShapeError(f"the {modality} tokens: {error}") from None
    if packed and isinstance(tokens.grid, tuple):
        raise ShapeError(
            f"the {modality} tokens are a grid of {tokens.grid}, but examples have unequally many "
            "of them: a grid (b, g, 2) says the rows and columns of each"
        )
    special = tokens.special
    if isinstance(special, Tensor) and special.shape[1] != count:
        raise ShapeError(
            f"special of the {modality} tokens is (b, {count}), True where one is; got "
            f"{tuple(special.shape)}"
        )


def joined_entries(parts: Sequence[Any], counts: Sequence[int | None]) -> Tensor | None:
    """An entry of several forwards of ``counts`` examples; None where one lacks it."""
    tensors = [x for x in parts if isinstance(x, Tensor)]
    alike = {(x.dtype == torch.bool, x.shape[1:]) for x in tensors}
    if len(tensors) < len(parts) or len(alike) > 1:
        return None
    # one entry that stands for several examples in every forward stands for the whole
    for_all = all(len(x) == 1 != n for x, n in zip(tensors, counts, strict=True))
    if for_all and all(torch.equal(x, tensors[0]) for x in tensors):
        return tensors[0]
    return torch.cat(
        [
            x if len(x) != 1 or n is None else x.expand(n, *x.shape[1:])
            for x, n in zip(tensors, counts, strict=True)
        ]
    )


def valid_everywhere(
    parts: Sequence[Tensor | None], counts: Sequence[int | None]
) -> Sequence[Tensor | None]:
    """Where one forward has padding, another that has none keeps all its tokens."""
    given = next((x for x in parts if x is not None), None)
    if given is None:
        return parts
    filled = []
    for part, examples in zip(parts, counts, strict=True):
        count = 1 if examples is None else examples  # one entry stands for all of them
        filled.append(given.new_ones((count, *given.shape[1:])) if part is None else part)
    return filled


def _check_extents(extents: Tensor, modality: str) -> None:
    if extents.ndim != 3 or extents.shape[2] not in (2, 4, 6):
        raise ShapeError(
            f"the {modality} extents are (b, m, 2), characters from start to stop, or (b, m, 4), "
            "boxes as fractions of the raw image, (b, m, 6) of several images or frames; got "
            f"{tuple(extents.shape)}"
        )
