"""A term's aligners, applied one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ...errors import RecipeError, ShapeError
from .making import AxesOfSides, asked_tokens, axes_after, make_aligner, told_tokens


class Aligners(nn.ModuleList):
    """What makes one signal of both sides comparable: aligners, one after another.

    Args:
        term: what errors call the term.
        given: aligners, by name or ``{"name": ..., **options}``.

    Attributes:
        names: what they are called.

    Raises:
        UnknownNameError: no such aligner.
        RecipeError: options that its factory does not take.
    """

    def __init__(self, term: str, given: Sequence[str | Mapping[str, Any]] = ()) -> None:
        super().__init__(make_aligner(one) for one in given)
        self._term = term
        self.names = [one if isinstance(one, str) else one.get("name", "") for one in given]
        self._asked = [asked_tokens(aligner) for aligner in self]

    @property
    def take_tokens(self) -> bool:
        """Whether one of them asks which tokens the entries of a signal are."""
        return any(self._asked)

    @property
    def are_built(self) -> bool:
        """Whether every parameter of theirs exists."""
        return all(getattr(aligner, "is_built", True) for aligner in self)

    @property
    def need_example(self) -> bool:
        """Whether one of them cannot work before it has seen both sides."""
        return any(
            not getattr(aligner, "is_built", True) and not getattr(aligner, "works_unbuilt", False)
            for aligner in self
        )

    def build(self, student: Any, teacher: Any, axes: AxesOfSides) -> None:
        """Make what they train from one layer of both sides; what exists stays."""
        for index, aligner in enumerate(self):
            build: Callable[[Any, Any], None] | None = getattr(aligner, "build", None)
            if build is not None:
                build(student, teacher)
            student, teacher = self._align(index, student, teacher, axes)
            axes = axes_after(aligner, axes)

    def aligned(self, student: Any, teacher: Any, axes: AxesOfSides) -> tuple[Any, Any]:
        """One layer of both sides, after all of them.

        Raises:
            ShapeError: sides that one of them cannot align.
            RecipeError: an aligner that does not return both sides.
        """
        for index, aligner in enumerate(self):
            student, teacher = self._align(index, student, teacher, axes)
            axes = axes_after(aligner, axes)
        return student, teacher

    def aligned_axes(self, axes: AxesOfSides) -> AxesOfSides:
        """The known facts about the tokens of both sides, after all of them."""
        for aligner in self:
            axes = axes_after(aligner, axes)
        return axes

    def _align(self, index: int, student: Any, teacher: Any, axes: AxesOfSides) -> tuple[Any, Any]:
        known = told_tokens(self._asked[index], axes)
        try:
            found = self[index](student, teacher, **known)
        except ShapeError as error:
            raise ShapeError(f"term {self._term!r}: {error}") from None
        if not isinstance(found, tuple) or len(found) != 2:
            raise RecipeError(
                f"term {self._term!r}: the aligner {self.names[index]!r} returned a "
                f"{type(found).__name__}; an aligner returns both sides, (student, teacher)"
            )
        return found
