"""``on`` with another name for each side: looked up, recorded, shown, counted; and losses that see
tokens."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import distillkit as dk
from distillkit import errors, losses
from distillkit._objective.objective import wanted_layers
from tests.support import tiny

SIDES = {"student": "hidden.image", "teacher": "hidden.vision"}


def signals_of(**values):
    return dk.Signals({name.replace("_", "."): value for name, value in values.items()})


def hidden(b=2, n=3, d=4, *, learns=False, seed=0):
    torch.manual_seed(seed)
    return torch.randn(b, n, d, requires_grad=learns)


@pytest.fixture
def sides():
    return (
        signals_of(hidden_image=hidden(learns=True)),
        signals_of(hidden_vision=hidden(seed=1)),
    )


class TestNames:
    def test_each_side_is_looked_up_by_its_own_name(self, sides):
        term = dk.Term("mse", on=SIDES)
        expected = losses.mse(sides[0]["hidden.image"], sides[1]["hidden.vision"]).mean()
        torch.testing.assert_close(term(*sides), expected)
        assert term.name == "mse/hidden.image~hidden.vision"
        assert dk.Term("mse", on={"student": "a", "teacher": "a"}).name == "mse/a"

    def test_several_signals_of_which_one_has_two_names(self, sides):
        def added(student, other_student, teacher, other_teacher):
            return ((student - teacher) * (other_student - other_teacher)).sum(-1)

        student = sides[0].with_values({"hidden.text": hidden(seed=2, learns=True)})
        teacher = sides[1].with_values({"hidden.text": hidden(seed=3)})
        term = dk.Term(added, on=["hidden.text", SIDES])
        expected = added(
            student["hidden.text"], student["hidden.image"],
            teacher["hidden.text"], teacher["hidden.vision"],
        )  # fmt: skip
        torch.testing.assert_close(term(student, teacher), expected.mean())
        assert term.name == "added/hidden.text+hidden.image~hidden.vision"

    def test_what_a_side_lacks_is_said_of_that_side(self, sides):
        with pytest.raises(
            errors.SignalError, match="no signal of the teacher is called 'hidden.vision'"
        ):
            dk.Term("mse", on=SIDES)(sides[0], sides[0])
        with pytest.raises(errors.SignalError, match="the student's signal 'hidden.image' carries"):
            dk.Term("mse", on=SIDES)(sides[0].detach(), sides[1])

    def test_masks_and_axes_are_those_of_each_name(self, sides):
        padding = torch.tensor([[True, True, False], [True, False, False]])
        student = dk.Signals(dict(sides[0]), {"hidden.image": padding})
        teacher = dk.Signals(dict(sides[1]), {"hidden.vision": padding.flip(0)})
        term = dk.Term("mse", on=SIDES, per="row")
        values = losses.mse(student["hidden.image"], teacher["hidden.vision"])
        both = padding & padding.flip(0)
        torch.testing.assert_close(term(student, teacher), values[both].mean())

    @pytest.mark.parametrize(
        ("on", "complaint"),
        [
            ({"student": "a"}, "without the teacher's"),
            ({"student": "a", "techer": "b"}, "did you mean 'teacher'"),
            ({"student": "a", "teacher": 3}, "got .*3"),
            (["a", 3], "got 3"),
            (3, "got 3"),
            ({}, "without the student's"),
        ],
    )
    def test_what_names_no_signal(self, on, complaint):
        for make in (
            lambda: dk.Term("mse", on=on),
            lambda: dk.Recipe(name="x", terms=[{"loss": "mse", "on": on}]),
        ):
            with pytest.raises(ValueError, match=f"`on` is a signal.*{complaint}"):
                make()


class TestRecipe:
    TEXT = """
name = "sided"

[[terms]]
loss = "mse"
on = { student = "hidden.image", teacher = "hidden.vision" }
layers = [[0, 1]]

