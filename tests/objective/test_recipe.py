"""Recipes, terms and schedules: what they mean, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import distillkit as dk
from distillkit import errors


def signals(width=3, layers=2, **given):
    torch.manual_seed(sum(map(ord, str(given))))
    hidden = [torch.randn(2, 4, width, requires_grad=True) for _ in range(layers)]
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    return dk.Signals(
        {"logits": torch.randn(2, 5, requires_grad=True), "hidden.text": hidden},
        {"hidden.text": mask},
    )


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


class TestRecipeFiles:
    def test_dide_has_weights_of_one_and_the_last_layer(self):
        recipe = dk.load_recipe("dide")
        assert [(term.loss, term.on, term.weight, term.layers) for term in recipe.terms] == [
            ("kl_divergence", "logits", 1.0, "last"),
            ("attention_kl", "attention.text_to_image", 1.0, "last"),
            ("attention_kl", "attention.image_to_text", 1.0, "last"),
        ]

    def test_every_key_from_toml(self, tmp_path):
        recipe = dk.load_recipe(write(tmp_path, """
            name = "all"
            [[terms]]
            loss = "kl_divergence"
            on = ["logits"]
            per = "row"
            rows = "valid"
            weight = { start = 8.0, stop = 0.0, until = 0.5, shape = "cosine" }
            options = { temperature = 2.0 }
            name = "soft"
            [[terms]]
            loss = "mse"
            on = "hidden.text"
            layers = [[0, 1]]
            align = [{ name = "projector", student_width = 3, teacher_width = 6 }]
        """))  # fmt: skip
        objective = recipe.build()
        result = objective(signals(3), signals(6), progress=0.25)
        assert result.weights == {"soft": 4.0, "mse/hidden.text": 1.0}
        assert len(list(objective.parameters())) == 2

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name = 'x'\n[[terms]]\nloss='kl_divergance'\non='logits'", r"terms\.0: no loss is called 'kl_divergance'; did you mean 'kl_divergence'"),
            ("name = 'x'\n[[terms]]\nloss='mse'\non='a'\nwieght=2", r"terms\.0: no key of a term is called 'wieght'; did you mean 'weight'"),
            ("name = 'x'\n[[terms]]\nloss='kl_divergence'\non='a'\n[terms.options]\ntemprature=2", "no option is called 'temprature'; did you mean 'temperature'"),
            ("name = 'x'\n[[terms]]\nloss='kl_divergence'\non='a'\n[terms.options]\ntemperature=-1.0", "option temperature = -1.0: Input should be greater than 0"),
            ("name = 'x'\n[[terms]]\nloss='mse'", "needs `on`"),
            ("name = 'x'\n[[terms]]\nloss='mse'\non='a'\nweight=-1", r"terms\.0\.weight.*greater than or equal to 0"),
            ("name = 'x'\n[[terms]]\nloss='mse'\non='a'\nweight={start=1,stop=0,shap='step'}", "no key of a weight schedule is called 'shap'; did you mean 'shape'"),
            ("name = 'x'\n[[terms]]\nloss='mse'\non='a'\nalign=['projektor']", "no aligner is called 'projektor'; did you mean 'projector'"),
            ("name = 'x'\n[[terms]]\nloss='mse'\non='a'\nalign=[{name='projector', student_width=3}]", "both student_width and teacher_width"),
            ("name = 'x'\n[[terms]]\nloss='mse'\non='a'\ninputs={labels='y'}", "no input is called 'labels'"),
            ("name = 'x'\n[[terms]]\nloss='task'\non='a'", "takes a weight and a name"),
            ("name = 'x'\nterms = []", r"at least one \[\[terms\]\]"),
            ("nam = 'x'\n[[terms]]\nloss='task'", "no key of a recipe is called 'nam'; did you mean 'name'"),
            ("name = ", "is no TOML"),
        ],
    )  # fmt: skip
    def test_what_a_file_gets_wrong_is_named(self, tmp_path, text, message):
        with pytest.raises(errors.RecipeError, match=f"(?s)recipe.toml.*{message}"):
            dk.load_recipe(write(tmp_path, text))

    def test_a_file_that_is_not_there(self, tmp_path):
        write(tmp_path, "")
        with pytest.raises(
            errors.UnknownNameError, match=r"no recipe file .*did you mean .*recipe\.toml"
        ):
            dk.load_recipe(tmp_path / "recipes.toml")
        with pytest.raises(
            errors.UnknownNameError, match="no recipe is called 'did'; did you mean 'dide'"
        ):
            dk.load_recipe("did")

    def test_override(self):
        recipe = dk.load_recipe("dide")
        changed = recipe.override(
            {
                "attention_kl/attention.text_to_image.weight": 8.0,
                "kl_divergence/logits.options.temperature": 2.0,
            }
        )
        assert [term.weight for term in changed.terms] == [1.0, 8.0, 1.0]
        assert changed.terms[0].options == {"temperature": 2.0}
        assert recipe.terms[1].weight == 1.0
        with pytest.raises(
            errors.UnknownNameError, match="did you mean 'kl_divergence/logits.weight'"
        ):
            recipe.override({"kl_divergence/logit.weight": 1.0})
        with pytest.raises(errors.RecipeError, match="no key of a term is called 'wieght'"):
            recipe.override({"kl_divergence/logits.wieght": 1.0})

    def test_the_schema_for_editors(self):
        schema = dk.Recipe.model_json_schema()
        keys = {"name", "summary", "reference", "equation", "omits", "guide", "terms", "weighting"}
        assert set(schema["properties"]) == keys


class TestTerm:
    def test_masked_positions_are_left_out_example_by_example(self):
        student, teacher = signals(a=1), signals(a=2)
        value = dk.Term("mse", on="hidden.text")(student, teacher)
        rows = (student["hidden.text"][-1] - teacher["hidden.text"][-1]).square().mean(-1)
        torch.testing.assert_close(value, (rows[0, :3].mean() + rows[1, 0]) / 2)
        per_row = dk.Term("mse", on="hidden.text", per="row")(student, teacher)
        torch.testing.assert_close(per_row, torch.cat([rows[0, :3], rows[1, :1]]).mean())
        everything = dk.Term("mse", on="hidden.text", rows="all")(student, teacher)
        torch.testing.assert_close(everything, rows.mean())

    def test_layers(self):
        student, teacher = signals(a=1, layers=3), signals(a=2, layers=3)

        def value(layers, other=teacher):
            return dk.Term("mse", on="hidden.text", layers=layers, rows="all")(student, other)

        each = [
            (s - t).square().mean()
            for s, t in zip(student["hidden.text"], teacher["hidden.text"], strict=True)
        ]
        torch.testing.assert_close(value("last"), each[2])
        torch.testing.assert_close(value("all"), sum(each) / 3)
        torch.testing.assert_close(value([[0, 0], [-1, 2]]), (each[0] + each[2]) / 2)
        with pytest.raises(errors.RecipeError, match="student has 3 layers and the teacher 2"):
            value("all", signals(layers=2))
        with pytest.raises(
            errors.RecipeError, match="names a layer that is not there; the student has 3"
        ):
            value([[3, 0]])
        with pytest.raises(errors.RecipeError, match="no meaning for a signal without layers"):
            dk.Term("kl_divergence", on="logits", layers="all")(student, teacher)

    def test_inputs_come_from_the_batch(self):
        def weighted(
            student: Tensor, teacher: Tensor, *, labels: Tensor, power: float = 1.0
        ) -> Tensor:
            return (student - teacher).abs().mean(-1) * labels**power

        term = dk.Term(weighted, on="logits", inputs={"labels": "y"}, options={"power": 2.0})
        student, teacher = signals(a=1), signals(a=2)
        value = term(student, teacher, {"y": torch.tensor([2.0, 0.0])})
        torch.testing.assert_close(
            value, 2 * (student["logits"] - teacher["logits"])[0].abs().mean()
        )
        with pytest.raises(
            errors.SignalError,
            match="binds 'labels' to the batch: no batch entry is called 'y'; known: 'x'",
        ):
            term(student, teacher, {"x": 1})
        with pytest.raises(errors.RecipeError, match="needs the option or input 'labels'"):
            dk.Term(weighted, on="logits")

    def test_several_signals_come_students_first(self):
        def second(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
            return (a - c).square().mean(-1) + 0 * (b - d).sum(-1)

        student = dk.Signals(
            {
                "embedding.text": torch.randn(2, 3, requires_grad=True),
                "embedding.image": torch.randn(2, 3, requires_grad=True),
            }
        )
        teacher = dk.Signals(
            {"embedding.text": torch.randn(2, 3), "embedding.image": torch.randn(2, 3)}
        )
        value = dk.Term(second, on=["embedding.text", "embedding.image"])(student, teacher)
        torch.testing.assert_close(
            value, (student["embedding.text"] - teacher["embedding.text"]).square().mean()
        )

    def test_an_aligner_of_ones_own_and_widths_that_do_not_fit(self):
        dk.register(
            dk.AlignerSpec("test_first_two", factory=lambda: lambda s, t: (s[..., :2], t[..., :2]))
        )
        student, teacher = signals(3), signals(6)
        value = dk.Term("mse", on="hidden.text", align=["test_first_two"])(student, teacher)
        assert value.isfinite()
        with pytest.raises(
            errors.ShapeError, match=r"term 'mse/hidden.text': mse needs the same 'd'"
        ):
            dk.Term("mse", on="hidden.text")(student, teacher)
        with pytest.raises(errors.ShapeError, match="projector maps width 4 to 6; got student"):
            align = [{"name": "projector", "student_width": 4, "teacher_width": 6}]
            dk.Term("mse", on="hidden.text", align=align)(student, teacher)

    def test_a_projector_learns(self):
        align = [{"name": "projector", "student_width": 3, "teacher_width": 6}]
        objective = dk.Objective([dk.Term("mse", on="hidden.text", align=align)])
        student, teacher = signals(3), signals(6).detach()
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
        values = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = objective(student, teacher).loss
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        assert values[-1] < 0.9 * values[0]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"rows": "al"}, "no choice of `rows` is called 'al'; did you mean 'all'"),
            ({"per": "rows"}, "no choice of `per` is called 'rows'; did you mean 'row'"),
            ({"layers": "lst"}, "no choice of `layers` is called 'lst'; did you mean 'last'"),
            ({"weight": -1.0}, "finite number >= 0"),
            ({"weight": math.nan}, "finite number >= 0"),
            ({"weight": {"start": 1.0, "stop": 0.0, "til": 0.5}}, "did you mean 'until'"),
        ],
    )
    def test_misspelt_choices(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            dk.Term("mse", on="logits", **wrong)

    def test_a_schedule_by_its_keys(self):
        term = dk.Term("mse", on="logits", weight={"start": 4.0, "stop": 2.0})
        assert term.weight_at(0.5) == 3.0


class TestObjective:
    def test_names_must_differ(self):
        with pytest.raises(errors.RecipeError, match="several terms are called 'mse/logits'"):
            dk.Objective([dk.Term("mse", on="logits"), dk.Term("mse", on="logits")])
        with pytest.raises(errors.RecipeError, match="at least one term"):
            dk.Objective([])

    def test_everything_at_weight_zero_is_an_error_in_training(self):
        objective = dk.Objective([dk.Term("mse", on="logits", weight=0.0)])
        with pytest.raises(errors.RecipeError, match="every term has weight 0"):
            objective(signals(), signals())
        assert objective.eval()(signals(), signals()).loss == 0

    def test_is_a_module(self):
        align = [{"name": "projector", "student_width": 3, "teacher_width": 6}]
        objective = dk.Objective([dk.Term("mse", on="hidden.text", align=align)])
        assert isinstance(objective, nn.Module)
        assert set(objective.state_dict()) == {
            "terms.0.aligners.0.linear.weight",
            "terms.0.aligners.0.linear.bias",
        }


class TestSchedule:
    @pytest.mark.parametrize(
        ("shape", "progress", "weight"),
        [
            ("step", 0.49, 8.0), ("step", 0.5, 2.0), ("linear", 0.25, 5.0), ("linear", 0.0, 8.0),
            ("cosine", 0.25, 5.0), ("cosine", 0.125, 2 + 6 * (1 + math.cos(math.pi / 4)) / 2), ("linear", 1.0, 2.0),
        ],
    )  # fmt: skip
    def test_by_hand(self, shape, progress, weight):
        schedule = dk.Schedule(start=8.0, stop=2.0, until=0.5, shape=shape)
        assert schedule.at(progress) == pytest.approx(weight)

    @given(
        st.floats(0, 10),
        st.floats(0, 10),
        st.floats(0.01, 1),
        st.sampled_from(["step", "linear", "cosine"]),
        st.floats(0, 1),
    )
    def test_it_stays_between_its_ends(self, start, stop, until, shape, progress):
        weight = dk.Schedule(start=start, stop=stop, until=until, shape=shape).at(progress)
        assert min(start, stop) - 1e-9 <= weight <= max(start, stop) + 1e-9

    @pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
    def test_a_progress_is_in_zero_one(self, progress):
        with pytest.raises(errors.OptionError, match=r"in \[0, 1\]; got"):
            dk.Schedule(start=1.0, stop=0.0).at(progress)

    @pytest.mark.parametrize(
        "wrong",
        [{"start": -1.0}, {"until": 0.0}, {"until": 2.0}, {"stop": math.inf}, {"shape": "exp"}],
    )
    def test_ranges(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dk.Schedule(**{"start": 1.0, "stop": 0.0, **wrong})
