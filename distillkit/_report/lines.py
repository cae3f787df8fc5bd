"""The lines of a run's files: what each holds, as JSON, and what is finite in it.

A run is a folder with ``run.jsonl``, one JSON object a line, and ``attention.jsonl`` where
attention was looked at. A program that begins, or goes on, writes a line ``begin``; each logged
step is a line ``step``, each look a line ``look``; closing the log writes a line ``end``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .._view.steps import Errors

FORMAT = 1
"""The version of the files; a reader refuses others."""

LOG, ATTENTION, LOCK = "run.jsonl", "attention.jsonl", "run.lock"

Numbers: TypeAlias = "dict[str, float | None]"
"""Name -> value; None where ``nonfinite`` says what it was."""

_DIGITS = 7  # what float32 holds


class Line(BaseModel):
    """One line; keys that a later version adds are left alone."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class TermFacts(Line):
    """One term of the recipe, as text."""

    name: str
    loss: str
    on: str
    weight: str
    layers: str = ""
    align: str = ""


class ComparedFacts(Line):
    """One row of ``distiller.check(batch)``."""

    term: str
    student: str = ""
    teacher: str = ""
    align: str = ""
    counts: str = ""
    value: float | None = None
    layers: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)


class ModelFacts(Line):
    """A model's size."""

    name: str
    parameters: int
    trained: int


class RecipeFacts(Line):
    """The recipe by its name."""

    name: str
    summary: str = ""
    equation: str = ""
    omits: str = ""


class Facts(Line):
    """What is known before the first step."""

    recipe: RecipeFacts | None = None
    weighting: str = ""
    terms: list[TermFacts] = Field(default_factory=list)
    compared: list[ComparedFacts] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    citations: str = ""
    student: ModelFacts | None = None
    teachers: list[ModelFacts] = Field(default_factory=list)
    aligners: int = 0
    device: str = ""


class Begin(Line):
    """A program begins, or goes on."""

    kind: Literal["begin"] = "begin"
    format: int = FORMAT
    time: float
    resumed: bool = False
    ranks: int = 1
    versions: dict[str, str] = Field(default_factory=dict)
    facts: Facts = Facts()


class Step(Line):
    """What was logged of one step.

    ``elapsed`` is the seconds of this program without looks; ``memory`` the most bytes so far, by
    where they are.
    """

    kind: Literal["step"] = "step"
    step: int
    time: float
    elapsed: float
    loss: float | None = None
    parts: Numbers = Field(default_factory=dict)
    weights: Numbers = Field(default_factory=dict)
    values: Numbers = Field(default_factory=dict)
    nonfinite: dict[str, str] = Field(default_factory=dict)
    memory: dict[str, int] = Field(default_factory=dict)


class Look(Line):
    """Every comparing term on the chosen examples: with their own maps, and those of others."""

    kind: Literal["look"] = "look"
    step: int
    elapsed: float
    seconds: float
    own: Numbers = Field(default_factory=dict)
    wrong: Numbers = Field(default_factory=dict)
    nonfinite: dict[str, str] = Field(default_factory=dict)


class Snapshot(Line):
    """Where both sides looked at one step.

    Attributes:
        step: after how many steps.
        facts: the key of what does not change from step to step, as JSON.
        texts: the keys of the layers.
        means: of each signal and layer, the mean divergences of each example and head.
        errors: no probability is farther from the exact one.
        new: key -> text, of those that no line before has.
    """

    kind: Literal["attention"] = "attention"
    format: int = FORMAT
    step: int
    facts: str
    texts: list[str]
    means: list[list[list[list[float | str | None]] | None]]
    errors: Errors
    new: dict[str, str]


class End(Line):
    """The log was closed."""

    kind: Literal["end"] = "end"
    time: float


Entry: TypeAlias = "Begin | Step | Look | End | Snapshot"

_KINDS: dict[str, type[Entry]] = {
    "begin": Begin, "step": Step, "look": Look, "end": End, "attention": Snapshot,
}  # fmt: skip


def written(entry: Entry) -> bytes:
    """One line of a file; keys that hold nothing are left out."""
    held = {
        key: value
        for key, value in entry.model_dump().items()
        if value not in ({}, [], "", None) or key in ("loss", "kind")
    }
    if held.get("loss", 0) is None and "loss" not in held.get("nonfinite", {}):
        del held["loss"]
    text = json.dumps(held, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def read(line: bytes) -> Entry | int:
    """The entry of a line; a number: the version of a format that is another.

    Raises:
        ValueError: it is no line of a run's files, and why.
    """
    try:
        held = json.loads(line)
    except ValueError:
        raise ValueError("it is cut off or no JSON") from None
    if not isinstance(held, dict) or held.get("kind") not in _KINDS:
        raise ValueError("it is no entry of a run log")
    version = held.get("format", FORMAT)
    if isinstance(version, int) and version != FORMAT:
        return version
    try:
        return _KINDS[held["kind"]].model_validate(held)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}") from None


def finite(values: Mapping[str, float], prefix: str = "") -> tuple[Numbers, dict[str, str]]:
    """Values with None for those that JSON has no number for, and what those were.

    Examples:
        >>> finite({"mse": 0.123456789, "kl": float("inf")}, "parts/")
        ({'mse': 0.1234568, 'kl': None}, {'parts/kl': 'inf'})
    """
    numbers: Numbers = {}
    lost = {}
    for name, value in values.items():
        if math.isfinite(value):
            numbers[name] = float(f"{value:.{_DIGITS}g}")
        else:
            numbers[name] = None
            lost[f"{prefix}{name}"] = str(value)
    return numbers, lost


def as_number(value: Any) -> float | None:
    """A number, or a tensor with one entry, as a float; None: it is neither."""
    if isinstance(value, bool | str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
