"""The two towers of a :class:`ViltDualEncoder`, each half of a ViLT."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.vilt.modeling_vilt import (
    TextEmbeddings,
    ViltEncoder,
    ViltPatchEmbeddings,
    ViltPooler,
)

from .vilt_config import ViltDualEncoderConfig
from .vilt_patches import Patches, choose_patches, spread_positions


class Encoding(NamedTuple):
    """Texts or images that a tower has read, to be used as often as needed.

    Attributes:
        pooled: ``(b, d)``; ``(b, 2, d)`` of pairs of images.
        states: the tokens, ``(b, n, d)``; of pairs of images ``(2b, n, d)``, row ``2 i + c`` of
            image c of example i.
    """

    pooled: Tensor
    states: Tensor


class _Tower(nn.Module):
    """Layers, a norm and a pooler, as every half of a ViLT has them."""

    def __init__(self, config: ViltDualEncoderConfig) -> None:
        super().__init__()
        self.encoder = ViltEncoder(config)  # type: ignore[no-untyped-call]
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViltPooler(config)  # type: ignore[no-untyped-call]
        for layer in self.encoder.layer:
            # transformers leaves out the dropout between the two layers of the MLP, which ViLT has
            between: Any = layer.intermediate
            act = between.intermediate_act_fn
            act = act if isinstance(act, nn.Module) else _Function(act)
            dropout = nn.Dropout(config.hidden_dropout_prob)
            between.intermediate_act_fn = nn.Sequential(act, dropout)

    def encode(self, embedded: Tensor, mask: Tensor | None) -> Encoding:
        """The pooled and the single states of embedded tokens ``(b, n, d)``."""
        added = None
        if mask is not None:
            kept = (mask != 0)[:, None, None]
            added = torch.zeros(kept.shape, dtype=embedded.dtype, device=embedded.device)
            added = added.masked_fill(~kept, torch.finfo(embedded.dtype).min)
        states = self.layernorm(self.encoder(embedded, attention_mask=added)[0])
        return Encoding(self.pooler(states), states)


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator, no-any-return]


class TextTower(_Tower):
    """Reads texts alone."""

    def __init__(self, config: ViltDualEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)  # type: ignore[no-untyped-call]
        self.token_type = nn.Embedding(1, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Encoding:
        embedded = self.embeddings(input_ids=input_ids) + self.token_type.weight
        return self.encode(embedded, attention_mask)


class ImageTower(_Tower):
    """Reads images alone: [CLS], then the patches row by row, padding last."""

    def __init__(self, config: ViltDualEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = ImageEmbeddings(config)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        patches: Tensor | None = None,
        token_type: Tensor | None = None,
    ) -> Encoding:
        """Encode images ``(b, 3, height, width)``.

        Args:
            pixel_values: the images, padded to one size with 0.
            pixel_mask: ``(b, height, width)``, 1 for pixels of the image.
            patches: ``(b, n, 2)``: rows and columns of the patches to see; None: all.
            token_type: ``(b,)``: 0 for a first image, 1 for a second one; None: all are first.
        """
        embedded, mask = self.embeddings(pixel_values, pixel_mask, patches, token_type)
        return self.encode(embedded, mask)


class ImageEmbeddings(nn.Module):
    """[CLS] and patches with their positions and their token type."""

    def __init__(self, config: ViltDualEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.patch_embeddings = ViltPatchEmbeddings(config)  # type: ignore[no-untyped-call]
        sides = [
            size // patch
            for size, patch in zip(
                self.patch_embeddings.image_size, self.patch_embeddings.patch_size, strict=True
            )
        ]
        self.side = sides[0], sides[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, sides[0] * sides[1] + 1, width))
        self.token_type = nn.Embedding(config.image_types, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        patches: Tensor | None,
        token_type: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        every = self.patch_embeddings(pixel_values)
        grid = int(every.shape[2]), int(every.shape[3])
        chosen = self.choose(pixel_mask, len(every), grid, patches, every.device)
        every = every.flatten(2).mT
        seen = every.gather(1, chosen.raster[..., None].expand(-1, -1, every.shape[2]))
        table = self.position_embeddings[:, 1:].mT.reshape(1, -1, *self.side)
        seen = seen + spread_positions(table, chosen)
        first = (self.cls_token + self.position_embeddings[:, :1]).expand(len(seen), -1, -1)
        embedded = self.dropout(torch.cat([first, seen], 1))
        kind = self.token_type.weight[:1]
        if token_type is not None:
            kind = self.token_type(token_type)
        mask = torch.cat([chosen.real.new_ones(len(seen), 1), chosen.real], 1)
        return embedded + kind[:, None], mask

    def choose(
        self,
        pixel_mask: Tensor | None,
        count: int,
        grid: tuple[int, int],
        given: Tensor | None,
        device: torch.device,
    ) -> Patches:
        """The patches of this forward; a method, so that an adapter reads what it returned."""
        return choose_patches(pixel_mask, count, grid, given, device)
