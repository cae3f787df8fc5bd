"""Adapters that lie about their models, one lie each, over towers that mix patches or do not.

A kind of lie is a function of what the true adapter says; ``planted()`` applies every kind to every
architecture and tower that it can be told of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import distillkit as dk

from . import layout_models as models

Change = Callable[[dk.TokenLayout, int], dk.TokenLayout]
"""Of a layout and the number of examples."""


class Lying:
    """An adapter whose layout or signals are changed."""

    def __init__(
        self,
        adapter: Any,
        lay: Change | None = None,
        say: Callable[[dk.Signals, dk.Record, dk.TokenLayout], dk.Signals] | None = None,
    ) -> None:
        self._adapter, self._lay, self._say = adapter, lay, say

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def for_model(self, model: nn.Module) -> Lying:
        return Lying(self._adapter.for_model(model), self._lay, self._say)

    def layout(self, batch: Any, record: dk.Record) -> dk.TokenLayout:
        found = self._adapter.layout(batch, record)
        return found if self._lay is None else self._lay(found, len(batch["ids"]))

    def signals(self, record: dk.Record, output: Any, layout: dk.TokenLayout) -> dk.Signals:
        found = self._adapter.signals(record, output, layout)
        return found if self._say is None else self._say(found, record, layout)


class Planted(NamedTuple):
    """One lie.

    Attributes:
        kind: what is wrong.
        model: the architecture.
        tower: what makes its patches.
        factory: of a case of the kit.
    """

    kind: str
    model: str
    tower: str
    factory: Callable[[], tuple[Any, ...]]


def lying(factory: Callable[[], tuple[Any, ...]], **lie: Any) -> Callable[[], tuple[Any, ...]]:
    def changed() -> tuple[Any, ...]:
        model, batch, adapter = factory()
        return model, batch, Lying(adapter, **lie)

    return changed


def of_modality(modality: str, change: Callable[..., dk.ModalityTokens]) -> Change:
    """A change of one modality's tokens, wherever they are."""

    def lay(layout: dk.TokenLayout, examples: int) -> dk.TokenLayout:
        streams = {
            name: dataclasses.replace(
                stream,
                modalities={
                    m: change(tokens, examples) if m == modality else tokens
                    for m, tokens in stream.items()
                },
            )
            for name, stream in layout.items()
        }
        return dk.TokenLayout(streams, layout.pairs)

    return lay


def of_padding(change: Callable[[Tensor], Tensor]) -> Change:
    def lay(layout: dk.TokenLayout, _: int) -> dk.TokenLayout:
        streams = {
            name: stream
            if stream.valid is None
            else dataclasses.replace(stream, valid=change(stream.valid))
            for name, stream in layout.items()
        }
        return dk.TokenLayout(streams, layout.pairs)

    return lay


def places(positions: slice | Tensor, examples: int) -> Tensor:
    """Positions as indices ``(b, m)``."""
    if isinstance(positions, slice):
        return torch.arange(positions.start, positions.stop).expand(examples, -1)
    return positions.nonzero()[:, 1].view(examples, -1)


def shifted(tokens: dk.ModalityTokens, examples: int) -> dk.ModalityTokens:
    """One token too early."""
    return dataclasses.replace(
        tokens, positions=(places(tokens.positions, examples) - 1).clamp_min(0)
    )


def rotated(tokens: dk.ModalityTokens, examples: int) -> dk.ModalityTokens:
    """The last of them first."""
    return dataclasses.replace(tokens, positions=places(tokens.positions, examples).roll(1, 1))


def transposed(tokens: dk.ModalityTokens, examples: int) -> dk.ModalityTokens:
    """Column by column."""
    turned = places(tokens.positions, examples).view(-1, 4, 4).mT.flatten(1)
    return dataclasses.replace(tokens, positions=turned)


def mirrored(tokens: dk.ModalityTokens, examples: int) -> dk.ModalityTokens:
    """Every row from right to left."""
    turned = places(tokens.positions, examples).view(-1, 4, 4).flip(2).flatten(1)
    return dataclasses.replace(tokens, positions=turned)


def with_grid(*grid: int) -> Callable[..., dk.ModalityTokens]:
    return lambda tokens, _: dataclasses.replace(tokens, grid=grid, extents=None)


def with_special(*special: int) -> Callable[..., dk.ModalityTokens]:
    return lambda tokens, _: dataclasses.replace(tokens, special=special)


def swapped(layout: dk.TokenLayout, _: int) -> dk.TokenLayout:
    """The text where the image is, and the image where the text is."""
    streams = {
        name: dataclasses.replace(
            stream, modalities={"text": stream["image"], "image": stream["text"]}
        )
        for name, stream in layout.items()
        if len(stream) == 2
    }
    return dk.TokenLayout(streams, layout.pairs)