[[terms]]
loss = "kl_divergence"
on = "logits"
"""

    @pytest.fixture
    def recipe(self, tmp_path):
        (tmp_path / "sided.toml").write_text(self.TEXT, encoding="utf-8")
        return dk.load_recipe(tmp_path / "sided.toml")

    def test_a_file_says_it(self, recipe):
        terms = recipe.build().each()
        assert [term.name for term in terms] == [
            "mse/hidden.image~hidden.vision",
            "kl_divergence/logits",
        ]
        assert terms[0].on == (("hidden.image", "hidden.vision"),)
        assert pickle.loads(pickle.dumps(terms[0])).on == terms[0].on
        assert copy.deepcopy(recipe) == recipe

    def test_an_override_reaches_one_side(self, recipe):
        path = "mse/hidden.image~hidden.vision.on.teacher"
        changed = recipe.override({path: "hidden.joint"})
        assert changed.build().each()[0].on == (("hidden.image", "hidden.joint"),)
        with pytest.raises(errors.RecipeError, match="on of term 'kl_divergence/logits' is 'logit"):
            recipe.override({"kl_divergence/logits.on.teacher": "x"})

    def test_each_side_records_its_own_layers(self, recipe):
        objective = recipe.build()
        assert wanted_layers(objective, 0) == {"hidden.image": {0}, "logits": {-1}}
        assert wanted_layers(objective, 1) == {"hidden.vision": {1}, "logits": {-1}}

    def test_the_schema_for_editors_allows_it(self):
        on = dk.Recipe.model_json_schema()["$defs"]["TermRecipe"]["properties"]["on"]
        assert "propertyNames" in str(on) or "student" in str(on)


def distiller_of(*terms, **changes):
    torch.manual_seed(0)
    dual = {**tiny.DUAL_TABLES, "hidden": {"image": "image.blocks.*"}}
    return dk.Distiller(
        tiny.Dual(),
        tiny.Dual(),
        dk.Recipe(name="test", terms=list(terms)),
        student_adapter=dk.DeclarativeAdapter(**dual),
        teacher_adapter=dk.DeclarativeAdapter(
            **{
                **tiny.DUAL_TABLES,
                "hidden": {"vision": "image.blocks.*"},
                "tokens": {**tiny.DUAL_TABLES["tokens"], "vision": [tiny.IMAGE]},
            }
        ),
        ignore=["labels"],
        **changes,
    )


TERM = {"loss": "mse", "on": SIDES, "layers": [[0, 1]]}


class TestDistiller:
    def test_the_table_shows_both_names_and_marks_them_as_used(self):
        distiller = distiller_of(TERM)
        check = distiller.check(tiny.batch())
        shown = str(check)
        assert check.passed, shown
        assert "mse/hidden.image~hidden.vision" in shown
        assert "hidden.image*" in check.signals[0]
        assert "hidden.vision*" in check.signals[1]
        assert "*" not in check.signals[0].replace("hidden.image*", "")

    def test_training_compares_the_layers_of_each_side(self):
        distiller = distiller_of(TERM)
        result = distiller(tiny.batch())
        student, teacher = result.student["hidden.image"], result.teacher["hidden.vision"]
        expected = losses.mse(student[0], teacher[1]).mean()
        torch.testing.assert_close(result.loss, expected)
        result.loss.backward()
        assert distiller.student.image.blocks[0].qkv.weight.grad.any()
        again = distiller(tiny.batch(), teacher_signals=result.teacher.only("hidden.vision"))
        torch.testing.assert_close(again.loss, result.loss)

    def test_counts_add_up_over_parts(self):
        distiller = distiller_of({**TERM, "per": "row"})
        batch = tiny.batch(4)
        parts = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
        normalizer = distiller.normalizer(parts)
        assert list(normalizer) == ["mse/hidden.image~hidden.vision"]
        total = sum(distiller(part, normalizer=normalizer).loss for part in parts)
        torch.testing.assert_close(total, distiller(batch).loss)


def by_patch(student, teacher, *, student_tokens=(), teacher_tokens=()):
    """A loss of hidden states that weighs patches by how far they are from the middle."""
    (axis,), (other,) = student_tokens, teacher_tokens
    assert axis.grid == other.grid == (2, 2)
    assert axis.modality == "image"
    weights = torch.linspace(0, 1, axis.grid[0] * axis.grid[1])
    return weights * (student - teacher).square().mean(-1)


class TestLossesThatSeeTokens:
    def test_a_loss_is_told_the_tokens_and_the_grid(self):
        result = distiller_of({"loss": "mse", "on": SIDES})(tiny.batch())
        term = dk.Term(by_patch, on=SIDES)
        student, teacher = result.student["hidden.image"][-1], result.teacher["hidden.vision"][-1]
        expected = torch.linspace(0, 1, 4) * (student - teacher).square().mean(-1)
        torch.testing.assert_close(term(result.student, result.teacher), expected.mean())

    def test_of_attention_it_gets_queries_and_keys(self):
        seen = []

        def looks(student, teacher, *, student_tokens=(), teacher_tokens=()):
            seen.append((student_tokens, teacher_tokens))
            return losses.attention_kl(student, teacher)

        batch = tiny.batch()
        adapter = dk.DeclarativeAdapter(**tiny.DUAL_TABLES)
        inputs = {name: batch[name] for name in tiny.INPUTS}
        sides = [dk.Backbone(tiny.Dual(), adapter).signals(inputs) for _ in "st"]
        dk.Term(looks, on="attention.text_to_image")(*sides)
        (queries, keys), other = seen[0]
        assert (queries.modality, keys.modality, keys.grid) == ("text", "image", (2, 2))
        assert queries.special == (0,)
        torch.testing.assert_close(queries.valid, batch["mask"])
        assert len(other) == 2

    def test_a_loss_may_ask_for_one_side_alone(self):
        def by_grid(student, teacher, *, teacher_tokens=()):
            return (student - teacher).square().mean(-1) * teacher_tokens[0].grid[1]

        axes = {"h": (dk.TokenAxis("image", grid=(1, 3)),)}
        one, other = hidden(learns=True), hidden(seed=1)
        student, teacher = dk.Signals({"h": one}, axes=axes), dk.Signals({"h": other}, axes=axes)
        expected = 3 * losses.mse(one, other).mean()
        torch.testing.assert_close(dk.Term(by_grid, on="h")(student, teacher), expected)

    def test_what_a_term_gives_by_itself_is_no_option_and_no_input(self):
        dk.register(dk.LossSpec("test_by_patch", by_patch, signature="(d),(d)->()"))
        assert dk.Term("test_by_patch", on=SIDES).options == {}
        for given in ({"options": {"student_tokens": 3}}, {"inputs": {"student_tokens": "x"}}):
            with pytest.raises(errors.RecipeError, match="no (option|input) is called 'student_to"):
                dk.Term("test_by_patch", on=SIDES, **given)

    def test_it_sees_the_tokens_that_aligners_leave(self):
        seen = []

        def looks(student, teacher, *, student_tokens=(), teacher_tokens=()):
            seen.append((student_tokens, teacher_tokens))
            return (student - teacher).square().mean(-1)

        cls = dk.TokenAxis("image", special=(0,), grid=(1, 3))
        plain = dk.TokenAxis("image", grid=(1, 3))
        student = dk.Signals({"h": hidden(n=4, learns=True)}, axes={"h": (cls,)})
        teacher = dk.Signals({"h": hidden(n=3)}, axes={"h": (plain,)})
        dk.Term(looks, on="h", align=["drop_special"])(student, teacher)
        assert [axes[0].special for axes in seen[0]] == [(), ()]
