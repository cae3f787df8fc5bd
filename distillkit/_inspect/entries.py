"""What the entries of a batch are: words, pictures, masks, grids; and how to change them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..testing.perturb import is_content
from ..testing.words import is_mask, is_whole_numbers

_WORDS = {"ids", "id", "tokens"}
_NO_WORDS = {"type", "position", "positions", "segment"}


def says_ids(entry: str) -> bool:
    """Whether an entry's name says that it holds vocabulary entries."""
    parts = set(entry.split("_"))
    return bool(_WORDS & parts) and not _NO_WORDS & parts


@dataclass(frozen=True)
class Entries:
    """A batch by what its entries may be.

    Attributes:
        batch: the entries.
        named: vocabulary entry -> the names that the model's config has for it,
            ``{2: ("eos_token_id",)}``.
    """

    batch: Mapping[str, Any]
    named: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.batch.items() if isinstance(x, Tensor)}

    @property
    def words(self) -> dict[str, Tensor]:
        """Integers ``(b, n)`` and no mask; those first whose name says so, then the most varied."""
        found = {
            name: x
            for name, x in self.tensors.items()
            if is_whole_numbers(x) and (says_ids(name) or name not in self.sizes)
        }
        order = sorted(found, key=lambda n: (not says_ids(n), -len(torch.unique(found[n]))))
        return {name: found[name] for name in order}

    @property
    def images(self) -> dict[str, Tensor]:
        """Floating-point entries that are no masks, pictures first."""
        found = {name: x for name, x in self.tensors.items() if is_content(x)}
        order = sorted(found, key=lambda n: (found[n].ndim < 4, -found[n].numel()))
        return {name: found[name] for name in order}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Nothing but 0 and 1, ``(b, n)``."""
        return {n: x for n, x in self.tensors.items() if x.ndim == 2 and is_mask(x)}

    @property
    def counts(self) -> dict[str, Tensor]:
        """Integers ``(b,)``."""
        return {
            name: x
            for name, x in self.tensors.items()
            if x.ndim == 1 and not x.is_floating_point() and x.dtype != torch.bool
        }

    @property
    def sizes(self) -> dict[str, Tensor]:
        """Integers ``(images, 2 or 3)``, or with an axis of examples before: rows and columns."""
        return {
            name: x
            for name, x in self.tensors.items()
            if x.ndim in (2, 3)
            and x.shape[-1] in (2, 3)
            and not x.is_floating_point()
            and x.dtype != torch.bool
        }

    @property
    def placeholders(self) -> Tensor:
        """The vocabulary entries that the model's config names as an image's tokens."""
        named = [
            value
            for value, names in self.named.items()
            if any("image_token" in name or "image_pad" in name for name in names)
        ]
        return torch.tensor(named, dtype=torch.long)

    def are_free(self, words: Tensor) -> Tensor:
        """Which of some words may be exchanged: those that the model's config gives no name."""
        known = torch.tensor(sorted(self.named), dtype=words.dtype)
        return ~torch.isin(words, known)

    def other_words(self, words: Tensor, places: Tensor) -> Tensor:
        """The same words, with another one of them at some places.

        Places of words that have a name in the model's config stay.
        """
        places = places & self.are_free(words)
        values = torch.unique(words[self.are_free(words)])
        if not len(values):
            return words
        if len(values) == 1:
            return torch.where(places, (words - 1).clamp_min(0), words)
        following = torch.searchsorted(values, words.clamp(int(values[0]), int(values[-1])))
        return torch.where(places, values[(following + 1) % len(values)], words)

    def other_images(self) -> dict[str, Any]:
        """The same batch with other images: every one of :attr:`images`."""
        return {**self.batch, **{name: other_numbers(x) for name, x in self.images.items()}}

    def with_placeholders(self, of_image: Iterable[Tensor]) -> Entries:
        """The same, knowing the vocabulary entries that stand where an image moves the tokens.

        Args:
            of_image: which tokens an image moves, ``(b, n)``, of every sequence.
        """
        named = dict(self.named)
        for moved in of_image:
            for words in self.words.values():
                if words.shape != moved.shape or not bool(moved.any()):
                    continue
                values = torch.unique(words[moved])
                elsewhere = torch.isin(words[~moved], values)
                if len(values) == 1 and bool((~moved).any()) and not bool(elsewhere.all()):
                    named.setdefault(int(values[0]), ("image_token",))
        return Entries(self.batch, named)


def other_numbers(x: Tensor) -> Tensor:
    """Other numbers everywhere, of the same kind as these."""
    generator = torch.Generator().manual_seed(1)
    return x + torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x) + 0.1


def named_ids(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """The vocabulary entries that a model's config has a name for, ``pad_token_id``."""
    found: dict[int, dict[str, None]] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            for name, value in _numbers(config):
                found.setdefault(value, {})[name] = None
            break
    return {value: tuple(names) for value, names in found.items()}


def _numbers(config: Any, depth: int = 0) -> Iterator[tuple[str, int]]:
    fields = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    for name, value in fields.items():
        if not isinstance(name, str) or depth > 3:
            continue
        if name.endswith(("_token_id", "_token_index", "_token_ids", "_token")):
            listed: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
            yield from ((name, one) for one in listed if type(one) is int and one >= 0)
        elif name.endswith("config") or isinstance(value, Mapping):
            yield from _numbers(value, depth + 1)
