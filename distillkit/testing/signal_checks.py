"""Checks of what an adapter makes of a forward: values, layers, gradients, and other forwards."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from .._attention import Attention
from .._backbone.backbone import Backbone
from .._backbone.directions import DIRECTIONS, attention_signals
from .._backbone.signals import Signals
from .adapter_case import AdapterCase, Run, forward
from .perturb import first_pair, without_last_word
from .verdicts import NotApplicable, UnmetError
from .words import words_of

_CLOSE = 1e-4


def attention_is_what_the_streams_define(case: AdapterCase) -> str:
    """Each attention signal has its stream's layers in order, of the layout's own tokens."""
    run = case.run
    adapter = case.made[0].adapter
    attentions = {stream: run.record.layers(pattern) for stream, pattern in adapter.streams.items()}
    defined, _ = attention_signals(attentions, run.layout, getattr(adapter, "through", None))
    compared = [name for name in defined if name in run.signals]
    for name in compared:
        expected, found = defined[name](), run.signals[name]
        if len(found) != len(expected):  # type: ignore[arg-type]
            raise UnmetError(
                f"{name} has {len(found)} layers, but its streams have {len(expected)}"  # type: ignore[arg-type]
            )
        for layer, (ours, theirs) in enumerate(zip(found, expected, strict=True)):  # type: ignore[arg-type]
            if not _same_mass(ours, theirs):
                raise UnmetError(
                    f"layer {layer} of {name} is not the attention that its streams and the token "
                    "layout define: another layer, other tokens, or queries and keys exchanged"
                )
    _check_order_of_layers(case)
    return ", ".join(compared)


def _same_mass(one: Attention, other: Attention) -> bool:
    if one.shape != other.shape:
        return False
    mass = [side.probabilities().detach() for side in (one, other)]
    rows = one.valid_rows() & other.valid_rows()
    return float((mass[0] - mass[1])[rows].abs().max() if bool(rows.any()) else 0.0) <= _CLOSE


def _check_order_of_layers(case: AdapterCase) -> None:
    """Refuse a stream whose modules run in another order than their names say."""
    backbone, batch = case.made
    names = backbone.scope.names
    ran: list[str] = []
    handles = []
    for pattern in backbone.adapter.streams.values():
        for name in names.matching(pattern.partition("#")[0]):
            note = functools.partial(_note, ran, name)
            handles.append(names.modules[name].register_forward_pre_hook(note))
    try:
        forward(backbone, batch)
    finally:
        for handle in handles:
            handle.remove()
    for stream, pattern in backbone.adapter.streams.items():
        own = names.matching(pattern.partition("#")[0])
        order = [name for name in ran if name in own]
        if len(set(order)) == len(order) == len(own) and order != own:
            raise UnmetError(
                f"the layers of stream {stream!r} are taken in the order {', '.join(own)}, but the "
                f"model runs them as {', '.join(order)}"
            )


def _note(ran: list[str], name: str, *_: object) -> None:
    ran.append(name)


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
    total = torch.stack(values).sum()
    if not total.requires_grad:
        raise UnmetError(
            "no attention has a gradient, though the model has parameters to train: it runs under "
            "torch.no_grad(), or detaches its queries and keys"
        )
    torch.autograd.backward(total)
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
    examples = whole.sequences[0].attention.shape[0]
    one = forward(backbone, first_pair(batch, backbone.adapter, whole.layout, examples))
    return _same_attention(_of_first(whole, one), one.signals, "the first example alone")


def _of_first(whole: Run, one: Run) -> Signals:
    """Of a batch's attention, that of the first example: several pairs, where it has two images."""
    of_text, alone = (run.layout.pairs.get("text") for run in (whole, one))
    if of_text is None or alone is None or len(alone) == 1:
        return whole.signals.take(slice(0, 1))
    pairs = (of_text == of_text[0]).nonzero()[: len(alone), 0]
    directed = {name: whole.signals[name] for name, _ in _directed(whole.signals)}
    return Signals(directed).take(pairs)


def a_shorter_text_loses_one_token(case: AdapterCase) -> str:
    """Masking the last word takes one row and one key away."""
    backbone, batch = case.made
    before = case.run
    shorter, words = without_last_word(batch, before.layout)
    after = forward(backbone, shorter)
    then = words_of(shorter, after.layout)
    counts = [(one.present & one.valid).sum(1) for one in (words, then)]
    expected = counts[0] - (words.rows == words.rows[0]).long()
    if counts[1].tolist() != expected.tolist():
        raise UnmetError(
            f"the last word of the first example was masked, and the layout counts "
            f"{counts[1].tolist()} real text tokens; expected {expected.tolist()}"
        )
    for name, attention in _directed(after.signals):
        rows = attention.valid_rows().any(1).sum(1)
        of_text = after.layout.pairs.get("text")
        pair = [] if of_text is None else (of_text == words.rows[0]).nonzero()[:, 0].tolist()
        first = pair[0] if pair else 0
        paired = of_text is None or bool(pair)
        if name.endswith("text_to_image") and paired and int(rows[first]) > int(expected[0]):
            raise UnmetError(f"a masked word still counts as a row of {name}")
    return f"{counts[0].tolist()} text tokens, then {counts[1].tolist()}"


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
        if len(before.probabilities()) != len(after.probabilities()):
            raise UnmetError(
                f"{name} is of {len(before.probabilities())} examples in a forward, and of "
                f"{len(after.probabilities())} in {what}"
            )
        n, m = (min(a, b) for a, b in zip(before.shape[2:], after.shape[2:], strict=True))
        mass = [side.probabilities().detach() for side in (before, after)]
        cut = max(float(side[:, :, n:].sum() + side[:, :, :, m:].sum()) for side in mass)
        worst = float((mass[0][:, :, :n, :m] - mass[1][:, :, :n, :m]).abs().max())
        if max(worst, cut) > _CLOSE:
            raise UnmetError(
                f"{name} differs by {max(worst, cut):.1e} between a forward and {what}"
            )
    return ", ".join(name for name, _ in directed)
