"""The checks of an adapter, each a function of a case that says what it saw.

Everything is found out by running the model: an image is changed, and only the positions that the
layout calls the image's may move; a mask is changed, and only the padded token may vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.backbone import Backbone
from .._backbone.directions import DIRECTIONS
from .._backbone.signals import Signals
from .adapter_case import AdapterCase, Run, forward
from .perturb import NotApplicable, changed_image, changed_text, first_example, without_last_word
from .sequences import TokenSequence, covered, places_of

_CLOSE = 1e-4


class UnmetError(AssertionError):
    """A check did not see what it asks for."""


def layout_covers_every_position_once(case: AdapterCase) -> str:
    """Every position of every sequence belongs to exactly one modality."""
    run = case.run
    for one in run.sequences:
        if one.tokens is None:
            raise UnmetError(f"the layout says nothing of the {one}")
        counts = covered(one)
        wrong = (counts != 1).nonzero()
        if len(wrong):
            example, position = wrong[0].tolist()
            found = int(counts[example, position])
            raise UnmetError(
                f"position {position} of the {one} of example {example} belongs to {found} "
                f"modalities; every position belongs to exactly one of {', '.join(one.tokens)}"
            )
    return f"{len(run.sequences)} sequences"


def image_moves_only_image_tokens(case: AdapterCase) -> str:
    """With another image, the declared image tokens enter the first attention otherwise."""
    backbone, batch = case.made
    before = case.run
    after = forward(backbone, changed_image(batch, backbone.adapter))
    return _only_moves(before, after, "image", None)


def text_moves_only_text_tokens(case: AdapterCase) -> str:
    """With other words, the declared text tokens do, and no image token."""
    backbone, batch = case.made
    before = case.run
    other, changed = changed_text(batch, before.layout)
    return _only_moves(before, forward(backbone, other), "text", changed)


def a_patch_moves_its_own_cell(case: AdapterCase) -> str:
    """Pixels of one cell move the token that the grid places there."""
    backbone, batch = case.made
    before = case.run
    grids = [(s, s.tokens["image"]) for s in before.sequences if s.tokens and "image" in s.tokens]
    known = [(s, tokens) for s, tokens in grids if tokens.grid is not None]
    pixels = next((name for name, x in batch.items() if _is_picture(x)), None)
    if not known or pixels is None:
        raise NotApplicable("no patch grid is declared, or no entry (b, channels, height, width)")
    sequence, tokens = known[0]
    rows, columns = tokens.grid or (1, 1)
    local = 0
    for cell in {0, rows * columns - 1, columns, columns - 1} & set(range(rows * columns)):
        picture = batch[pixels].clone()
        height, width = picture.shape[-2] // rows, picture.shape[-1] // columns
        top, left = cell // columns * height, cell % columns * width
        picture[..., top : top + height, left : left + width] += 1
        after = forward(backbone, {**batch, pixels: picture})
        moved = _moved(sequence, after.sequences[before.sequences.index(sequence)])
        places = places_of(sequence, "image")[:, len(tokens.special) :]
        of_image = moved.take_along_dim(places, 1)
        if int(of_image.sum(1).max()) > max(rows, columns):
            continue  # the tower has mixed its patches: nothing local is left to see
        local += 1
        if not bool(of_image[:, cell].all()):
            seen = of_image[0].nonzero()[:, 0].tolist()
            raise UnmetError(
                f"the pixels of row {cell // columns}, column {cell % columns} moved the patches "
                f"{seen} of the {rows} x {columns} grid, counted row by row; expected {cell}"
            )
    if not local:
        raise NotApplicable("image tokens have seen each other before the first attention")
    return f"{local} cells of the {rows} x {columns} grid"


def masks_agree_with_padding(case: AdapterCase) -> str:
    """The model masks the tokens that the layout calls padding, and no others."""
    run = case.run
    padded = 0
    for stream in dict.fromkeys(one.stream for one in run.sequences):
        ends = [one for one in run.sequences if one.stream == stream]
        rows, keys = ends[0], ends[-1]
        attention = rows.attention
        b, h, q, k = attention.shape
        keep = attention.keep()
        kept = (
            torch.ones(b, q, k, dtype=torch.bool)
            if keep is None
            else keep.expand(b, h, q, k).any(1)
        )
        real_rows, real_keys = (_real(one, length) for one, length in ((rows, q), (keys, k)))
        if real_rows.shape != (b, q) or real_keys.shape != (b, k):
            raise UnmetError(
                f"padding of {rows} and {keys} is told for {tuple(real_rows.shape)} and "
                f"{tuple(real_keys.shape)} tokens, but the attention has {(b, q)} and {(b, k)}"
            )
        seen = (kept & real_rows[:, :, None]).any(1)
        for wrong, what in (
            (seen & ~real_keys, "padding in the layout, but the model attends to it"),
            (real_keys & ~kept.any(1), "a real token in the layout, but the model never sees it"),
        ):
            if bool(wrong.any()):
                example, position = wrong.nonzero()[0].tolist()
                raise UnmetError(f"key {position} of the {keys} of example {example} is {what}")
        padded += int((~real_keys).sum())
    return f"{padded} padded keys"


def repeated_forwards_agree(case: AdapterCase) -> str:
    """Two forwards from two random states give the same cross-modal attention."""
    backbone, batch = case.made
    one, other = (forward(backbone, batch, seed=seed) for seed in (1, 2))
    return _same_attention(one.signals, other.signals, "another forward of the same batch")


def rows_sum_to_one_over_real_keys(case: AdapterCase) -> str:
    """No attention of a row that counts lies on padding."""
    run = case.run
    for name, attention in _directed(run.signals):
        mass, rows = attention.probabilities(), attention.valid_rows()
        axes = run.signals.axes(name)
        keys = axes[1].valid if len(axes) == 2 and axes[1] is not None else None
        on_real = mass if keys is None else mass * keys[:, None, None]
        off = (on_real.detach().sum(-1) - 1).abs()[rows]
        if not bool(rows.any()):
            raise UnmetError(f"no row of {name} counts")
        if float(off.max()) > _CLOSE:
            raise UnmetError(
                f"rows of {name} put {1 - float(off.max()):.3f} of their mass on real keys: "
                "padding holds the rest"
            )
    return ", ".join(name for name, _ in _directed(run.signals))


def gradient_reaches_every_stream(case: AdapterCase) -> str:
    """A loss on the attention teaches every stream that it is made of."""
    backbone, batch = case.made
    model, streams = backbone.model, backbone.adapter.streams
    if not any(p.requires_grad for p in model.parameters()):
        raise NotApplicable("every parameter is frozen, or there is none")
    run = forward(backbone, batch, gradient=True)
    values = [one.probabilities().square().sum() for _, one in _all(run.signals)]
    torch.autograd.backward(torch.stack(values).sum())
    names = backbone.scope.names
    for stream, pattern in streams.items():
        modules = [names.modules[name] for name in names.matching(pattern)]
        grads = [p.grad for m in modules for p in m.parameters() if p.requires_grad]
        if grads and not any(g is not None and bool(g.any()) for g in grads):
            raise UnmetError(
                f"no parameter of stream {stream!r} gets a gradient from the attention"
            )
    model.zero_grad()
    return ", ".join(streams)


def both_orders_of_capture_agree(case: AdapterCase) -> str:
    """Inside another model's forward and around it, the signals are the same."""
    backbone, batch = case.made
    other, other_batch = case.make()
    if set(backbone.model.modules()) & set(other.model.modules()):
        raise NotApplicable("the factory returns the same modules every time: there is no other")
    alone = case.run.signals
    around, _ = _nested(backbone, batch, other, other_batch)
    _, inside = _nested(other, other_batch, backbone, batch)
    _same_attention(alone, around, "the outer of two captures")
    return _same_attention(alone, inside, "the inner of two captures")


