"""Which teachers a term learns from, and how several of them become one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._attention import Attention
from .._attention.keep import both
from .._backbone.axis import TokenAxis
from .._backbone.layers import as_layers
from .._backbone.signals import Layers, Signals, TokenAxes
from ..errors import RecipeError, ShapeError, SignalError, did_you_mean, unknown_name
from .mixing import Weights, confidence_weights, mean_probabilities, mean_values

TeacherSignals: TypeAlias = "Signals | Mapping[str, Signals]"
"""The signals of a single teacher, or of several by their names."""

ALL = "all"
_MEANS = ("probabilities", "logits", "confidence")


class Ensemble(NamedTuple):
    """How several teachers become one.

    Attributes:
        mean: ``"probabilities"``: of distributions (logits, attention), and of the values of other
            signals; ``"logits"``: of logits; ``"confidence"``: of probabilities, weighted by each
            teacher's confidence.
        labels: with ``"confidence"``, the batch entry of the labels; None: there are none.
        weights: teacher -> its fixed weight; empty: all are alike.
    """

    mean: str = _MEANS[0]
    labels: str | None = None
    weights: Mapping[str, float] = {}


class TeacherChoice:
    """Which teachers a term learns from: one by its name, or an ensemble.

    Args:
        term: what errors call the term.
        teacher: a name, several, ``"all"``; None: the only one, or those that ``ensemble`` names.
        ensemble: ``"probabilities"``, ``"logits"``, ``"confidence"``, ``"confidence:<entry>"``, or
            teacher -> weight; None: the first.
        signals: the teachers' signals that the term compares.
        temperature: at which its loss compares distributions; None: it is not known beforehand.

    Raises:
        RecipeError: a choice that means nothing.
    """

    def __init__(
        self,
        term: str,
        teacher: str | Sequence[str] | None,
        ensemble: str | Mapping[str, float] | None,
        signals: Sequence[str],
        temperature: float | None,
    ) -> None:
        self._term, self._signals = term, tuple(dict.fromkeys(signals))
        self.given = given_names(term, teacher, ensemble)
        if ensemble is not None and not self.is_ensemble:
            raise RecipeError(
                f"term {term!r}: `ensemble` is of several teachers; name them, teacher = "
                '["a", "b"] or "all"'
            )
        self.ensemble = _checked_ensemble(term, ensemble)
        self._temperature = temperature
        if not self.is_ensemble:
            return
        others = [name for name in self._signals if not _are_logits(name)]
        if self.ensemble.mean != _MEANS[0] and others:
            raise RecipeError(
                f"term {term!r}: ensemble = {self.ensemble.mean!r} is of logits; of {others[0]!r} "
                "an ensemble is the mean, which needs no `ensemble`, or weights, "
                "ensemble = { a = 0.7, b = 0.3 }"
            )
        if temperature is None and self.ensemble.mean != "logits":
            raise RecipeError(
                f"term {term!r}: an ensemble of probabilities needs the temperature as a number "
                'in `options`; ensemble = "logits" needs none'
            )

    @property
    def is_ensemble(self) -> bool:
        """Whether several teachers become one."""
        return self.given == ALL or (isinstance(self.given, tuple) and len(self.given) > 1)

    def names(self, known: Sequence[str] | None) -> tuple[str, ...]:
        """The teachers that the term learns from.

        Args:
            known: the names of all; None: there is a single one without a name.

        Raises:
            RecipeError: a term that names none of several teachers, or one of a single teacher.
            UnknownNameError: no such teacher.
        """
        if known is None:
            if self.given is not None:
                raise RecipeError(
                    f"term {self._term!r} names its teacher, and the distiller has a single one "
                    "without a name: leave `teacher` out, or name it, "
                    "Distiller(student, {name: teacher}, recipe)"
                )
            return ()
        if self.given is None:
            names = ", ".join(map(repr, known))
            raise RecipeError(
                f"term {self._term!r} does not say which teacher it learns from; the distiller has "
                f'{names}: teacher = "{known[0]}", or "all"'
            )
        chosen = tuple(known) if isinstance(self.given, str) else self.given
        for name in chosen:
            if name not in known:
                raise unknown_name(f"teacher (of term {self._term!r})", name, known)
        lacking = [name for name in chosen if name not in self.ensemble.weights]
        if self.ensemble.weights and (lacking or len(chosen) != len(self.ensemble.weights)):
            raise RecipeError(
                f"term {self._term!r}: the weights of its ensemble are of "
                f"{sorted(self.ensemble.weights)}, its teachers are {sorted(chosen)}"
            )
        return chosen

    def of(self, given: TeacherSignals, batch: Mapping[str, Any] | None) -> Signals:
        """The signals that the term compares.

        Args:
            given: of a single teacher, or of several by their names.
            batch: where labels are found.

        Raises:
            SignalError: a signal that a teacher does not have; teachers without signals here.
            ShapeError: signals whose mean makes no sense, as their shapes do not fit.
        """
        if isinstance(given, Signals):
            self.names(None)
            return given
        chosen = self._chosen(given)
        parts = {name: given[name] for name in chosen}
        if len(parts) == 1:
            return parts[chosen[0]]
        values, masks, axes = {}, {}, {}
        for signal in self._signals:
            found = {name: self._signal(name, one, signal) for name, one in parts.items()}
            values[signal] = self._mixed(signal, found, batch)
            mask = self._mask(signal, parts)
            if mask is not None:
                masks[signal] = mask
            axes[signal] = partial(self._axes, signal, list(parts.values()))
        return Signals(values, masks, axes=axes)

    def _chosen(self, given: Mapping[str, Signals]) -> tuple[str, ...]:
        if self.given is None or self.given == ALL:
            return self.names(list(given))
        for name in self.given:
            if name not in given:
                raise SignalError(
                    f"term {self._term!r} learns from the teacher {name!r}, whose signals are not "
                    f"there; given are those of {', '.join(map(repr, given)) or 'none'}"
                )
        return self.names([*given])

    def _signal(self, teacher: str, signals: Signals, name: str) -> Any:
        if name in signals:
            return signals[name]
        if name in signals.absent:
            why = signals.absent[name]
            raise SignalError(f"term {self._term!r} needs {name!r} of {teacher!r}: {why}")
        message = unknown_name(f"signal of the teacher {teacher!r}", name, signals)
        raise SignalError(f"term {self._term!r}: {message}; its adapter offers no other")

    def _mixed(self, signal: str, found: Mapping[str, Any], batch: Any) -> Any:
        """One signal of all teachers; its layers wait until they are asked for."""
        layered = [not isinstance(one, (Tensor, Attention)) for one in found.values()]
        if not any(layered):
            return self._mean(signal, found, batch)
        depths = {name: len(one) for name, one in found.items()} if all(layered) else {}
        if len(set(depths.values())) != 1:
            raise ShapeError(self._unlike(signal, depths or _shapes(found)))
        every = {name: as_layers(one) for name, one in found.items()}
        depth = next(iter(depths.values()))

        def of_layer(index: int) -> Any:
            return self._mean(signal, {name: one[index] for name, one in every.items()}, batch)

        return Layers([partial(of_layer, index) for index in range(depth)])

    def _mean(self, signal: str, found: Mapping[str, Any], batch: Any) -> Any:
        """The mean of one tensor or attention of all teachers, on the first one's device."""
        values = list(found.values())
        kinds = {isinstance(one, Attention) for one in values}
        if len(kinds) > 1 or len({tuple(one.shape) for one in values}) > 1:
            raise ShapeError(self._unlike(signal, _shapes(found)))
        values = [one.to(values[0].device) for one in values]
        weights: Weights = self._fixed(found)
        if isinstance(values[0], Attention):
            return self._mean_attention(values, weights)
        if self.ensemble.mean == "logits" or not _are_logits(signal):
            return mean_values(values, weights)
        if self.ensemble.mean == "confidence":
            weights = confidence_weights(values, self._labels(batch))
        assert self._temperature is not None
        return mean_probabilities(values, weights, self._temperature)

    def _mean_attention(self, parts: Sequence[Attention], weights: Weights) -> Attention:
        """The mean of the matrices of probabilities; a row counts where it does in all of them."""
        scores = [one.with_rows(None).scores() for one in parts]
        assert self._temperature is not None
        mean = mean_probabilities(scores, weights, self._temperature)
        keyed = torch.stack([(x != -torch.inf).any(-1, keepdim=True) for x in scores]).all(0)
        rows = _everybodys([one.rows for one in parts])
        return Attention.from_scores(torch.where(keyed, mean, -torch.inf), rows=rows)

    def _fixed(self, names: Mapping[str, Any]) -> list[float]:
        given = self.ensemble.weights or dict.fromkeys(names, 1.0)
        total = math.fsum(given.values())
        return [given[name] / total for name in names]

    def _labels(self, batch: Mapping[str, Any] | None) -> Tensor | None:
        entry = self.ensemble.labels
        if entry is None:
            return None
        if batch is None or entry not in batch:
            message = unknown_name("batch entry", entry, batch or {})
            raise SignalError(f"term {self._term!r} weighs its teachers by labels: {message}")
        labels: Tensor = batch[entry]
        return labels

    def _mask(self, signal: str, parts: Mapping[str, Signals]) -> Tensor | None:
        """The positions that count for every teacher; None: all."""
        masks = {name: one.mask(signal) for name, one in parts.items()}
        given = {name: mask for name, mask in masks.items() if mask is not None}
        if len({mask.shape for mask in given.values()}) > 1:
            raise ShapeError(self._unlike(f"mask of {signal}", _shapes(given)))
        return _everybodys(list(given.values()))

    def _axes(self, signal: str, parts: Sequence[Signals]) -> TokenAxes:
        found = [one.axes(signal) for one in parts]
        if len({len(axes) for axes in found}) > 1:
            return ()
        return tuple(self._axis(signal, one) for one in zip(*found, strict=True))

    def _axis(self, signal: str, parts: Sequence[TokenAxis | None]) -> TokenAxis | None:
        """What is known alike of every teacher's tokens; valid are those of all."""
        known = [one for one in parts if one is not None]
        if len(known) < len(parts):
            return None
        first, *others = known
        differ = {
            one.name
            for one in fields(TokenAxis)
            if not all(_same(getattr(first, one.name), getattr(x, one.name)) for x in others)
        }
        if differ & {"modality", "special"}:
            raise ShapeError(
                f"term {self._term!r}: its teachers' tokens of {signal} are of different "
                f"{' and '.join(sorted(differ & {'modality', 'special'}))}, so their mean has no "
                'meaning: give each a term of its own, teacher = "<name>"'
            )
        unknown: dict[str, Any] = dict.fromkeys(differ)
        unknown["valid"] = _everybodys([one.valid for one in known])
        return replace(first, **unknown)

    def _unlike(self, what: str, of: Mapping[str, object]) -> str:
        listed = ", ".join(f"{name!r} {size}" for name, size in of.items())
        return (
            f"term {self._term!r}: the {what} of its teachers do not fit: {listed}; an ensemble is "
            'a mean over equal shapes. Give each teacher a term of its own, teacher = "<name>"'
        )


