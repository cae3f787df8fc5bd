"""Every loss says what it is, in the same parts, and where it comes from."""

from __future__ import annotations

import inspect
import re

import pytest

from distillkit import LossSpec, errors, load_recipe, losses, register
from distillkit._plugins.catalogue import bibliography
from distillkit._plugins.registry import provided
from distillkit._plugins.specs import RecipeSpec, WeightingSpec, resolve

SPECS = {name: by["distillkit"] for name, by in provided(LossSpec).items() if "distillkit" in by}
every_loss = pytest.mark.parametrize("name", SPECS)


def missing(function, signature):
    """The parts that a docstring lacks; those of another loss count where it names it."""
    text = inspect.getdoc(function)
    borrowed = re.search(r"those of :func:`(\w+)`", text)
    other = inspect.getdoc(getattr(losses, borrowed[1])) if borrowed else ""
    source = text.partition("Source:")[2]
    arguments = text + other
    declared = "Attention" if signature == "attention" else f"``{signature}``"
    found = {
        "one line": re.match(r"[^\n]{20,100}\.\n\n", text),
        "formula": ".. math::" in text,
        "shape": re.search(rf"Shape[:,].*{re.escape(declared)}", arguments, re.DOTALL),
        "returns": "Returns:" in text,
        "raises": re.search(r"Raises:.*ShapeError", arguments, re.DOTALL),
        "doctest": ">>>" in text,
        "source": "https://" in source or ":func:" in source,
        "place": re.search(r'equation|section|"[\w\s-]+"|:func:', source),
        **{
            f"argument {parameter}": re.search(rf"^    {parameter}: ", arguments, re.MULTILINE)
            for parameter in inspect.signature(function).parameters
        },
    }
    return [part for part, there in found.items() if not there]


@every_loss
def test_every_part_is_there(name):
    assert missing(resolve(SPECS[name].function), SPECS[name].signature) == []
    assert SPECS[name].summary


def test_parts_can_be_missing():
    def vague(student, teacher, *, temperature=1.0):
        """Something like a distance."""

    assert missing(vague, "(v),(v)->()") == [
        "one line", "formula", "shape", "returns", "raises", "doctest", "source", "place",
        "argument student", "argument teacher", "argument temperature",
    ]  # fmt: skip


@every_loss
def test_every_source_is_in_the_bibliography(name):
    entry = losses.citation(name)
    assert re.match(rf"@(misc|inproceedings)\{{{SPECS[name].reference},\n", entry)
    for part in ("author", "title", "year", "url"):
        assert re.search(rf"^  {part} += \{{.+\}},$", entry, re.MULTILINE), part
    url = re.search(r"url += \{(.*)\}", entry)[1]
    text = inspect.getdoc(resolve(SPECS[name].function))
    if "https://" in text.partition("Source:")[2]:
        assert url in text or name == "attention_reverse_kl"


def test_everything_in_the_bibliography_is_used():
    recipes = [load_recipe(name).reference for name in provided(RecipeSpec)]
    weightings = [spec.reference for by in provided(WeightingSpec).values() for spec in by.values()]
    used = {spec.reference for spec in SPECS.values()} | {*recipes, *weightings}
    assert set(bibliography()) == used - {""}


def test_several_losses_are_cited_once_each():
    recipe = load_recipe("dide")
    text = losses.citation(recipe.reference, *(term.loss for term in recipe.terms))
    assert re.findall(r"^@\w+\{([\w-]+),", text, re.MULTILINE) == [
        "wang-etal-2022-distilled", "hinton-etal-2015-distilling",
    ]  # fmt: skip


def test_unknown_names_and_a_plugins_own_entry():
    with pytest.raises(errors.UnknownNameError, match="did you mean 'kl_divergence'"):
        losses.citation("kl_divergenc")
    entry = "@misc{mine-2025, title = {Mine}}"
    register(LossSpec("mine", "x:y", signature="(d),(d)->()", reference=entry))
    assert losses.citation("mine") == entry
