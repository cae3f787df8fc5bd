"""An objective as data: a TOML file that knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .._plugins.registry import lookup
from .._plugins.specs import RecipeSpec, resource_file
from .._tables import Table, validated
from .._toml_file import read_toml
from ..errors import RecipeError, UnknownNameError, unknown_name
from .compared import compared_signals
from .ensemble import ALL, given_names
from .layer_choice import layer_rule
from .objective import Objective
from .schedule import Schedule
from .term import Term, default_name
from .weighting.making import make_weights

Signal = str | dict[Literal["student", "teacher"], str]
LayerWord = Literal["last", "first", "middle", "uniform", "all"]
LayerPairs = tuple[tuple[int | float, int | float | tuple[int | float, ...]], ...]
LayerTable = dict[
    Literal["from", "to", "pairs", "match"],
    Annotated[float, Field(ge=0, le=1)] | LayerPairs | Literal["mean", "best", "uniform"],
]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TermRecipe(Table):
    """One term as data; the keys are :class:`Term`'s parameters."""

    what = "a term"

    loss: str
    on: Signal | tuple[Signal, ...] = ()
    layers: LayerWord | LayerPairs | LayerTable = "last"
    rows: Literal["valid", "all"] = "valid"
    per: Literal["example", "row"] = "example"
    mask: str | None = None
    align: tuple[str | dict[str, Any], ...] = ()
    weight: Weight | Schedule = 1.0
    inputs: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    gather: bool = False
    learn: dict[str, float | dict[str, Any]] = Field(default_factory=dict)
    token_weights: str | dict[str, Any] | None = None
    name: str | None = None
    teacher: str | tuple[str, ...] | None = None
    ensemble: str | dict[str, Weight] | None = None

    @field_validator("on", mode="before")
    @classmethod
    def _names_signals(cls, given: Any) -> Any:
        compared_signals(given)  # says what is wrong in one line, not once for each of three types
        return given

    @field_validator("layers", mode="before")
    @classmethod
    def _names_layers(cls, given: Any) -> Any:
        layer_rule(given)  # one line, too
        return given

    @model_validator(mode="after")
    def _builds(self) -> TermRecipe:
        self.build()
        return self

    @property
    def label(self) -> str:
        """The name of the term in ``parts`` and ``override``."""
        on = compared_signals(self.on)  # type: ignore[arg-type]  # the two keys are strings
        return self.name or default_name(self.loss, on, self.teacher, self.ensemble)

    def build(self) -> Term:
        """The term."""
        return Term(**{field: getattr(self, field) for field in type(self).model_fields})


class RecipeGuide(Table):
    """Who a recipe is for: its row in the table that leads from what one has to a recipe.

    Attributes:
        teacher: the kind of model that is imitated.
        student: the kind of model that learns.
        data: what a batch has to hold.
        cost: what it costs beside the forward of both models.
    """

    what = "a recipe's guide"

    teacher: str = ""
    student: str = ""
    data: str = ""
    cost: str = ""


class Recipe(Table):
    """The terms of a distillation, as data.

    Attributes:
        name: what the recipe is called.
        summary: one line for the listing.
        reference: where it comes from.
        equation: the loss of the source as one line, in its own letters.
        omits: what of the source is not reproduced, and why.
        guide: who it is for.
        terms: the weighted losses.
        weighting: what multiplies the terms' weights, as of :class:`Objective`.

    Examples:
        >>> recipe = Recipe(name="soft", terms=[{"loss": "kl_divergence", "on": "logits"}])
        >>> recipe.override({"kl_divergence/logits.weight": 2.0}).terms[0].weight
        2.0
    """

    what = "a recipe"

    name: str
    summary: str = ""
    reference: str = ""
    equation: str = ""
    omits: str = ""
    guide: RecipeGuide = RecipeGuide()
    weighting: str | dict[str, Any] = "static"
    terms: tuple[TermRecipe, ...]

    if TYPE_CHECKING:  # what pydantic takes: a term may be a table

        def __init__(
            self,
            *,
            name: str,
            terms: Sequence[TermRecipe | Mapping[str, Any]],
            summary: str = "",
            reference: str = "",
            equation: str = "",
            omits: str = "",
            guide: RecipeGuide | Mapping[str, str] = ...,
            weighting: str | Mapping[str, Any] = "static",
        ) -> None: ...

    @model_validator(mode="after")
    def _has_terms(self) -> Recipe:
        if not self.terms:
            raise RecipeError("a recipe needs at least one [[terms]]")
        make_weights(self.weighting, [term.label for term in self.terms])
        return self

    def build(self) -> Objective:
        """The objective, whose parameters (of trained aligners) go to the optimiser."""
        return Objective([term.build() for term in self.terms], weighting=self.weighting)

    def of_teacher(self, name: str) -> Recipe:
        """The terms that learn from one of several teachers: what a cache of its signals is for.

        Raises:
            RecipeError: no term learns from it.
        """
        found = []
        for term in self.terms:
            names = given_names(term.label, term.teacher, term.ensemble)
            if names == ALL or (names is not None and name in names):
                found.append(term)
        if not found:
            raise RecipeError(
                f"recipe {self.name!r} has no term of the teacher {name!r}: it is named by a "
                f'term\'s key `teacher`, teacher = "{name}"'
            )
        return self.model_copy(update={"terms": tuple(found)})

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """The same recipe with some values changed, ``{"<term>.<key>": value}``.

        ``{"weighting": value}`` changes the recipe's.

        Raises:
            UnknownNameError: no such term.
            RecipeError: no such key, or a value that does not fit.
        """
        tables = {term.label: term.model_dump() for term in self.terms}
        own = {key: changes[key] for key in ("weighting",) if key in changes}
        for path, value in changes.items():
            if path in own:
                continue
            label = next((label for label in tables if path.startswith(f"{label}.")), None)
            if label is None:
                raise unknown_name("term of this recipe", path, [f"{one}.weight" for one in tables])
            *tables_in, key = path.removeprefix(f"{label}.").split(".")
            table = tables[label]
            for inner in tables_in:
                table = table.setdefault(inner, {})
                if not isinstance(table, dict):
                    raise RecipeError(f"{path!r}: {inner} of term {label!r} is {table!r}, no table")
            table[key] = value
        changed = {**self.model_dump(exclude={"terms"}), **own, "terms": list(tables.values())}
        return validated(type(self), changed, f"recipe {self.name!r}", RecipeError)


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by its registered name, or from the path of a TOML file.

    Raises:
        UnknownNameError: no such recipe or file.
        RecipeError: the file says something that no recipe means; every place is named.
        SpecError: a registered recipe whose package or file is not there.

    Examples:
        >>> [term.loss for term in load_recipe("dide").terms]
        ['kl_divergence', 'attention_kl', 'attention_kl']
    """
    if str(name).endswith(".toml"):
        table = read_toml(Path(name), "recipe file", RecipeError).tables
    else:
        file = resource_file(_registered(str(name)))
        table = read_toml(file, "recipe file", RecipeError).tables
    return validated(Recipe, table, f"recipe {str(name)!r}", RecipeError)


def _registered(name: str) -> RecipeSpec:
    """The spec of a registered recipe; a file of another name is told what it lacks."""
    try:
        return lookup(RecipeSpec, name)
    except UnknownNameError:
        if not Path(name).is_file():
            raise
        raise RecipeError(f"{name!r} is no recipe file: its name has to end in .toml") from None
