"""``layers`` of a term: which layer of the student is compared with which of the teacher."""

from __future__ import annotations

import copy
import math
import tomllib
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import distillkit as dk
from distillkit import errors, losses
from distillkit._backbone.depth import Span, nearest_layer, positions
from distillkit._objective.checks import check_term
from distillkit._objective.layer_choice import layer_rule
from distillkit._objective.layer_mean import mean_of_layers
from distillkit._objective.objective import wanted_layers
from distillkit._objective.recipe import TermRecipe
from tests.support import tiny

NAME = "hidden.text"
DEPTHS = st.integers(1, 40)
FRACTIONS = st.integers(0, 1000).map(lambda n: n / 1000)


def matched(layers, student, teacher):
    return [
        (one.student, one.teachers) for one in layer_rule(layers).matched("t", student, teacher)
    ]


def hidden(depth, *, seed=0, examples=3, learns=False):
    generator = torch.Generator().manual_seed(seed)
    shape = depth, examples, 4, 5
    layers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [x.clone().requires_grad_(learns) for x in layers]


def sides(student, teacher, mask=None, name=NAME):
    masks = {} if mask is None else {name: mask}
    return dk.Signals({name: student}, masks), dk.Signals({name: teacher}, masks)


def attentions(depth, *, seed=0, heads=2, mask=None, rows=None):
    generator = torch.Generator().manual_seed(seed)
    shape = depth, 3, heads, 5, 5
    query, key = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    query = query[:, :, :, :4]
    return [dk.Attention(3 * q, k, mask=mask, rows=rows) for q, k in zip(query, key, strict=True)]


