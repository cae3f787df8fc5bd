"""Looks at a few chosen examples while a student learns: readings, and attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._backbone.batch import SideOfBatch, checked_batch
from .._backbone.signals import Signals
from .._objective.distiller import Distiller
from .._objective.gathering import alone
from .._objective.layer_choice import LayerChoice, layer_rule
from .._objective.objective import autocast_off
from .._objective.surroundings import dry_run
from .._objective.teacher import device_of
from .._objective.term import Term
from .._view.contents import Scene, scene_of
from .._view.sources import Given, sources_of
from .._view.tokens import Explained, given_words
from ..errors import OptionError
from .partners import Side, partners


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A few examples that a :class:`RunLog` looks at every so often, without training on them.

    A look runs both models in eval mode, once for readings and once for attention, and changes
    neither parameters nor random state. Its time is logged apart.

    Args:
        batch: the examples, as a distiller takes them; a few are enough. Readings need two.
        every: after how many steps the next look is due. It is taken on a step that is logged.
        readings: take every comparing term once with the examples' own teacher signals and once
            with those of another example: the student has learned where to look in *this* image
            where its own stay below. An example is compared with one that is as long, since words
            of one are padding of a shorter one; examples without such a partner are left out, and
            where none has one, there is no reading with the signals of others.
        attention: keep where both sides look, for the report.
        words: as of :func:`view`.
        images: as of :func:`view`.
        denormalise: as of :func:`view`.
        signals: as of :func:`view`.
        layers: as of :func:`view`; the last layer by default, since every layer is kept of every
            look.

    Raises:
        OptionError: nothing to look at; ``every`` below 1; readings of a single example.
        RecipeError: layers that mean nothing.
        SignalError: a batch that is no mapping.

    Examples:
        >>> batch = {"input_ids": torch.tensor([[5, 6], [7, 8]])}
        >>> Watch(batch=batch, every=50, words=[["a", "dog"], ["a", "cat"]]).every
        50
    """

    batch: Mapping[str, Any]
    every: int = 100
    readings: bool = True
    attention: bool = True
    words: Any = None
    images: Any = None
    denormalise: Any = None
    signals: Sequence[str] | None = None
    layers: LayerChoice = "last"

    def __post_init__(self) -> None:
        checked_batch(self.batch)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise OptionError(f"every= is a number of steps, 1 or more; got {self.every!r}")
        if not (self.readings or self.attention):
            raise OptionError(
                "a watch takes readings or attention: with both off there is nothing to look at"
            )
        given_words(self.words, known=True)
        layer_rule(self.layers)
        if self.denormalise is not None and self.images is None:
            raise OptionError("denormalise= is about images=, which is not given")
        sizes = _sizes(self.batch)
        if self.readings and sizes and max(sizes) < 2:
            raise OptionError(
                f"readings compare examples with each other's maps; the batch has {max(sizes)}. "
                "Give two or more, or readings=False"
            )


@dataclass(frozen=True)
class Looked:
    """What one look saw.

    Attributes:
        own: term -> its value with the examples' own teacher signals.
        wrong: term -> its value with those of another example.
        scene: where both sides look; None: it was not asked for.
    """

    own: Mapping[str, float]
    wrong: Mapping[str, float]
    scene: Scene | None


def look(distiller: Distiller, watch: Watch) -> Looked:
    """Look at the examples now.

    Raises:
        OptionError: attention of several teachers.
        SignalError: no attention that both sides have.
    """
    batch = _on(watch.batch, device_of(distiller.student))
    own, wrong = _readings(distiller, batch) if watch.readings else ({}, {})
    scene = _attention(distiller, watch, batch) if watch.attention else None
    return Looked(own, wrong, scene)


@torch.no_grad()
def _readings(
    distiller: Distiller, batch: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """Each comparing term on own and on wrong teacher signals, whatever its weight is now."""
    brought = batch.get("teacher_signals")
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    terms = [term for term in distiller.objective.each() if not term.is_task]
    with dry_run(distiller):
        theirs = distiller.run_teacher(batch) if brought is None else brought
        _, ours = distiller.run_student(batch)
        paired = partners(_sides(terms, ours, theirs))
        others = theirs
        if paired.own:
            other = torch.tensor(paired.other, device=device_of(distiller.student))
            others = _of_teacher(theirs, other)
        if paired.own and not paired.are_all:
            own = torch.tensor(paired.own, device=device_of(distiller.student))
            batch = _taken(terms, batch, own)
            ours, theirs = ours.take(own), _of_teacher(theirs, own)
        view = SideOfBatch(batch, "student")
        with autocast_off(), alone():
            for term in terms:
                found[0][str(term.name)] = term(ours, theirs, view).item()
                if paired.own:
                    found[1][str(term.name)] = term(ours, others, view).item()
    return found


def _sides(terms: Sequence[Term], ours: Signals, theirs: Any) -> list[Side]:
    """The signals of every model, with what terms compare of them."""
    names = [one.student for term in terms for one in term.on]
    taught = [one.teacher for term in terms for one in term.on]
    teachers = [theirs] if isinstance(theirs, Signals) else list(theirs.values())
    return [Side(ours, names), *(Side(one, taught) for one in teachers)]


def _of_teacher(theirs: Any, index: Tensor) -> Any:
    if isinstance(theirs, Signals):
        return theirs.take(index)
    return {name: one.take(index) for name, one in theirs.items()}


def _taken(terms: Sequence[Term], batch: Mapping[str, Any], index: Tensor) -> Mapping[str, Any]:
    """The batch, with these examples of the entries that terms read."""
    names = {name for term in terms for name in term.entries} & set(batch)
    return {**batch, **{name: batch[name][index] for name in names}}


def _attention(distiller: Distiller, watch: Watch, batch: Mapping[str, Any]) -> Scene:
    if len(distiller.teachers) > 1:
        raise OptionError(
            "the viewer shows one teacher, and this distiller has several: give a watch "
            "attention=False"
        )
    words = given_words(watch.words, known=True)
    with dry_run(distiller):
        sources = sources_of(distiller, None, batch, Given(words, watch.images is not None))
    raw = not isinstance(watch.images, str) and watch.denormalise is None
    return scene_of(
        sources,
        asked=watch.signals,
        layers=watch.layers,
        explained=Explained(watch.words if words is None else words, sources.batch, raw),
        images=watch.images,
        denormalise=watch.denormalise,
    )


def _sizes(batch: Mapping[str, Any]) -> set[int]:
    return {len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim > 0}


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: x.to(device) if hasattr(x, "to") else x for name, x in batch.items()}
