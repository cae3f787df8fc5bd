"""Where an example's tokens sit in a batch, however that batch is padded.

A cache stores no padding. When an example is read, its tokens go where the tokens of the student's
batch are, and the masks of that batch say where: the cache remembers of which mask a token axis is
the image. There are two cases::

    mask of a batch      1 1 1 0        the axis is the masked sequence itself:
    text tokens          a b c .        example [a b c] goes to the places that are 1

    mask of a batch      0 1 1 1 1      the axis is a part of it, here all but the image tokens:
    sequence             . a i i b      [a b] are the tokens number 0 and 3 of those that are 1,
    text tokens          . a b          and padding belongs to the part

Where no mask tells, tokens go to the places that they had when they were stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._attention.selection import Selection
from .._backbone.axis import TokenAxis
from ..errors import CacheError
from .reading import Tokens
from .shard import Example, Numbers
from .spec import AxisSpec, Follows


class Places(NamedTuple):
    """Where the tokens of one axis go in a batch.

    Attributes:
        whole: how long the axis is.
        of: for each example its places; a slice where they are the first ones.
        valid: ``(b, n)``, which places hold a token; None: all of them.
    """

    whole: int
    of: list[Any]
    valid: Tensor | None


# writing


def followed(tokens: Tokens, batch: Mapping[str, Any]) -> Follows | None:
    """The mask of a batch of which a token axis is the image; None: there is none."""
    real, known = _marked(tokens), tokens.known
    if known is not None and known.modality == "image" and bool(real.all()):
        return None  # any mask of ones looks like its own; patches without padding need none
    for mask in _masks(batch, *real.shape):
        if _equal(_sequence(mask, batch), real):
            return Follows(mask=mask, part=False)
    chosen = None if known is None else _chosen(known, len(real))
    if chosen is None:
        return None
    for mask in _masks(batch, *chosen.shape):
        sequence = _sequence(mask, batch)
        if sequence is not None and _is_part(chosen, sequence, real):
            padded = chosen[~sequence]
            if padded.all() or not padded.any():
                # without padding nothing tells; what is no image token is taken to be text
                return Follows(mask=mask, part=True, padding=bool(padded.all()))
    return None


def stored_places(axis: AxisSpec, tokens: Tokens, batch: Mapping[str, Any]) -> list[Any]:
    """For each example, what is stored of its tokens' places; None: nothing is needed.

    Raises:
        CacheError: the axis is no longer the image of its mask.
    """
    real = _marked(tokens).cpu()
    follows = axis.follows
    if follows is None:
        places = [row.nonzero()[:, 0].numpy() for row in tokens.real.cpu()]
        first = [len(one) == 0 or one[-1] == len(one) - 1 for one in places]
        return [None if at_start else one for one, at_start in zip(places, first, strict=True)]
    sequence = _sequence(follows.mask, batch)
    chosen = None if tokens.known is None else _chosen(tokens.known, len(real))
    fits = _equal(sequence, real) if not follows.part else _fits(follows, chosen, sequence, real)
    if not fits:
        raise CacheError(
            f"the tokens of {axis.signal!r} were those that {_shown(follows.mask)} marks when the "
            "cache was begun, and are others in this batch"
        )
    if not follows.part or tokens.valid is not None:
        return [None] * len(real)
    assert chosen is not None
    assert sequence is not None
    # the number of each token among those that are no padding
    numbers = (sequence.cumsum(-1) - 1).cpu()
    both = (chosen & sequence).cpu()
    return [row[there].numpy() for row, there in zip(numbers, both, strict=True)]


def _marked(tokens: Tokens) -> Tensor:
    """The tokens that a mask marks, ``(b, n)``; where padding is stored too, that is left out."""
    return tokens.real if tokens.valid is None else tokens.valid


def _fits(follows: Follows, chosen: Tensor | None, sequence: Tensor | None, real: Tensor) -> bool:
    if chosen is None or sequence is None or chosen.shape != sequence.shape:
        return False
    padded = chosen[~sequence]
    return _is_part(chosen, sequence, real) and bool((padded == follows.padding).all())


def _is_part(chosen: Tensor, sequence: Tensor, real: Tensor) -> bool:
    """Whether the axis is the chosen tokens of a sequence, packed, with its padding."""
    if chosen.shape != sequence.shape:
        return False
    selection = Selection(chosen, chosen.shape[1])
    packed = selection.along(sequence, 1)
    present = selection.present(3)
    packed = packed if present is None else packed & present[:, 0, 0].to(packed.device)
    return _equal(packed, real)


def _chosen(axis: TokenAxis, examples: int) -> Tensor | None:
    """Which tokens of its sequence an axis has, ``(b, n)``; None: that is not known."""
    positions = axis.positions
    if isinstance(positions, Tensor):
        if positions.dtype != torch.bool:
            return None
        return positions.cpu().expand(examples, positions.shape[-1])
    if positions is None or axis.length is None:
        return None
    chosen = torch.zeros(axis.length, dtype=torch.bool)
    chosen[positions] = True
    return chosen.expand(examples, axis.length)


def _masks(batch: Mapping[str, Any], examples: int, length: int) -> Iterator[tuple[Any, ...]]:
    """What may mark the real tokens of so long a sequence; masks come before other entries."""
    names = sorted(batch, key=lambda name: not name.endswith("mask"))
    lengths = {name: batch[name].shape[1] for name in names if _is_mask(batch[name], examples)}
    for name, n in lengths.items():
        if n == length:
            yield (name,)
    for name, n in lengths.items():
        if n < length:
            yield name, length - n
            yield length - n, name
        for other, m in lengths.items():
            if n + m == length and name != other:
                yield name, other


def _is_mask(entry: Any, examples: int) -> bool:
    if not isinstance(entry, Tensor) or entry.ndim != 2 or entry.is_floating_point():
        return False
    return len(entry) == examples and bool(((entry == 0) | (entry == 1)).all())


def _sequence(mask: Sequence[Any], batch: Mapping[str, Any]) -> Tensor | None:
    """The mask of a sequence, ``(b, n)``, on the CPU; None: the batch lacks an entry."""
    entries = {one: batch.get(one) for one in mask if isinstance(one, str)}
    if not all(isinstance(x, Tensor) and x.ndim == 2 for x in entries.values()):
        return None
    examples = {len(x) for x in entries.values() if x is not None}
    if len(examples) != 1:
        return None
    count = examples.pop()
    return torch.cat(
        [
            (entries[one] != 0).cpu()  # type: ignore[union-attr]
            if isinstance(one, str)
            else torch.ones((count, one), dtype=torch.bool)
            for one in mask
        ],
        1,
    )


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one, other.cpu())


def _shown(mask: Sequence[Any]) -> str:
    return " and ".join(repr(x) if isinstance(x, str) else f"{x} further tokens" for x in mask)


# reading


def places_in(
    axis: AxisSpec, examples: Sequence[Example], batch: Mapping[str, Any] | None
) -> Places:
    """Where examples' tokens go in the batch that asks for them.

    Raises:
        CacheError: examples with another number of tokens than the batch has; with padding that is
            stored, of another length than the batch's.
    """
    follows = axis.follows
    sequence = None if follows is None or batch is None else _sequence(follows.mask, batch)
    if "valid" in axis.tokens:
        return _with_padding(axis, examples, sequence)
    if follows is None or sequence is None:
        return _as_stored(axis, examples)
    if not follows.part:
        wanted = [row.nonzero()[:, 0].numpy() for row in sequence]
        _check_counts(axis, examples, wanted)
        valid = None if bool(sequence.all()) else sequence
        return Places(sequence.shape[1], [_first(x) for x in wanted], valid)
    slots, of = [], []
    for row, example in zip(sequence.numpy(), examples, strict=True):
        there, numbers = row.nonzero()[0], example.places[axis.name]
        if numbers is None or (len(numbers) and numbers[-1] >= len(there)):
            raise _other_count(axis, example, len(there))
        tokens = there[numbers]
        slot = np.union1d(tokens, (~row).nonzero()[0]) if follows.padding else tokens
        slots.append(len(slot))
        of.append(np.searchsorted(slot, tokens))
    return _of_places(max(slots, default=0), of)


def _with_padding(axis: AxisSpec, examples: Sequence[Example], sequence: Tensor | None) -> Places:
    """All places, where padding is stored: as it was, so the batch has to be padded the same."""
    wholes = sorted({example.wholes[axis.name] for example in examples})
    if len(wholes) > 1:
        lengths = " and ".join(map(str, wholes))
        raise CacheError(
            f"the tokens of {axis.signal!r} were stored in sequences of {lengths} tokens; {_PAD}"
        )
    whole = wholes[0] if wholes else 0
    if axis.follows is not None and sequence is not None and examples:
        part = axis.tokens["valid"].parts[0].name
        valid = np.stack([example.arrays[part].astype(bool) for example in examples])
        _check_padding(axis, axis.follows, valid, sequence.numpy())
    return Places(whole, [slice(0, whole)] * len(examples), None)


def _check_padding(axis: AxisSpec, follows: Follows, valid: Numbers, sequence: Numbers) -> None:
    whole, found = valid.shape[1], sequence.shape[1]
    if len(sequence) != len(valid):
        raise _other_examples(follows, len(sequence), len(valid))
    if follows.part:
        padded = (~sequence).sum(1) if follows.padding else 0
        found = int((valid.sum(1) + padded).max())
    if whole != found:
        raise CacheError(
            f"the tokens of {axis.signal!r} were stored in sequences of {whole} tokens, and the "
            f"batch has {found}; {_PAD}"
        )
    if not follows.part and not np.array_equal(valid, sequence):
        raise CacheError(
            f"the tokens of {axis.signal!r} were stored with their padding, which is elsewhere in "
            f"{_shown(follows.mask)} of the batch: pad on the same side as when the cache was "
            'filled, or compare rows = "valid"'
        )


_PAD = (
    "rows = \"all\" counts padding: pad all batches to one length, padding='max_length', when the "
    'cache is filled and when it is read, or compare rows = "valid"'
)


def _as_stored(axis: AxisSpec, examples: Sequence[Example]) -> Places:
    """The places that tokens had when they were stored, or, at the start, the first ones."""
    wholes = {example.wholes[axis.name] for example in examples}
    part = axis.follows is not None and axis.follows.part
    listed = [None if part else example.places.get(axis.name) for example in examples]
    lengths = [example.lengths[axis.name] for example in examples]
    if len(wholes) == 1 and not part:
        whole = wholes.pop()
    elif all(one is None for one in listed):
        whole = max(lengths, default=0)
    else:
        raise CacheError(
            f"the tokens of {axis.signal!r} were stored in sequences of {sorted(wholes)} tokens, "
            "at other places in each: pad all batches to one length, padding='max_length', when "
            "the cache is filled"
        )
    of = [np.arange(n) if one is None else one for n, one in zip(lengths, listed, strict=True)]
    return _of_places(whole, of)


def _of_places(whole: int, of: Sequence[Numbers]) -> Places:
    if all(len(one) == whole for one in of):
        return Places(whole, [slice(0, whole)] * len(of), None)
    valid = np.zeros((len(of), whole), dtype=bool)
    for row, places in zip(valid, of, strict=True):
        row[places] = True
    return Places(whole, [_first(one) for one in of], torch.from_numpy(valid))


def _first(places: Numbers) -> Any:
    """A slice, which is faster, where places are the first ones."""
    count = len(places)
    return slice(0, count) if count == 0 or places[-1] == count - 1 else places


def _check_counts(axis: AxisSpec, examples: Sequence[Example], wanted: Sequence[Numbers]) -> None:
    if len(wanted) != len(examples):
        assert axis.follows is not None
        raise _other_examples(axis.follows, len(wanted), len(examples))
    for example, places in zip(examples, wanted, strict=True):
        if example.lengths[axis.name] != len(places):
            raise _other_count(axis, example, len(places))


def _other_examples(follows: Follows, found: int, asked: int) -> CacheError:
    return CacheError(f"{_shown(follows.mask)} is of {found} examples, and {asked} are asked for")


def _other_count(axis: AxisSpec, example: Example, found: int) -> CacheError:
    assert axis.follows is not None
    return CacheError(
        f"{axis.signal!r} of example {example.key} was stored with {example.lengths[axis.name]} "
        f"tokens, and {_shown(axis.follows.mask)} of the batch marks {found}: it is tokenised in "
        "another way, or is another example"
    )
