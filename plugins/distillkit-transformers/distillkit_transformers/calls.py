"""The tokens of several calls of one encoder in a forward, as further examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

import distillkit as dk


def stack_streams(parts: Sequence[dk.StreamTokens]) -> dk.StreamTokens:
    """Words and patches of each call, in the order in which ``"...#*"`` stacks attentions.

    The words are the same in every call. A call of fewer patches than another is padded at the end
    of its sequence, as its attention is, and its further patches lie nowhere.
    """
    masks = [part.valid for part in parts if part.valid is not None]
    length = max(mask.shape[1] for mask in masks)
    valid = _stacked([pad(mask, (0, length - mask.shape[1])) for mask in masks])
    images = [part["image"] for part in parts]
    text = parts[0]["text"]
    shapes = {image.grid for image in images}
    return dk.StreamTokens(
        {
            "text": dk.ModalityTokens(
                text.positions,
                text.special,
                extents=_repeated(text.extents, len(parts)),
                ids=_repeated(text.ids, len(parts)),
            ),
            "image": dk.ModalityTokens(
                _stacked([_lengthened(image.positions, length) for image in images]),
                images[0].special,
                images[0].grid if len(shapes) == 1 else None,
                _stacked_extents(images),
            ),
        },
        valid,
    )


def _lengthened(positions: slice | Tensor, length: int) -> Tensor:
    """Positions of the last tokens of a sequence, and of those that pad it behind them."""
    assert isinstance(positions, Tensor)
    stop = int(positions.max()) + 1 if positions.numel() else length
    more = torch.arange(stop, length, device=positions.device)
    return torch.cat([positions, more.expand(len(positions), -1)], 1)


def _stacked_extents(images: Sequence[dk.ModalityTokens]) -> Tensor | None:
    given = [image.extents for image in images if image.extents is not None]
    if len(given) < len(images):
        return None
    most = max(one.shape[1] for one in given)
    return _stacked([pad(one, (0, 0, 0, most - one.shape[1])) for one in given])


def _stacked(calls: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(calls), 1).flatten(0, 1)


def _repeated(x: Tensor | None, calls: int) -> Tensor | None:
    return None if x is None else x.repeat_interleave(calls, 0)