class TestRules:
    def test_words(self):
        assert matched("last", 3, 5) == [(-1, (-1,))]
        assert matched("first", 3, 5) == [(0, (0,))]
        assert matched("all", 2, 2) == [(0, (0,)), (1, (1,))]
        assert matched("uniform", 4, 12) == [(0, (2,)), (1, (5,)), (2, (8,)), (3, (11,))]
        assert [one for one, _ in matched("middle", 12, 32)] == [*range(3, 9)]
        assert [x for _, group in matched("middle", 12, 32) for x in group] == [*range(9, 23)]
        assert matched("middle", 1, 1) == [(0, (0,))]

    @given(DEPTHS, FRACTIONS)
    def test_a_fraction_is_the_nearest_layer_and_halves_go_up(self, depth, fraction):
        exact = Fraction(str(fraction)) * (depth - 1)
        found = nearest_layer(fraction, depth)
        assert 0 <= found < depth
        assert -Fraction(1, 2) < found - exact <= Fraction(1, 2)
        assert matched([[fraction, fraction]], depth, depth) == [(found, (found,))]

    @given(DEPTHS, DEPTHS, st.sampled_from(["mean", "best", "uniform"]), FRACTIONS, FRACTIONS)
    def test_a_span_pairs_every_layer_of_both_sides(self, student, teacher, match, one, other):
        if one == other:
            return
        start, stop = sorted((one, other))
        span = Span(start, stop)
        found = matched({"from": start, "to": stop, "match": match}, student, teacher)
        ours, theirs = span.of(student), span.of(teacher)
        assert [layer for layer, _ in found] == [*ours]
        groups = [group for _, group in found]
        assert all(len(group) >= 1 for group in groups)
        named = [layer for group in groups for layer in group]
        assert named == sorted(named)
        assert set(named) <= set(theirs)
        if match == "uniform":
            assert all(len(group) == 1 for group in groups)
            if len(theirs) >= len(ours):
                assert named[-1] == theirs[-1], "the tops meet"
        elif len(theirs) >= len(ours):
            assert named == [*theirs], "each layer of the teacher teaches once"
            assert max(map(len, groups)) - min(map(len, groups)) <= 1
        else:
            assert all(len(group) == 1 for group in groups)
        if len(ours) == len(theirs):
            assert [group for _, group in found] == [(layer,) for layer in theirs]

    def test_layers_of_a_group_that_coincide_count_once(self):
        assert matched([[0, [2, -1, 0]]], 1, 3) == [(0, (2, 0))]
        assert matched([[0.5, [0.4, 0.5, 0.6]]], 3, 3) == [(1, (1,))]

    @given(DEPTHS, DEPTHS, st.sampled_from(["first", "last", "middle", "uniform"]))
    def test_what_is_matched_is_wanted(self, student, teacher, word):
        rule = layer_rule(word)
        wanted = [
            positions(rule.wanted(side), depth) for side, depth in ((0, student), (1, teacher))
        ]
        for layer, group in matched(word, student, teacher):
            assert layer % student in wanted[0]
            assert {one % teacher for one in group} <= set(wanted[1])

    def test_an_index_and_the_relative_depth_that_equals_it_are_two_wishes(self):
        assert frozenset({1}) != frozenset({Span(1.0, 1.0)})
        assert positions(frozenset({1, Span(1.0, 1.0)}), 5) == (1, 4)
        assert positions(frozenset({-9, 9}), 5) == ()
        objective = dk.Objective(
            [
                dk.Term("mse", on=NAME, layers=layers, name=str(i))
                for i, layers in enumerate([[[0, 1]], [[0.0, 1.0]], {"from": 0.5, "to": 1.0}])
            ]
        )
        assert wanted_layers(objective, 0) == {NAME: {0, Span(0.0, 0.0), Span(0.5, 1.0)}}
        assert wanted_layers(objective, 1) == {NAME: {1, Span(1.0, 1.0), Span(0.5, 1.0)}}

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ("midle", "no choice of `layers` is called 'midle'; did you mean 'middle'"),
            ({"form": 0.3, "to": 0.7}, "no key of `layers` is called 'form'; did you mean 'from'"),
            ({"from": 0.3}, "lacks `to`"),
            ({"from": 0.7, "to": 0.3}, "from = 0.7 is not below to = 0.3"),
            ({"from": 0.5, "to": 0.5}, "from = 0.5 is not below to = 0.5"),
            ({"from": 0, "to": 0.3}, "from = 0 is no relative depth, which has a decimal point"),
            ({"from": 0.3, "to": 1.5}, r"fraction 1.5 is a relative depth in \[0, 1\]"),
            ({"from": 0.3, "to": 0.7, "match": "man"}, "called 'man'; did you mean 'mean'"),
            ({"from": 0.3, "to": 0.7, "pairs": [[0, 1]]}, "keep one"),
            ({"pairs": [[0, [0, 1]]], "match": "uniform"}, "pairs name theirs"),
            ({"pairs": []}, "names no pair"),
            ([], "names no pair"),
            ([0, 1], "0 is no pair"),
            ([[0, 1, 2]], r"\[0, 1, 2\] is no pair"),
            ([[[0, 1], 2]], "has a group on the student's side"),
            ([[0, []]], r"\[0, \[\]\] has an empty group"),
            ([[0, [1, 1]]], "has a teacher layer twice"),
            ([[True, 1]], r"True in \[True, 1\] is no layer"),
            ([["last", 1]], r"'last' in \['last', 1\] is no layer"),
            ([[0.5, -0.1]], r"fraction -0.1 is a relative depth in \[0, 1\]"),
            ([[math.nan, 0.1]], "fraction nan is a relative depth"),
            ([[0.5, 1]], "mixes indices and fractions"),
            ([[0.0, 0.0], [1, 1]], "mixes indices and fractions"),
            ([[0, [0, 1.0]]], "mixes indices and fractions"),
            (3, "`layers` is a word"),
        ],
    )
    def test_what_means_nothing_is_one_clear_line(self, layers, message):
        with pytest.raises(ValueError, match=message) as caught:
            dk.Term("mse", on=NAME, layers=layers)
        assert isinstance(caught.value, errors.DistillKitError)
        with pytest.raises(errors.RecipeError, match=message) as caught:
            dk.Recipe(name="r", terms=[{"loss": "mse", "on": NAME}]).override(
                {f"mse/{NAME}.layers": layers}
            )
        assert len(str(caught.value).splitlines()) == 2, caught.value  # the recipe, and the place

    @pytest.mark.parametrize("layers", [[[2, 5]], [[0, [0, 3]]], [[0, -4]]])
    def test_a_layer_that_is_not_there_names_both_depths(self, layers):
        term = dk.Term("mse", on=NAME, layers=layers)
        with pytest.raises(errors.RecipeError, match="the student has 2, the teacher 3") as caught:
            term(*sides(hidden(2, learns=True), hidden(3)))
        assert str(layers) in str(caught.value)

    def test_relative_depths_of_signals_of_unequal_depth_on_one_side(self):
        def both(a, b, c, d):
            return (a - c).square().mean(-1) + (b - d).square().mean(-1)

        student = dk.Signals({"x": hidden(2, learns=True), "y": hidden(3, learns=True)})
        teacher = dk.Signals({"x": hidden(2), "y": hidden(2)})
        with pytest.raises(errors.RecipeError, match=r"signals of one side have \[2, 3\] layers"):
            dk.Term(both, on=["x", "y"], layers="middle")(student, teacher)
        assert dk.Term(both, on=["x", "y"], layers=[[-1, -1]])(student, teacher) > 0