def exchanged_towers(factory: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
    """The text's attention is looked for in the image's tower, and the reverse."""

    def changed() -> tuple[Any, ...]:
        model, batch, _ = factory()
        tables = models.tables("dual", models.IMAGE, models.TEXT)
        tables["streams"] = {"text": "image.blocks.*", "image": "text.blocks.*"}
        return model, batch, dk.DeclarativeAdapter(**tables)

    return changed


def reversed_layers(signals: dk.Signals, *_: object) -> dk.Signals:
    names = [name for name in signals if name.startswith("attention.")]
    return signals.with_values({name: list(signals[name])[::-1] for name in names})


def exchanged_sides(signals: dk.Signals, record: dk.Record, layout: dk.TokenLayout) -> dk.Signals:
    """What words see of the image, for what the image sees of the words."""
    del record, layout
    values = {
        f"attention.{one}": list(signals[f"attention.{other}"])
        for one, other in (("text_to_image", "image_to_text"), ("image_to_text", "text_to_image"))
        if f"attention.{one}" in signals and f"attention.{other}" in signals
    }
    return signals.with_values(values)


def one_layer_short(signals: dk.Signals, *_: object) -> dk.Signals:
    names = [name for name in signals if name.startswith("attention.")]
    return signals.with_values({name: list(signals[name])[1:] for name in names})


def overwritten(factory: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
    """Of two runs of the image, the second has taken the place of the first."""

    def second(tokens: dk.ModalityTokens, examples: int) -> dk.ModalityTokens:
        return dk.ModalityTokens(places(tokens.positions, examples)[:, 16:], grid=(4, 4))

    return lying(factory, lay=of_modality("image", second))


def kinds_for_words(model: str, tower: str) -> Callable[[], tuple[Any, ...]]:
    """The layout takes the kinds of tokens for words."""
    right = models.right(model, tower)

    def changed() -> tuple[Any, ...]:
        made, batch, _ = right()
        made.kinds = nn.Embedding(3, 16)
        words, forward = made.words.forward, made.forward
        batch["kinds"] = torch.tensor([[2, 1, 1, 0, 0, 1]] * 3)

        def with_kinds(ids: Tensor, mask: Tensor, pictures: Tensor, kinds: Tensor) -> Any:
            made.words.forward = lambda x: words(x) + made.kinds(kinds)
            return forward(ids, mask, pictures)

        made.forward = with_kinds
        tables = models.tables(model, models.IMAGE, {**models.TEXT, "ids": "kinds"})
        tables["inputs"] = {**tables["inputs"], "kinds": "kinds"}
        return made, batch, dk.DeclarativeAdapter(**tables)

    return changed


CAUGHT_BY = {
    "patches one token early": "layout_covers_every_position_once",
    "words one token early": "text_moves_only_text_tokens",
    "patches in a ring": "a_patch_moves_its_own_cell",
    "grid transposed": "a_patch_moves_its_own_cell",
    "rows mirrored": "a_patch_moves_its_own_cell",
    "grid of 2 x 8 for 4 x 4": "a_patch_moves_its_own_cell",
    "grid of 16 x 1 for 4 x 4": "a_patch_moves_its_own_cell",
    "special word off by one": "special_tokens_hold_no_content",
    "special patch on the other side": "image_moves_only_image_tokens",
    "modalities swapped": "image_moves_only_image_tokens",
    "towers exchanged": "text_moves_only_text_tokens",
    "mask inverted": "masks_agree_with_padding",
    "padding on the other side": "masks_agree_with_padding",
    "padding forgotten": "masks_agree_with_padding",
    "a run overwritten by the next": "layout_covers_every_position_once",
    "kinds for words": "text_moves_only_text_tokens",
    "layers in reverse": "attention_is_what_the_streams_define",
    "a layer short": "attention_is_what_the_streams_define",
    "queries and keys exchanged": "attention_is_what_the_streams_define",
}
"""Kind of lie -> the check that catches it."""


def verdict(kind: str, tower: str) -> str:
    """What the kit says of a lie: ``failed``, or ``unverified`` where nothing can show it."""
    unseen = tower == "mixing" and CAUGHT_BY[kind] == "a_patch_moves_its_own_cell"
    return "unverified" if unseen else "failed"


def planted() -> Iterator[Planted]:
    """Every lie."""
    plain: dict[str, dict[str, Any]] = {
        "patches one token early": {"lay": of_modality("image", shifted)},
        "words one token early": {"lay": of_modality("text", shifted)},
        "patches in a ring": {"lay": of_modality("image", rotated)},
        "grid transposed": {"lay": of_modality("image", transposed)},
        "rows mirrored": {"lay": of_modality("image", mirrored)},
        "grid of 2 x 8 for 4 x 4": {"lay": of_modality("image", with_grid(2, 8))},
        "grid of 16 x 1 for 4 x 4": {"lay": of_modality("image", with_grid(16, 1))},
        "special word off by one": {"lay": of_modality("text", with_special(1))},
        "modalities swapped": {"lay": swapped},
        "mask inverted": {"lay": of_padding(lambda valid: ~valid)},
        "padding on the other side": {"lay": of_padding(lambda valid: valid.flip(1))},
        "padding forgotten": {"lay": of_padding(torch.ones_like)},
        "layers in reverse": {"say": reversed_layers},
        "a layer short": {"say": one_layer_short},
        "queries and keys exchanged": {"say": exchanged_sides},
    }
    for kind, lie in plain.items():
        for model in models.MODELS:
            if not _can_be_told(kind, model):
                continue
            for tower in models.TOWERS:
                yield Planted(kind, model, tower, lying(models.right(model, tower), **lie))
    for model in models.MODELS:
        behind = models.right(
            model, "attending", {**models.IMAGE, "special": [-1]}, around={"last": True}, count=17
        )
        lie = of_modality("image", with_special(0))
        yield Planted("special patch on the other side", model, "attending", lying(behind, lay=lie))
        tiles = models.right(model, "attending", models.TILES, count=32, pictures=2)
        yield Planted("a run overwritten by the next", model, "attending", overwritten(tiles))
    for tower in models.TOWERS:
        dual = models.right("dual", tower)
        yield Planted("towers exchanged", "dual", tower, exchanged_towers(dual))
    for model in ("fusion", "dual", "cross"):
        yield Planted("kinds for words", model, "local", kinds_for_words(model, "local"))


def _can_be_told(kind: str, model: str) -> bool:
    if kind == "modalities swapped":
        return model in ("fusion", "decoder")
    if kind == "queries and keys exchanged":
        return model != "cross"  # it has one direction
    # where words look at patches, padded words are rows that nothing masks
    return not (model == "cross" and "padding" in kind) and not (
        model == "cross" and "mask" in kind
    )
