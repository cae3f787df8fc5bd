"""Where each modality's tokens sit in a sequence and in the raw input, for one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ModalityTokens:
    """The tokens of one modality in one stream.

    Attributes:
        positions: where they sit in the sequence of n tokens: a slice, boolean ``(b, n)``, or
            indices ``(b, m)`` in reading order, where a model shuffles its tokens.
        special: their positions *within the modality* that stand for no word or patch ([CLS]), in
            every example. The first look at both sides compares them, a grid's length counts them,
            and the adapter kit changes none of them. Where a token lies, its extent alone says.
        grid: rows and columns of the patches, where the tokens are an image's.
        extents: where each token lies in the raw input, in the order of the positions: the
            characters ``(b, m, 2)`` of a text, start and stop; or boxes ``(b, m, 4)`` of an image,
            top, left, bottom, right as fractions of it before any resizing and cropping. A token
            of no size lies nowhere.
        ids: the vocabulary entries ``(b, m)`` of a text.
    """

    positions: slice | Tensor
    special: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None
    extents: Tensor | None = None
    ids: Tensor | None = None


@dataclass(frozen=True, eq=False)
class StreamTokens(Mapping[str, ModalityTokens]):
    """Modality -> its tokens in one stream.

    Attributes:
        modalities: the tokens of every modality in the sequence.
        valid: boolean ``(b, n)``: the tokens that are no padding; None: all of them.
    """

    modalities: Mapping[str, ModalityTokens]
    valid: Tensor | None = None

    def __getitem__(self, modality: str) -> ModalityTokens:
        return self.modalities[modality]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modalities)

    def __len__(self) -> int:
        return len(self.modalities)


@dataclass(frozen=True, eq=False)
class TokenLayout(Mapping[str, StreamTokens]):
    """Stream -> its tokens, for one forward; and which texts and images are pairs.

    A cross-attention stream, ``text_to_image``, has the rows of the layout's ``text`` and the keys
    of its ``image``.

    Attributes:
        streams: the tokens of every stream that is known.
        pairs: modality -> index ``(p,)``: where texts and images are encoded once and paired,
            pair i is text ``pairs["text"][i]`` with image ``pairs["image"][i]``.

    Examples:
        >>> text, image = ModalityTokens(slice(0, 8)), ModalityTokens(slice(8, 17), grid=(3, 3))
        >>> layout = TokenLayout({"joint": StreamTokens({"text": text, "image": image})})
        >>> layout["joint"]["image"].grid
        (3, 3)
    """

    streams: Mapping[str, StreamTokens]
    pairs: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, stream: str) -> StreamTokens:
        return self.streams[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)