class TestRecipes:
    TOML = """
name = "layers"
[[terms]]
loss = "mse"
on = "hidden.text"
layers = %s
"""

    @pytest.mark.parametrize(
        "written",
        [
            '"middle"',
            "[[0.5, 1.0]]",
            "[[0, [0, 1, 2]], [1, [3, 4, 5]]]",
            '{ from = 0.3, to = 0.7, match = "best" }',
            '{ pairs = [[0, [0, 1]]], match = "best" }',
            "{ from = 0.0, to = 1.0 }",
        ],
    )
    def test_a_file_says_what_python_says(self, written, tmp_path):
        file = tmp_path / "layers.toml"
        file.write_text(self.TOML % written, encoding="utf-8")
        recipe = dk.load_recipe(file)
        given = tomllib.loads(f"x = {written}")["x"]
        in_python = layer_rule(given)
        for one in (recipe, recipe.override({f"mse/{NAME}.weight": 2.0})):
            rule = one.build().each()[0].layers
            assert rule._replace(given=None) == in_python._replace(given=None)
            # 1 == 1.0 to Python
            assert repr(rule._replace(given=None)) == repr(in_python._replace(given=None))

    def test_a_key_of_the_table_is_overridden(self):
        recipe = dk.Recipe(
            name="r", terms=[{"loss": "mse", "on": NAME, "layers": {"from": 0.3, "to": 0.7}}]
        )
        changed = recipe.override({f"mse/{NAME}.layers.match": "best"})
        assert changed.build().each()[0].layers.match == "best"

    def test_the_schema_lists_the_words(self):
        schema = str(TermRecipe.model_json_schema()["properties"]["layers"])
        for word in ("first", "middle", "uniform", "last", "all"):
            assert word in schema