def _nested(
    outer: Backbone, outer_batch: Mapping[str, Any], inner: Backbone, inner_batch: Mapping[str, Any]
) -> tuple[Signals, Signals]:
    """The signals of two backbones, of which one runs in the middle of the other's forward."""
    found: list[Signals] = []

    def run_inner(*_: object) -> None:
        found.append(forward(inner, inner_batch).signals)

    handle = outer.model.register_forward_pre_hook(run_inner)
    try:
        signals = forward(outer, outer_batch).signals
    finally:
        handle.remove()
    return signals, found[0]


def a_batch_of_one_agrees(case: AdapterCase) -> str:
    """The first example alone gives what it gives in the batch."""
    backbone, batch = case.made
    whole = case.run
    one = forward(backbone, first_example(batch, whole.sequences[0].attention.shape[0]))
    return _same_attention(whole.signals.take(slice(0, 1)), one.signals, "the first example alone")


def a_shorter_text_loses_one_token(case: AdapterCase) -> str:
    """Masking the last word takes one row and one key away."""
    backbone, batch = case.made
    before = case.run
    shorter, stream = without_last_word(batch, before.layout)
    after = forward(backbone, shorter)
    counts = []
    for run in (before, after):
        sequence = next(s for s in run.sequences if s.tokens is run.layout[stream])
        real = _real(sequence, sequence.length).take_along_dim(places_of(sequence, "text"), 1)
        counts.append(real.sum(1))
    expected = counts[0] - torch.eye(len(counts[0]), dtype=torch.long)[0]
    if counts[1].tolist() != expected.tolist():
        raise UnmetError(
            f"the last word of the first example was masked, and the layout counts "
            f"{counts[1].tolist()} real text tokens; expected {expected.tolist()}"
        )
    for name, attention in _directed(after.signals):
        rows = attention.valid_rows().any(1).sum(1)
        if name.endswith("text_to_image") and int(rows[0]) > int(expected[0]):
            raise UnmetError(f"a masked word still counts as a row of {name}")
    return f"{counts[0].tolist()} text tokens, then {counts[1].tolist()}"


