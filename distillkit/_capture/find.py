"""The table of a model's attentions: what there is, how it is shaped, whether it is read right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._attention import Attention, widen
from .._notebook import preformatted
from ._read.reading import Reading
from .diagnosis import check_not_stale, unseen
from .record import Record
from .recorder import Recorder
from .scope import Scope
from .undisturbed import in_eval_mode

Verdict = Literal["verified", "not verified", "not read"]
# of the largest output; fused kernels and sums in another order differ by less
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class FoundAttention:
    """One module that computes attention, or looks as if it did.

    Attributes:
        name: of the module, as a pattern of ``capture`` takes it.
        cls: its class.
        kind: ``"self"`` where queries and keys are of the same tokens, ``"cross"``, or empty.
        calls: how many attentions it computed in one forward.
        heads: of the first call, as are all below.
        query_length: how many queries.
        key_length: how many keys.
        head_dim: their width.
        mask: ``"none"``, ``"boolean"``, ``"additive"``, or ``"replayed"`` where its scores are
            computed in a way that no mask and bias describe.
        causal: whether the operation was told to be causal (a mask may say so instead).
        verified: ``"verified"`` where ``probabilities() @ value`` is what the module computed,
            ``"not verified"`` where that could not be compared, ``"not read"``.
        error: the largest difference of that comparison.
        note: why it is not read or not verified.
    """

    name: str
    cls: str
    kind: str = ""
    calls: int = 0
    heads: int = 0
    query_length: int = 0
    key_length: int = 0
    head_dim: int = 0
    mask: str = ""
    causal: bool = False
    verified: Verdict = "not read"
    error: float | None = None
    note: str = ""


class AttentionTable(Sequence[FoundAttention]):
    """The attentions of a model, in the order of its modules; ``print`` shows a table."""

    def __init__(self, rows: Sequence[FoundAttention]) -> None:
        self._rows = tuple(rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> tuple[str, ...]:
        """The modules whose attention is read: what ``capture`` takes."""
        return tuple(row.name for row in self if row.verified != "not read")

    def streams(self) -> str:
        """The ``streams`` line of an adapter file to start from, one stream for each pattern."""
        patterns = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in self.names)
        named = {_stream_name(pattern, len(patterns)): pattern for pattern in patterns}
        if len(named) < len(patterns):
            named = {f"stream_{i}": pattern for i, pattern in enumerate(patterns)}
        inner = ", ".join(f'{name} = "{pattern}"' for name, pattern in named.items())
        return f"streams = {{ {inner} }}"

    _repr_html_ = preformatted  # in a notebook

    def __str__(self) -> str:
        if not self._rows:
            return "no attention was found"
        header = (
            "name", "class", "kind", "calls", "heads", "queries", "keys", "dim", "mask", "causal",
            "check",
        )  # fmt: skip
        lines = [header, *map(_cells, self._rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        shown = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        notes = [f"{row.name or '(the model)'}: {row.note}" for row in self._rows if row.note]
        return "\n".join([*shown, *([""] if notes else []), *notes])

    __repr__ = __str__


def find_attention(model: nn.Module, *args: Any, **batch: Any) -> AttentionTable:
    """Run the model once and list every attention that it computes.

    The model runs in eval mode; its mode and the random state are afterwards what they were. Under
    ``torch.no_grad()`` it costs less memory, and does not see whether gradients get lost.

    Args:
        model: any module.
        args: what it is called with.
        batch: what it is called with, by name.

    Returns:
        A row for every module that computes attention or looks as if it did. Each reading is
        checked against the model itself: ``probabilities() @ value`` must be what the module's own
        product of probabilities and values gave.

    Examples:
        >>> import torch
        >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.zeros(1, 5, 8)
        >>> found = find_attention(layer, x, x, x)[0]
        >>> found.cls, found.heads, found.query_length, found.mask, found.verified
        ('MultiheadAttention', 2, 5, 'none', 'verified')
    """
    scope = Scope(model, (), keep_outputs=True)
    with in_eval_mode(model), scope.recording() as recorder:
        model(*args, **batch)
    scope.close()
    check_not_stale(recorder, scope.compiled())
    with torch.no_grad():
        return AttentionTable(list(_rows(recorder, scope.names.modules)))


def _rows(recorder: Recorder, modules: Mapping[str, nn.Module]) -> Iterator[FoundAttention]:
    recorder.keep_score()
    record = Record(recorder)
    missing = {**unseen(record, recorder, modules), **record.unread}
    read = set(record.names)
    for name, module in modules.items():
        cls = type(module).__name__
        if name in missing:
            yield FoundAttention(name, cls, note=missing[name])
        elif name in read:
            yield _found(name, cls, record.readings(name), record.kinds(name))


def _found(
    name: str, cls: str, readings: Sequence[Reading], kinds: Sequence[str]
) -> FoundAttention:
    first = readings[0].attention
    _, h, q, k = first.shape
    errors = [error for error in map(self_check, readings) if error is not None]
    exact = len(errors) == len(readings) and all(error <= _TOLERANCE for error in errors)
    if exact:
        note = ""
    elif len(errors) < len(readings):
        note = "its product of probabilities and values was not seen in it"
    else:
        note = "probabilities @ value differs from what it computed"
    return FoundAttention(
        name, cls,
        kind=kinds[0],
        calls=len(readings),
        heads=h, query_length=q, key_length=k,
        head_dim=first.query.shape[-1],
        mask=_mask_kind(first),
        causal=first.causal,
        verified="verified" if exact else "not verified",
        error=max(errors, default=None),
        note=note,
    )  # fmt: skip


def self_check(reading: Reading) -> float | None:
    """How far ``probabilities() @ value`` is from what the model computed; None: not comparable.

    Relative to the largest value; on rows that see a key, since models disagree about the others.
    """
    attention, output = reading.attention.detach(), reading.output
    if attention.value is None or output is None:
        return None
    h = attention.shape[1]
    value = attention.value
    values = widen(value).repeat_interleave(h // value.shape[1], 1)
    ours = attention.probabilities() @ values
    valid = attention.valid_rows()[..., None]
    errors = [
        _largest_difference(ours, theirs, valid)
        for theirs in _laid_out_as(widen(output.detach()), ours, attention.rows)
    ]
    return min(errors, default=None)


def _largest_difference(ours: Tensor, theirs: Tensor, rows: Tensor) -> float:
    difference = torch.where(rows, ours - theirs, 0).abs()
    if not difference.numel():
        return 0.0
    scale = torch.where(rows, theirs, 0).abs().max().clamp_min(torch.finfo(theirs.dtype).tiny)
    return float(difference.max() / scale)


def _laid_out_as(output: Tensor, ours: Tensor, rows: Tensor | None) -> Iterator[Tensor]:
    """A kernel's output as ``(b, h, q, e)``, in every way that its shape allows.

    Kernels return that or ``(b, q, h, e)``, heads joined or not, or without an axis of examples; or
    all sequences packed one after another, ``(rows that count, h, e)``.
    """
    b, h, q, e = ours.shape
    if output.shape == ours.shape:
        yield output
    elif output.numel() == ours.numel() and output.shape[-2:] == (q, e):
        yield output.reshape(ours.shape)
    if output.shape in ((b, q, h, e), (b, q, h * e), (b * q, h, e), (b * q, h * e)):
        yield output.reshape(b, q, h, e).transpose(1, 2)
    if rows is not None and rows.shape[1] == 1:
        counted = rows[:, 0].expand(b, q)
        total = int(counted.sum())
        if total < b * q and output.shape in ((total, h, e), (total, h * e)):
            placed = output.new_zeros(b, q, h, e)
            placed[counted] = output.reshape(total, h, e)
            yield placed.transpose(1, 2)


def _mask_kind(attention: Attention) -> str:
    if attention.is_replayed:
        return "replayed"
    if attention.bias is not None:
        return "additive"
    return "none" if attention.mask is None else "boolean"


def _cells(row: FoundAttention) -> tuple[str, ...]:
    name = row.name or "(the model)"
    if row.verified == "not read":
        return (name, row.cls, *[""] * 8, "not read")
    error = "" if row.error is None else f" ({row.error:.0e})"
    numbers = (row.calls, row.heads, row.query_length, row.key_length, row.head_dim)
    causal = "yes" if row.causal else "no"
    return (
        name, row.cls, row.kind, *map(str, numbers), row.mask, causal, f"{row.verified}{error}",
    )  # fmt: skip


def _stream_name(pattern: str, count: int) -> str:
    if count == 1:
        return "joint"
    for name, words in (("image", "vision|visual|image|pixel|vit"), ("text", "text|language|bert")):
        if re.search(words, pattern):
            return name
    return re.sub(r"[^a-z]+", "_", pattern.replace(".*", "").lower()).strip("_")
