"""The catalogue of losses: every wrong entry is an error that names the entry."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from distillkit import errors, losses
from distillkit._plugins.catalogue import bibliography, catalogue, entries_of
from distillkit._plugins.specs import resolve

SOURCES = {"hinton-etal-2015-distilling": "@misc{...}"}
ENTRY = {
    "summary": "A distance.",
    "signature": "(d),(d)->()",
    "tags": ["nonnegative"],
    "reference": "hinton-etal-2015-distilling",
    "compares": "hidden states",
    "use_when": "widths are equal",
    "cost": "d",
    "needs": "equal widths",
}
# what takes part in a loss or follows it, and is none
HELPERS = {
    "checked_attentions", "checked_pair", "citation", "distinct_pairs", "distinct_triplets", "gather", "masked_mean",
    "shared_rows", "standardize_logits",
}  # fmt: skip


def read(entry, name="distance"):
    return list(entries_of({name: entry}, SOURCES))


def without_functions(names):
    return sorted(name for name in names if not inspect.isfunction(getattr(losses, name, None)))


def without_entries(names, public):
    return sorted(set(public) - HELPERS - set(names))


def test_an_entry_is_a_spec_and_a_row_of_the_guide():
    (entry,) = read({**ENTRY, "bound": 2.0, "example": "distillkit.testing.strategies:labelled"})
    assert entry.spec.name == "distance"
    assert entry.spec.function == "distillkit.losses:distance"
    assert entry.spec.tags == ("nonnegative",)
    assert entry.spec.bound == 2.0
    assert entry.spec.example == "distillkit.testing.strategies:labelled"
    assert (entry.compares, entry.needs) == ("hidden states", "equal widths")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sumary": "x"}, r"\[distance\]: there is no key 'sumary'; did you mean 'summary'\?"),
        ({"tags": "smooth"}, r"\[distance\]: tags is a list of strings; got 'smooth'"),
        ({"tags": [1]}, r"'distance': tags are strings.*got \(1,\)"),
        ({"bound": 1}, r"\[distance\]: bound is a number with a decimal point; got 1"),
        ({"bound": "1"}, r"\[distance\]: bound is a number with a decimal point; got '1'"),
        ({"example": "labelled"}, r"'distance': example is \"package.module:attribute\""),
        (
            {"reference": "hinton-etal-2015"},
            r"\[distance\]: no source in references.bib is called 'hinton-etal-2015'; did you mean",
        ),
    ],
)
def test_a_wrong_entry_is_named(change, message):
    with pytest.raises(errors.SpecError, match=message):
        read({**ENTRY, **change})


@pytest.mark.parametrize("key", ENTRY)
def test_a_missing_key_is_named(key):
    shorter = {name: value for name, value in ENTRY.items() if name != key}
    with pytest.raises(errors.SpecError, match=rf"\[distance\]: {key} is missing"):
        read(shorter)


@pytest.mark.parametrize(("name", "message"), [("task", "task"), ("a:b", "'a:b'")])
def test_a_name_that_no_recipe_could_write(name, message):
    with pytest.raises(errors.SpecError, match=message):
        read(ENTRY, name)


def test_an_entry_that_is_no_table():
    with pytest.raises(errors.SpecError, match=r"'version' is a table, \[version\]; got 1"):
        read(1, "version")


def test_a_name_without_a_function_says_so_where_it_is_used():
    (entry,) = read(ENTRY, "kl_divergance")
    with pytest.raises(errors.SpecError, match="did you mean 'kl_divergence'"):
        resolve(entry.spec.function)


def test_every_name_has_its_function_and_every_loss_its_entry():
    names = [entry.spec.name for entry in catalogue()]
    assert without_functions(names) == []
    assert without_entries(names, losses.__all__) == []
    assert without_functions(["kl_divergence", "kl_divergance"]) == ["kl_divergance"]
    assert without_entries(names[1:], losses.__all__) == names[:1]


def test_every_source_is_bibtex_under_its_own_key():
    for key, entry in bibliography().items():
        assert entry.startswith("@")
        assert f"{{{key},\n" in entry


def test_reading_imports_neither_losses_nor_what_is_slow():
    code = (
        "import sys; from distillkit._plugins.catalogue import catalogue; assert catalogue(); "
        "heavy = {'torch', 'numpy', 'pydantic', 'distillkit.losses'}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