class TestValues:
    @settings(deadline=None)
    @given(st.integers(1, 6), st.integers(1, 9), st.sampled_from(["middle", "uniform"]))
    def test_the_mean_over_the_students_layers(self, depth, other, word):
        student, teacher = hidden(depth, learns=True), hidden(other, seed=1)
        value = dk.Term("mse", on=NAME, layers=word)(*sides(student, teacher))
        each = [
            losses.mse(student[i], torch.stack([teacher[j] for j in group]).mean(0)).mean()
            for i, group in matched(word, depth, other)
        ]
        assert_close(value, torch.stack(each).mean())

    def test_a_group_is_the_mean_of_its_hidden_states(self):
        student, teacher = hidden(2, learns=True), hidden(6, seed=1)
        layers = [[0, [0, 1, 2]], [1, [3, 4, 5]]]
        value = dk.Term("mse", on=NAME, layers=layers)(*sides(student, teacher))
        means = [sum(teacher[:3]) / 3, sum(teacher[3:]) / 3]
        expected = [losses.mse(s, t).mean() for s, t in zip(student, means, strict=True)]
        assert_close(value, sum(expected) / 2)

    def test_half_precision_is_averaged_in_float32(self):
        teacher = [torch.full((1, 1, 1), x, dtype=torch.bfloat16) for x in (1.0, 1.0078125)]
        found = mean_of_layers("t", teacher)
        assert found.dtype == torch.float32
        assert found.item() == 1.00390625

    @pytest.mark.parametrize("match", ["mean", "best"])
    @pytest.mark.parametrize("loss", ["attention_kl", "attention_mse"])
    def test_attentions(self, match, loss):
        keys = torch.arange(5) < torch.tensor([5, 2, 0])[:, None, None, None]
        rows = torch.arange(4) < torch.tensor([4, 3, 4])[:, None]
        student = attentions(2, mask=keys, rows=rows)
        for one in student:
            one.query.requires_grad_()
        teacher = attentions(4, seed=1, mask=keys, rows=rows)
        layers = {"pairs": [[0, [0, 1]], [1, [2, 3]]], "match": match}
        term = dk.Term(loss, on="attention.text", layers=layers)
        value = term(*sides(student, teacher, name="attention.text"))
        value.backward()
        assert all(torch.isfinite(one.query.grad).all() for one in student)
        kept = rows & (torch.tensor([True, True, False])[:, None])
        compare = getattr(losses, loss)

        def of_examples(one, other):
            values = torch.where(kept[:, None], compare(one, other), 0)
            return values.sum((1, 2)) / (2 * kept.sum(1)).clamp_min(1)

        expected = []
        for i, group in ((0, teacher[:2]), (1, teacher[2:])):
            if match == "best":
                each = torch.stack([of_examples(student[i], one) for one in group])
                expected.append(each.amin(0).mean())
            else:
                mean = (group[0].probabilities() + group[1].probabilities()) / 2
                mean = dk.Attention.from_probabilities(mean, rows=rows)
                expected.append(of_examples(student[i], mean).mean())
        assert_close(value, sum(expected) / 2)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 2**16), st.integers(2, 4), st.booleans())
    def test_the_mean_attention_is_the_mean_of_probabilities(self, seed, depth, as_used):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(3, 1, 1, 5, generator=generator) < 0.6
        layers = attentions(depth, seed=seed)
        masks = [mask, torch.rand(3, 2, 4, 5, generator=generator) < 0.6] * 2
        layers = [
            dk.Attention(100 * one.query, one.key, mask=m)
            for one, m in zip(layers, masks, strict=False)
        ]
        if as_used:
            used = layers[0].probabilities() / 2
            layers[0] = dk.Attention.replayed(used.shape, used=lambda: used)
        mean = mean_of_layers("t", layers)
        valid = torch.stack([one.valid_rows() for one in layers]).all(0)
        expected = torch.stack([one.probabilities() for one in layers]).mean(0)
        assert torch.equal(mean.valid_rows(), valid)
        assert_close(mean.probabilities(), torch.where(valid[..., None], expected, 0))

    def test_what_is_far_below_the_smallest_float_is_still_a_key(self):
        scores = torch.tensor([[[[0.0, -500.0]]]])
        mean = mean_of_layers("t", [dk.Attention.from_scores(scores)] * 2)
        assert mean.scores()[..., 1].item() == -500.0

    def test_a_teachers_gradient_through_the_mean_is_finite(self):
        scores = torch.tensor([[[[0.0, -torch.inf], [-torch.inf] * 2]]], requires_grad=True)
        layers = [dk.Attention.from_scores(scores), dk.Attention.from_scores(2 * scores)]
        mean = mean_of_layers("t", layers)
        torch.where(mean.scores() > -torch.inf, mean.scores(), 0).sum().backward()
        assert torch.isfinite(scores.grad).all()

    def test_unequal_heads_have_no_mean(self):
        layers = [*attentions(1), *attentions(1, heads=1)]
        with pytest.raises(
            errors.ShapeError, match=r"layers of one shape; got \(3, 2, 4, 5\), \(3, 1"
        ):
            mean_of_layers("t", layers)

    def test_a_signal_without_layers_beside_groups_is_itself(self):
        def scaled(a, b, c, d):
            return (a - c).square().mean(-1) * b * d

        scale = torch.full((3, 4), 2.0, dtype=torch.float64, requires_grad=True)
        student = dk.Signals({NAME: hidden(1, learns=True), "scale": scale})
        teacher = dk.Signals({NAME: hidden(2, seed=1), "scale": scale.detach()})
        value = dk.Term(scaled, on=[NAME, "scale"], layers=[[0, [0, 1]]])(student, teacher)
        mean = (teacher[NAME][0] + teacher[NAME][1]) / 2
        assert_close(value, 4 * (student[NAME][0] - mean).square().mean())