CHECKS: Mapping[str, Callable[[AdapterCase], str]] = {
    check.__name__: check
    for check in (
        layout_covers_every_position_once,
        image_moves_only_image_tokens,
        text_moves_only_text_tokens,
        a_patch_moves_its_own_cell,
        masks_agree_with_padding,
        repeated_forwards_agree,
        rows_sum_to_one_over_real_keys,
        gradient_reaches_every_stream,
        both_orders_of_capture_agree,
        a_batch_of_one_agrees,
        a_shorter_text_loses_one_token,
    )
}


def _only_moves(before: Run, after: Run, modality: str, changed: Tensor | None) -> str:
    """Tokens of the changed modality move, those of the other do not."""
    other = "text" if modality == "image" else "image"
    moved_any = 0
    for one, two in zip(before.sequences, after.sequences, strict=True):
        if one.tokens is None:
            raise UnmetError(f"the layout says nothing of the {one}")
        moved = _moved(one, two)
        if other in one.tokens:
            wrong = moved.take_along_dim(places_of(one, other), 1).nonzero()
            if len(wrong):
                example, token = wrong[0].tolist()
                raise UnmetError(
                    f"another {modality} moved {other} token {token} of the {one}, example "
                    f"{example}: the layout has the modalities at wrong positions"
                )
        if modality not in one.tokens:
            continue
        tokens, places = one.tokens[modality], places_of(one, modality)
        must = _real(one, one.length).take_along_dim(places, 1)
        if changed is not None:
            must = must & changed[:, : must.shape[1]]
        must[:, list(tokens.special)] = False
        still = (must & ~moved.take_along_dim(places, 1)).nonzero()
        if len(still):
            example, token = still[0].tolist()
            raise UnmetError(
                f"another {modality} did not move {modality} token {token} of the {one}, example "
                f"{example}: it is no {modality} token, or a special one that is not declared"
            )
        moved_any += int(must.sum())
    if not moved_any:
        raise NotApplicable(f"no stream has {modality} tokens")
    return f"{moved_any} {modality} tokens moved"


def _moved(one: TokenSequence, two: TokenSequence) -> Tensor:
    """Which tokens ``(b, n)`` enter the first attention otherwise."""
    before, after = one.entering, two.entering
    if before.shape != after.shape:
        raise UnmetError(f"the {one} has another length after its content changed")
    difference = (before - after).abs().amax((1, 3))
    return difference > 1e-5 * before.abs().max()


def _real(sequence: TokenSequence, length: int) -> Tensor:
    valid = None if sequence.tokens is None else sequence.tokens.valid
    shape = (sequence.attention.shape[0], length)
    return torch.ones(shape, dtype=torch.bool) if valid is None else valid


def _directed(signals: Signals) -> list[tuple[str, Attention]]:
    found = [f"attention.{direction}" for direction in DIRECTIONS]
    return [(name, _last(signals[name])) for name in found if name in signals]


def _all(signals: Signals) -> list[tuple[str, Attention]]:
    return [(name, _last(signals[name])) for name in signals if name.startswith("attention.")]


def _last(layers: Any) -> Attention:
    last: Attention = layers[-1]
    return last


def _same_attention(one: Signals, other: Signals, what: str) -> str:
    directed = _directed(one) or _all(one)
    for name, before in directed:
        after = _last(other[name])
        n, m = (min(a, b) for a, b in zip(before.shape[2:], after.shape[2:], strict=True))
        mass = [side.probabilities().detach() for side in (before, after)]
        cut = max(float(side[:, :, n:].sum() + side[:, :, :, m:].sum()) for side in mass)
        worst = float((mass[0][:, :, :n, :m] - mass[1][:, :, :n, :m]).abs().max())
        if max(worst, cut) > _CLOSE:
            raise UnmetError(
                f"{name} differs by {max(worst, cut):.1e} between a forward and {what}"
            )
    return ", ".join(name for name, _ in directed)


def _is_picture(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim in (4, 5)