def given_names(
    term: str, teacher: str | Sequence[str] | None, ensemble: str | Mapping[str, float] | None
) -> str | tuple[str, ...] | None:
    """``"all"``, the names that a term gives, or None.

    Raises:
        RecipeError: no names.
    """
    if teacher is None:
        return tuple(ensemble) if isinstance(ensemble, Mapping) else None
    if teacher == ALL:
        return ALL
    names = (teacher,) if isinstance(teacher, str) else tuple(teacher)
    if not names or not all(isinstance(one, str) for one in names) or len({*names}) < len(names):
        raise RecipeError(
            f'term {term!r}: `teacher` is a name, several different ones, or "all"; got {teacher!r}'
        )
    return names


def label_of_teachers(given: str | tuple[str, ...] | None) -> str:
    """What a term's name says of its teachers: ``@a``, ``@a+b``, ``@all``."""
    if given is None:
        return ""
    return f"@{given}" if isinstance(given, str) else f"@{'+'.join(given)}"


def _checked_ensemble(term: str, given: str | Mapping[str, float] | None) -> Ensemble:
    if given is None:
        return Ensemble()
    if isinstance(given, Mapping):
        good = [
            isinstance(x, Real) and not isinstance(x, bool) and 0 < x < math.inf
            for x in given.values()
        ]
        if not good or not all(good):
            raise RecipeError(
                f"term {term!r}: weights of an ensemble are finite numbers above 0; got "
                f"{dict(given)}. A teacher that is not wanted is left out"
            )
        return Ensemble(weights=dict(given))
    mean, colon, labels = str(given).partition(":")
    if mean not in _MEANS or (colon and (mean != "confidence" or not labels)):
        raise RecipeError(
            f"term {term!r}: `ensemble` is a mean, weights {{ a = 0.7, b = 0.3 }}, or "
            f'"confidence:<entry of the labels>"; got {given!r}: {did_you_mean(mean, _MEANS)}'
        )
    return Ensemble(mean, labels or None)


def _everybodys(masks: Sequence[Tensor | None]) -> Tensor | None:
    """The positions that all masks keep, on the first one's device; None keeps everything."""
    kept: Tensor | None = None
    for mask in masks:
        kept = both(kept, mask if mask is None or kept is None else mask.to(kept.device))
    return kept


def _are_logits(signal: str) -> bool:
    return signal.partition(".")[0] == "logits"


def _shapes(found: Mapping[str, Any]) -> dict[str, object]:
    return {
        name: tuple(one.shape) if hasattr(one, "shape") else f"{len(one)} layers"
        for name, one in found.items()
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other.to(one.device))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other