class TestBest:
    LAYERS = {"pairs": [[0, [0, 1, 2]]], "match": "best"}  # noqa: RUF012

    @settings(deadline=None)
    @given(st.integers(0, 2**16), st.integers(2, 5), st.sampled_from(["example", "row"]))
    def test_splitting_a_batch_changes_nothing(self, seed, examples, per):
        student = hidden(1, seed=seed, examples=examples, learns=True)
        teacher = hidden(3, seed=seed + 1, examples=examples)
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(examples, 4, generator=generator) < 0.6
        term = dk.Term("mse", on=NAME, layers=self.LAYERS, per=per)
        objective = dk.Objective([term])
        whole = objective(*sides(student, teacher, mask))
        total = whole.counts[term.name]
        if not total:
            return
        parts = []
        for part in (slice(0, 1), slice(1, examples)):
            given_ = sides([x[part] for x in student], [x[part] for x in teacher], mask[part])
            parts.append(objective(*given_, normalizer=total.double()))
        assert_close(sum(one.loss for one in parts), whole.loss)
        assert sum(one.counts[term.name] for one in parts) == total

    def test_each_example_learns_from_its_own(self):
        student = [torch.zeros(2, 1, 1, requires_grad=True)]
        teacher = [torch.tensor([[[1.0]], [[5.0]]]), torch.tensor([[[4.0]], [[-2.0]]])]
        term = dk.Term("mse", on=NAME, layers={"pairs": [[0, [0, 1]]], "match": "best"})
        value = term(*sides(student, teacher))
        assert value.item() == (1.0 + 4.0) / 2
        value.backward()
        assert student[0].grad.flatten().tolist() == [-1.0, 2.0]

    def test_a_layer_of_which_nothing_counts_is_not_the_best(self):
        def loss(a, b):
            return (a.scores() - b.scores()).square().sum(-1)

        zeros = torch.zeros(1, 1, 1, 2)
        student = [dk.Attention.from_scores(zeros.clone().requires_grad_())]
        teacher = [
            dk.Attention.from_scores(zeros, rows=torch.tensor([[False]])),
            dk.Attention.from_scores(zeros + 3),
        ]
        term = dk.Term(loss, on="a", layers={"pairs": [[0, [0, 1]]], "match": "best"})
        assert term(*sides(student, teacher, name="a")).item() == 18

    def test_the_choice_does_not_wait_for_a_device(self):
        with torch.device("meta"):
            student = [torch.randn(2, 3, 4, requires_grad=True)]
            teacher = [torch.randn(2, 3, 4) for _ in range(3)]
            mask = torch.ones(2, 3).bool()
            value = dk.Term("mse", on=NAME, layers=self.LAYERS)(*sides(student, teacher, mask))
        assert value.device.type == "meta"  # which has no numbers to look at

    def test_a_layer_with_nan_is_seen(self):
        teacher = hidden(3)
        teacher[1][0] = math.nan
        term = dk.Term("mse", on=NAME, layers=self.LAYERS)
        assert term(*sides(hidden(1, seed=1, learns=True), teacher)).isnan()

    def test_a_loss_without_values_of_examples_has_no_best(self):
        student, teacher = ([x[:, 0] for x in hidden(n, learns=n == 1)] for n in (1, 3))
        term = dk.Term("cka_distance", on=NAME, layers=self.LAYERS)
        with pytest.raises(errors.RecipeError, match="has no values of examples"):
            term(*sides(student, teacher))

    @pytest.mark.parametrize("loss", ["mse", "rkd_distance"])
    def test_of_no_example_there_is_no_best(self, loss):
        student, teacher = hidden(1, learns=True, examples=0), hidden(3, examples=0)
        if loss == "rkd_distance":
            student, teacher = ([x[:, 0] for x in side] for side in (student, teacher))
        value = dk.Term(loss, on=NAME, layers=self.LAYERS)(*sides(student, teacher))
        value.backward()
        assert value == 0

    def test_a_normalizer_for_each_of_the_students_layers(self):
        student, teacher = hidden(2, learns=True), hidden(4, seed=1)
        layers = {"pairs": [[0, [0, 1]], [1, [2, 3]]], "match": "best"}
        objective = dk.Objective([dk.Term("mse", on=NAME, layers=layers, per="row")])
        whole = objective(*sides(student, teacher))
        assert whole.counts[f"mse/{NAME}"].tolist() == [12, 12]
        twice = objective(*sides(student, teacher), normalizer=torch.tensor([24.0, 24.0]))
        assert_close(2 * twice.loss, whole.loss)
        with pytest.raises(errors.OptionError, match="each of 2 pairs of layers"):
            objective(*sides(student, teacher), normalizer=torch.ones(4))


