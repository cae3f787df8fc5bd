"""The listing of recipes: what each compares, and which adapters have the signals for it."""

from __future__ import annotations

import tomllib

import pytest

import distillkit as dk
from distillkit import errors
from distillkit.__main__ import main
from distillkit._plugins.recipe_card import is_offered, recipe_card
from distillkit._plugins.registry import lookup, provided

TOWERS = 'streams = { text = "t.*", image = "i.*" }\nhidden = { text = "t.*" }\n'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of TOML files; a recipe of it, registered and looked at."""
    (tmp_path / "fake_cards" / "toml").mkdir(parents=True)
    (tmp_path / "fake_cards" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / "fake_cards" / "toml" / f"{name}.toml").write_text(text, encoding="utf-8")
        return f"fake_cards:toml/{name}.toml"

    return write


def registered(*specs):
    for spec in specs:
        dk.register(spec)
    return specs[0]


@pytest.mark.parametrize("name", provided(dk.RecipeSpec))
def test_the_card_says_what_the_recipe_itself_says(name):
    spec = lookup(dk.RecipeSpec, name)
    card, recipe = recipe_card(spec), dk.load_recipe(name)
    assert [label for label, _ in card.terms] == [term.label for term in recipe.terms]
    on = [one for term in recipe.build().each() for one in term.on]
    assert list(card.needs["student"]) == list(dict.fromkeys(one.student for one in on))
    assert list(card.needs["teacher"]) == list(dict.fromkeys(one.teacher for one in on))
    assert card.reference == recipe.reference
    assert dict(card.guide) == {k: v for k, v in recipe.guide.model_dump().items() if v}


def test_sides_may_need_other_signals_and_only_adapters_that_have_them_all_are_named(package):
    terms = """name = "x"
    [[terms]]
    loss = "mse"
    on = { student = "hidden.text", teacher = "hidden.vision" }
    weight = 2.0
    [[terms]]
    loss = "kl_divergence"
    on = "logits"
    """
    spec = registered(
        dk.RecipeSpec("card_x", resource=package("x", terms)),
        dk.AdapterSpec("card_file", matches="m.A", resource=package("file", TOWERS)),
        dk.AdapterSpec("card_told", matches="m.B", factory="m:f", offers=["hidden.text", "logits"]),
        dk.AdapterSpec("card_silent", matches="m.C", factory="m:f"),
    )
    card = recipe_card(spec)
    assert card.terms == (("mse/hidden.text~hidden.vision", "2.0"), ("kl_divergence/logits", "1.0"))
    assert card.needs == {
        "student": ("hidden.text", "logits"),
        "teacher": ("hidden.vision", "logits"),
    }
    assert "card_told" in card.adapters["student"]
    assert "card_file" not in card.adapters["student"]  # it has no logits
    assert "card_told" not in card.adapters["teacher"]
    assert card.silent == ("card_silent",)


@pytest.mark.parametrize(
    ("signal", "offers", "expected"),
    [
        ("attention.image_to_text", ["attention.joint", "attention.text_to_image"], False),
        ("attention_mass.text_to_image", ["attention.text_to_image"], True),
        ("attention.query_to_image", ["attention.joint"], True),
        ("hidden.joint.image", ["hidden.joint"], True),
        ("hidden.joint.image", ["hidden.image"], False),
        ("logits.response", ["logits"], True),
        ("head.input", ["hidden.text"], False),
    ],
)
def test_what_is_made_of_which_signals(signal, offers, expected):
    assert is_offered(signal, offers) is expected


@pytest.mark.parametrize(
    "tables",
    [
        {
            "streams": {"joint": "b.*"},
            "logits": "logits",
            "absent": {"attention.image_to_text": "never"},
        },
        {"streams": {"text": "t.*", "image": "i.*"}, "embedding": {"text": "text_embeds"}},
        {"streams": {"joint": "b.*", "query_to_image": "q.*"}, "hidden": {"joint": "b.*"}},
        tomllib.loads(TOWERS),
    ],
)
def test_a_file_promises_the_names_that_its_adapter_knows(tables):
    adapter = dk.DeclarativeAdapter(**tables)
    promised = dk.signals_of_file(tables)
    assert promised == tuple(sorted(set(promised)))
    assert {f"attention.{stream}" for stream in adapter.streams} <= set(promised)
    with_layers = {name for name in promised if name.startswith(("attention.", "hidden."))}
    assert with_layers == set(adapter.sources) - set(tables.get("absent", {}))


def test_a_recipe_whose_file_is_wrong_does_not_hide_the_others(package, capsys):
    dk.register(dk.RecipeSpec("card_broken", resource=package("broken", "terms = 3")))
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert "cannot be read: recipe 'card_broken' has no [[terms]]" in out
    assert "attention_kl/attention.text_to_image" in out


def test_details_name_every_adapter_and_the_citation(capsys):
    assert main(["recipes", "dide"]) == 0
    out = capsys.readouterr().out
    assert "@inproceedings{wang-etal-2022-distilled" in out
    assert "vilt" in out


def test_a_recipe_that_is_no_toml(package):
    spec = dk.RecipeSpec("card_text", resource=package("text", "name ="))
    with pytest.raises(errors.RecipeError, match="recipe 'card_text' is no TOML"):
        recipe_card(spec)
