"""A model, its adapter and its capture as one thing: from a batch to signals."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._capture.diagnosis import check_not_stale
from .._capture.record import Record
from .._capture.scope import Scope
from .._capture.wrappers import accepted_arguments, unwrapped
from ..errors import CaptureError, SignalError
from .adapter import Adapter, adapter_for
from .batch import SideOfBatch, checked_batch
from .depth import LayerIndices, Wanted, positions
from .derived import Sources, base_wanted, derived_signals
from .head import PARAMETERS
from .layout import TokenLayout
from .offer import BackboneCheck, list_offers
from .projection import SKIPPED, Projection, logits_in
from .response import LabelRule
from .scores import CANDIDATES
from .signals import Signals

ITEMS = "num_items_in_batch"  # by which a loss of transformers divides


class _Held(NamedTuple):
    """The modules whose tensors one run keeps, by name; None: all."""

    attentions: frozenset[str] | None
    outputs: frozenset[str] | None


class Run(NamedTuple):
    """One forward of a backbone.

    Attributes:
        output: what the model returned.
        signals: what it exposes.
        record: what its modules did.
        layout: where its tokens sit.
    """

    output: Any
    signals: Signals
    record: Record
    layout: TokenLayout


class Backbone:
    """A model, its adapter and its capture as one thing.

    A distiller has one for each side; who has a loop of his own takes one for each model. Between
    two runs nothing is on the model (unless it is compiled), so that it copies, pickles, moves and
    runs elsewhere as if nobody looked. Each run has its own record, in its own thread.

    Args:
        model: any module, wrapped or not; it is the one that is called.
        adapter: as in :func:`adapter_for`.

    Raises:
        UnknownNameError: no adapter fits, or none has that name.
        CaptureError: a stream's pattern that matches no module.

    Examples:
        >>> import torch, distillkit as dk
        >>> class Tower(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
        ...
        ...     def forward(self, pixels):
        ...         return self.attention(pixels, pixels, pixels)[0]
        >>> tokens = {"image": [{"modality": "image", "grid": [2, 3]}]}
        >>> adapter = dk.DeclarativeAdapter(streams={"image": "attention"}, tokens=tokens)
        >>> backbone = Backbone(Tower(), adapter)
        >>> output, signals = backbone.run({"pixels": torch.zeros(1, 6, 4)})
        >>> signals["attention.image"][-1]
        Attention(b=1, h=2, q=6, k=6)
    """

    def __init__(self, model: nn.Module, adapter: Adapter | str | Path | None = None) -> None:
        self._model, self._given = model, adapter
        self._adapter = adapter_for(model, adapter)
        self._accepted = accepted_arguments(model)
        self._rule = LabelRule(getattr(self._adapter, "predicts", None))
        self._projection = Projection(model, getattr(self._adapter, "head", None))
        patterns = [pattern.partition("#")[0] for pattern in self._adapter.streams.values()]
        self.scope = Scope(
            model, patterns, outputs=self._adapter.outputs, returns=self._adapter.returns
        )
        self._plans: dict[tuple[tuple[str, LayerIndices], ...], _Held] = {}
        self._is_closed = False

    @property
    def model(self) -> nn.Module:
        """The model that is called; another model takes another backbone."""
        return self._model

    @property
    def adapter(self) -> Adapter:
        """The adapter that was given or found."""
        return self._adapter

    def run(self, batch: Mapping[str, Any], *, wanted: Wanted | None = None) -> tuple[Any, Signals]:
        """The model's output and signals for a batch, in whatever mode of torch is on.

        Args:
            batch: name -> tensor; an entry that is None is absent.
            wanted: signal -> the layers of it that will be asked for, indices or ``"all"``; no
                other layer's tensors are kept. None keeps everything.

        Raises:
            CaptureError: closed; or a pattern no longer matches, since modules were replaced.
            SignalError: the batch lacks an entry, or a mask does not reach the model.
        """
        done = self.trace(batch, wanted=wanted)
        return done.output, done.signals

    def signals(self, batch: Mapping[str, Any]) -> Signals:
        """The model's signals for a batch, every layer of each."""
        return self.run(batch)[1]

    def check(self, batch: Mapping[str, Any]) -> BackboneCheck:
        """Report what this side alone offers on a batch: ``print(backbone.check(batch))``.

        The model runs once, in the mode that it is in.
        """
        used: set[str] = set()
        view = SideOfBatch(checked_batch(batch), None, used)
        done = self.trace(view)
        unused = [name for name in view if name not in used]
        return list_offers(unwrapped(self._model), self._adapter, done.signals, unused)

    def trace(
        self,
        batch: Mapping[str, Any],
        *,
        wanted: Wanted | None = None,
        skip_logits: bool = False,
    ) -> Run:
        """One forward, with the record and the layout that its signals were made of.

        Args:
            batch: as in :meth:`run`.
            wanted: as in :meth:`run`.
            skip_logits: nobody needs logits or a loss of them in ``output``: where signals of the
                output projection are wanted, and the model is not compiled, it does not run.
        """
        if self._is_closed:
            raise CaptureError(
                "this backbone is closed, and nothing is recorded any more; make another one, "
                "Backbone(model, adapter)"
            )
        view = batch if isinstance(batch, SideOfBatch) else SideOfBatch(checked_batch(batch))
        linear = self._projection.wanted(wanted)
        skip = skip_logits and linear is not None and not self.scope.compiled()
        ran = self._forward(view, wanted, linear, skip=skip)
        if ran is None:
            ran = self._forward(view, wanted, linear, skip=False)
        assert ran is not None  # a forward that computes everything is known to itself
        return ran

    def _forward(
        self, view: SideOfBatch, wanted: Wanted | None, linear: nn.Linear | None, *, skip: bool
    ) -> Run | None:
        """One forward; None: without its projection, it does not show what the logits are."""
        held = self._current(wanted)
        given: set[str] = set()
        arguments = self.arguments(view.noting(given))
        with self.scope.recording(held.attentions, held.outputs, entered=linear) as recorder:
            output, skipped = self._projection.run(
                lambda: self._called(arguments), linear, skip=skip
            )
        watched = recorder.chosen.classes if recorder.held is None else recorder.held
        if not recorder.ran_ever.union(recorder.ran).issuperset(watched):
            check_not_stale(recorder, self.scope.compiled())
        record = Record(recorder)
        asked: set[str] = set()
        layout = self._adapter.layout(view.noting(asked), record)
        self._check_masks(asked - given)
        view.used.update(given, asked)
        signals = self._adapter.signals(record, output, layout)
        head: Mapping[str, Any] = {}
        if linear is not None:
            logits = logits_in(signals)
            if skipped is not None and not self._projection.is_known(linear, skipped, logits):
                return None
            try:
                head = self._projection.signals(linear, recorder.entered, logits)
            except SignalError:
                if wanted is not None:
                    raise
        if skipped is not None:
            signals = Signals(signals, absent={**signals.absent, "logits": SKIPPED})
        signals = self._with_derived(signals, layout, view, wanted, head)
        return Run(output, signals, record, layout)

    def _with_derived(
        self,
        signals: Signals,
        layout: TokenLayout,
        view: SideOfBatch,
        wanted: Wanted | None,
        head: Mapping[str, Any],
    ) -> Signals:
        """The signals with those that are made of them; what is wanted is listed."""
        match = getattr(self._adapter, "match", None)
        sources = Sources(signals, signals.absent, layout, view, self._rule, match, head)
        derived = derived_signals(sources)
        listed = [name for name in wanted or () if name in derived and name not in PARAMETERS]
        if any(name.startswith(("logits.", "head.input.")) for name in listed):
            view.labels()  # they are used, whenever the logits are computed
        if "scores" in listed:
            view.get(CANDIDATES)
        return signals.with_derived(
            {name: one.value for name, one in derived.items()},
            {name: one.axes for name, one in derived.items()},
            listed=listed,
        )

    def close(self) -> None:
        """Record no more, and leave nothing on the model; a later run is an error."""
        self._is_closed = True
        self.scope.close()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_closed

    def _called(self, arguments: Mapping[str, Any]) -> Any:
        """The model's output; where it cannot run on an empty batch, an error that says so."""
        try:
            return self._model(**arguments)
        except Exception as error:
            tensors = [x for x in arguments.values() if isinstance(x, Tensor) and x.ndim > 0]
            if not tensors or any(len(x) for x in tensors):
                raise
            raise SignalError(
                f"the batch holds no example, and {type(unwrapped(self._model)).__name__} cannot "
                f"run on none ({type(error).__name__}: {error}); leave such batches out"
            ) from error

    def arguments(self, view: SideOfBatch) -> dict[str, Any]:
        """The keyword arguments of the model's call."""
        asked = self._adapter.inputs(view)
        arguments = {name: value for name, value in asked.items() if value is not None}
        takes_items = ITEMS in self._accepted or self._accepted.takes_any
        if takes_items and ITEMS not in arguments and ITEMS in view:
            arguments[ITEMS] = view[ITEMS]
        return arguments

    def _check_masks(self, unpassed: set[str]) -> None:
        """Refuse a mask that the layout reads and the model is not called with."""
        named = getattr(self._adapter, "masks", ())
        allowed = getattr(self._adapter, "unmasked", ())
        for name in unpassed:
            if (name.endswith("mask") or name in named) and name not in allowed:
                raise SignalError(
                    f"the token layout reads {name!r} to know which tokens are real, but "
                    f"{type(unwrapped(self._model)).__name__} is not called with it and would "
                    "attend to padding. Name it in the adapter's `inputs`, or, where the model "
                    "takes no mask, say `unmasked = true` beside `mask` in the adapter file (an "
                    "adapter class: a set `unmasked` of such names)"
                )

    def _current(self, wanted: Wanted | None) -> _Held:
        """The modules to keep, of those that the model has now."""
        held = self._plan(wanted)
        if not self.scope.is_current(held.attentions, held.outputs):
            self.scope.resolve()
            self._plans.clear()
            held = self._plan(wanted)
        return held

    def _plan(self, wanted: Wanted | None) -> _Held:
        """The modules whose tensors a run keeps."""
        sources: Mapping[str, tuple[str, ...]] | None = getattr(self._adapter, "sources", None)
        if wanted is None or sources is None:
            return _Held(None, None)
        key = tuple(wanted.items())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._planned(wanted, sources)
        return plan

    def _planned(self, wanted: Wanted, sources: Mapping[str, tuple[str, ...]]) -> _Held:
        chosen = self.scope.chosen
        wanted = base_wanted(wanted, sources)
        # a layout may ask for the shape of the last layer of every stream
        kept: set[str] = set()
        for pattern in self._adapter.streams.values():
            kept.update(self._matching(pattern, chosen.classes)[-1:])
        layered: set[str] = set()
        for signal, patterns in sources.items():
            modules = [
                self._matching(pattern, (*chosen.classes, *chosen.outputs)) for pattern in patterns
            ]
            layered.update(*modules)
            kept.update(_chosen_layers(modules, wanted.get(signal, frozenset())))
        if any(name.startswith("attention.") and name not in sources for name in wanted):
            kept.update(chosen.classes)  # a signal that the adapter makes in a way of its own
        outputs = {name for name in chosen.outputs if name not in layered or name in kept}
        return _Held(frozenset(kept & chosen.classes.keys()), frozenset(outputs))

    def _matching(self, pattern: str, names: Iterator[str] | Any) -> list[str]:
        known = set(names)
        return [name for name in self.scope.names.matching(pattern) if name in known]

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        model = copy.deepcopy(self._model, memo)
        return Backbone(model, copy.deepcopy(self._given, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return Backbone, (self._model, self._given)

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        name = type(unwrapped(self._model)).__name__
        return f"Backbone({name}, {type(self._adapter).__name__}{closed})"


def _chosen_layers(modules: list[list[str]], layers: LayerIndices) -> Iterator[str]:
    """The modules that some layers of a signal are made of; layers pair from the top."""
    depth = min(len(names) for names in modules)
    for position in positions(layers, depth):
        for names in modules:
            yield names[position - depth]