def deep(student_depth, teacher_depth, recipe):
    torch.manual_seed(0)
    student, teacher = tiny.Dual(), tiny.Fusion()
    for tower in ("text", "image"):
        setattr(student, tower, tiny.Encoder(depth=student_depth))
    teacher.encoder = tiny.Encoder(depth=teacher_depth)
    return dk.Distiller(
        student, teacher, recipe,
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES), ignore=["labels"],
    )  # fmt: skip


def recipe(layers):
    term = {"loss": "attention_kl", "on": "attention.text_to_image", "layers": layers}
    return dk.Recipe(name="layers", terms=[term])


def held(signals):
    """The layers whose tensors the run kept."""
    layers = signals["attention.text_to_image"]
    return [i for i, layer in enumerate(layers) if isinstance(layer, dk.Attention)]


class TestDistiller:
    @pytest.mark.parametrize(
        ("layers", "ours", "theirs"),
        [
            ("first", {0}, {0}),
            ("middle", {2, 3, 4}, {3, 4, 5, 6, 7}),
            ([[0.25, 0.5]], {2}, {5}),
            ([[1, [2, 3]]], {1}, {2, 3}),
            ({"from": 0.9, "to": 1.0, "match": "best"}, {5, 6}, {9, 10}),
        ],
    )
    def test_only_layers_that_are_compared_are_held(self, layers, ours, theirs):
        distiller = deep(7, 11, recipe(layers))
        result = distiller(tiny.batch())
        result.loss.backward()
        assert torch.isfinite(result.loss)
        # the last layer of each stream tells the layout its sizes
        assert set(held(result.student)) == ours | {6}
        assert set(held(result.teacher)) == theirs | {10}

    def test_check_shows_the_pairs(self):
        found = deep(4, 9, recipe("middle")).check(tiny.batch())
        assert found.passed
        (term,) = found.terms
        assert term.layers == (
            "1 of 4 with the mean of 2-3 of 9",
            "2 of 4 with the mean of 4-6 of 9",
        )
        assert "layer 1 of 4 with the mean of 2-3 of 9; 2 of 4 with" in str(found)
        best = deep(4, 9, recipe({"from": 0.3, "to": 0.7, "match": "best"})).check(tiny.batch())
        assert best.terms[0].layers[0] == "1 of 4 with the best of 2-3 of 9"
        assert deep(2, 2, recipe("last")).check(tiny.batch()).terms[0].layers == ()

    def test_a_copy_compares_the_same(self):
        distiller = deep(4, 9, recipe("uniform"))
        batch = tiny.batch()
        assert_close(copy.deepcopy(distiller)(batch).loss, distiller(batch).loss)

    @pytest.mark.parametrize("layers", ["uniform", "middle", {"from": 0.0, "to": 1.0}])
    def test_compiled(self, layers):
        student, teacher = hidden(3, learns=True), hidden(7, seed=1)
        term = dk.Term("mse", on=NAME, layers=layers)
        plain = term(*sides(student, teacher))
        compiled = torch.compile(term, backend="eager")
        assert_close(compiled(*sides(student, teacher)), plain)

    def test_problems_of_a_group(self):
        student, teacher = hidden(1, learns=True), hidden(2)
        teacher[1] = torch.zeros(3, 4, 6)
        term = dk.Term("mse", on=NAME, layers=[[0, [0, 1]]])
        found = check_term(term, *sides(student, teacher), None)
        assert "layers of one shape" in found.problems[0]
