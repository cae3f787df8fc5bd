"""Several teachers in one distiller: who runs, what each sees, and how they become one."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors, testing
from distillkit.__main__ import main
from distillkit._backbone.axis import TokenAxis
from distillkit._backbone.batch import NamedTeacher, SideOfBatch
from tests.support import tiny

SOFT = {"loss": "kl_divergence", "on": "logits"}
ATTENTION = {"loss": "attention_kl", "on": "attention.text_to_image"}
BOTH = [{**SOFT, "teacher": "a"}, {**ATTENTION, "teacher": "b"}]
ADAPTER = dk.DeclarativeAdapter(**tiny.FUSION_TABLES)
OF_STUDENT = dk.DeclarativeAdapter(**tiny.DUAL_TABLES)


def models():
    torch.manual_seed(0)
    return tiny.Dual(), {"a": tiny.Fusion(), "b": tiny.Fusion()}


def distiller_of(*terms, teachers=None, student=None, **changes):
    made, found = models()
    teachers = found if teachers is None else teachers
    given = {name: ADAPTER for name, one in teachers.items() if isinstance(one, torch.nn.Module)}
    options = {"teacher_adapter": given, "ignore": ["labels"], **changes}
    return dk.Distiller(
        student or made,
        teachers,
        dk.Recipe(name="several", terms=list(terms or BOTH)),
        student_adapter=OF_STUDENT,
        **options,
    )


def alone(term, teacher, student):
    return dk.Distiller(
        student,
        teacher,
        dk.Recipe(name="one", terms=[term]),
        student_adapter=OF_STUDENT,
        teacher_adapter=ADAPTER,
        ignore=["labels"],
    )


def count_calls(model):
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def of_two_teachers():
    distiller = distiller_of()
    return distiller, tiny.batch(4)


def of_an_ensemble():
    terms = [
        {**SOFT, "teacher": "all", "options": {"temperature": 2.0}},
        {**ATTENTION, "teacher": "all"},
    ]
    return distiller_of(*terms), tiny.batch(4)


class TestOneEach:
    def test_each_term_has_the_value_that_its_teacher_alone_gives(self):
        student, teachers = models()
        result = distiller_of(student=student, teachers=teachers)(tiny.batch())
        assert list(result.parts) == [
            "kl_divergence/logits@a",
            "attention_kl/attention.text_to_image@b",
        ]
        for term, name, part in zip((SOFT, ATTENTION), "ab", result.parts.values(), strict=True):
            expected = alone(term, teachers[name], student)(tiny.batch())
            assert torch.equal(part, next(iter(expected.parts.values())))
        assert set(result.teacher) == {"a", "b"}
        assert "attention.text_to_image" in result.teacher["b"]

    def test_a_teacher_whose_terms_weigh_nothing_does_not_run(self):
        late = {"start": 0.0, "stop": 1.0, "until": 1.0, "shape": "linear"}
        distiller = distiller_of(BOTH[0], {**BOTH[1], "weight": late})
        calls = {name: count_calls(model) for name, model in distiller.teachers.items()}
        result = distiller(tiny.batch(), progress=0.0)
        assert (len(calls["a"]), len(calls["b"])) == (1, 0)
        assert set(result.teacher) == {"a"}
        distiller(tiny.batch(), progress=0.5)
        assert (len(calls["a"]), len(calls["b"])) == (2, 1)

    def test_only_the_layers_that_terms_of_a_teacher_compare_are_wanted(self):
        distiller = distiller_of(
            {**SOFT, "teacher": "a"}, {**ATTENTION, "teacher": "b", "layers": [[0, 0]]}
        )
        assert set(distiller._teachers._wanted["a"]) == {"logits"}
        assert distiller._teachers._wanted["b"] == {"attention.text_to_image": {0}}

    def test_check_shows_every_teacher(self):
        check = distiller_of().check(tiny.batch())
        assert check.passed, str(check)
        assert "teacher 'a' offers logits*" in str(check)
        assert "attention.text_to_image*" in str(check).split("teacher 'b' offers")[1]

    def test_the_normalizer_counts_every_term(self):
        distiller = distiller_of()
        counts = distiller.normalizer([tiny.batch(2), tiny.batch(3)])
        assert {name: x.item() for name, x in counts.items()} == dict.fromkeys(counts, 5.0)
        assert len(counts) == 2

    def test_aligners_are_built_from_the_teacher_that_a_term_names(self):
        teachers = models()[1]
        term = {"loss": "mse", "on": "logits", "align": ["projector"], "teacher": "b"}
        teachers["b"].head = torch.nn.Linear(tiny.WIDTH, 7)
        distiller = distiller_of(BOTH[0], term, teachers=teachers, example=tiny.batch())
        assert distiller.objective.each()[1].aligners[0].linear.weight.shape == (7, 3)
        assert torch.isfinite(distiller(tiny.batch()).loss)


class TestSignals:
    def test_signals_that_were_kept_stand_in_for_their_teacher_alone(self):
        distiller, batch = of_two_teachers()
        kept, expected = distiller.run_teacher(batch), distiller(batch).loss
        calls = {name: count_calls(model) for name, model in distiller.teachers.items()}
        for given_ in (kept, {"a": kept["a"]}, {"b": kept["b"]}):
            for one in calls.values():
                one.clear()
            assert torch.equal(distiller(batch, teacher_signals=given_).loss, expected)
            assert torch.equal(distiller({**batch, "teacher_signals": given_}).loss, expected)
            ran = {name for name, one in calls.items() if one}
            assert ran == {"a", "b"} - set(given_)

    def test_a_teacher_that_nobody_brings(self):
        _, teachers = models()
        distiller = distiller_of(teachers={"a": None, "b": teachers["b"]})
        with pytest.raises(errors.SignalError, match="this distiller has no teacher 'a'"):
            distiller(tiny.batch())
        signals = dk.Signals({"logits": torch.zeros(3, 3)})
        assert torch.isfinite(distiller(tiny.batch(), teacher_signals={"a": signals}).loss)

    @pytest.mark.parametrize(
        ("signals", "match"),
        [
            (dk.Signals({}), "pass them by name, {'a': signals}"),
            ({"c": dk.Signals({})}, "no teacher .* is called 'c'"),
            ({"a": torch.zeros(1)}, r"teacher_signals\['a'\] is Signals; got Tensor"),
        ],
    )
    def test_what_is_no_signals_by_name(self, signals, match):
        with pytest.raises((errors.SignalError, errors.UnknownNameError), match=match):
            distiller_of()(tiny.batch(), teacher_signals=signals)

    def test_named_signals_for_a_single_teacher(self):
        student, teachers = models()
        with pytest.raises(errors.SignalError, match="with a single one: pass those of one"):
            alone(SOFT, teachers["a"], student)(tiny.batch(), teacher_signals={"a": dk.Signals({})})

    def test_a_cache_is_one_of_them(self, tmp_path):
        student, teachers = models()
        recipe = dk.Recipe(name="several", terms=BOTH)
        batch = {**tiny.batch(4), "id": [0, 1, 2, 3]}
        caches = {}
        for name, model in teachers.items():
            caches[name] = dk.SignalCache(tmp_path / name, recipe.of_teacher(name))
            caches[name].fill(dk.Backbone(model, ADAPTER), [batch])
        assert set(caches["a"].sizes()) == {"logits"}
        assert "logits" not in caches["b"].sizes()
        expected = distiller_of(teachers=teachers, student=student)(tiny.batch(4)).loss
        for given_ in ({**teachers, "a": caches["a"]}, caches):
            distiller = distiller_of(teachers=given_, student=student)
            torch.testing.assert_close(distiller(batch).loss, expected)
            assert set(distiller.teachers) == {n for n in given_ if given_[n] is teachers[n]}
            assert "id" in distiller.entries
        with pytest.raises(errors.CacheError, match="'logits': not stored"):
            distiller_of(teachers={"a": caches["b"], "b": caches["a"]}, student=student)

        def collate(examples):
            return batch

        joined = caches["b"].joining(caches["a"].joining(collate, teacher="a"), teacher="b")
        distiller = distiller_of(teachers={"a": None, "b": None}, student=student)
        distiller._checks._ignore += ("id",)
        torch.testing.assert_close(distiller(joined([])).loss, expected)
        for first, then in ((None, None), (None, "b"), ("a", None)):
            twice = caches["b"].joining(caches["a"].joining(collate, teacher=first), teacher=then)
            with pytest.raises(errors.SignalError, match="brings 'teacher_signals' already"):
                twice([])


def b_and_its_batches():
    """For the command line: the teacher "b" and what it is run on."""
    return dk.Backbone(models()[1]["b"], ADAPTER), [{**tiny.batch(4), "id": [0, 1, 2, 3]}]


def test_the_command_line_fills_for_one_teacher(tmp_path):
    recipe = tmp_path / "two.toml"
    terms = [
        f'[[terms]]\nloss = "{t["loss"]}"\non = "{t["on"]}"\nteacher = "{t["teacher"]}"'
        for t in BOTH
    ]
    recipe.write_text('name = "two"\n' + "\n".join(terms), encoding="utf-8")
    place, target = str(tmp_path / "b"), f"{__name__}:b_and_its_batches"
    assert main(["cache", "fill", place, target, "--recipe", str(recipe), "--teacher", "b"]) == 0
    assert list(dk.SignalCache(place).sizes()) == ["attention.text_to_image"]
    with pytest.raises(errors.RecipeError, match="has no term of the teacher 'c'"):
        dk.load_recipe(recipe).of_teacher("c")


class TestEntries:
    def test_a_teacher_sees_its_own_entries_before_shared_ones(self):
        batch, other = tiny.batch(4), tiny.batch(4, seed=9)
        own = distiller_of()({**batch, "teacher_a_pixels": other["pixels"]})
        shared = distiller_of()({**batch, "teacher_pixels": other["pixels"]})
        plain = distiller_of()(batch)
        soft, attention = plain.parts
        assert own.parts[soft] == shared.parts[soft] != plain.parts[soft]
        assert own.parts[attention] == plain.parts[attention] != shared.parts[attention]

    def test_an_entry_of_a_teacher_that_no_longer_comes_is_seen(self):
        distiller, batch = of_two_teachers()
        distiller({**batch, "teacher_a_pixels": batch["pixels"]})
        with pytest.raises(errors.SignalError, match="has no entry 'teacher_a_pixels'"):
            distiller(batch)

    def test_an_entry_that_no_teacher_uses_is_an_error(self):
        distiller, batch = of_two_teachers()
        with pytest.raises(errors.SignalError, match="nothing uses the batch entry 'teacher_c_x'"):
            distiller({**batch, "teacher_c_x": batch["pixels"]})

    def test_no_teacher_sees_the_entries_of_another(self):
        batch = {"teacher_b_x": 1, "x": 2, "teacher_y": 3, "teacher_a_y": 4, "student_z": 5}
        view = SideOfBatch(batch, "teacher", teacher=NamedTeacher("a", ("b",)))
        assert dict(view) == {"x": 2, "y": 4}
        assert "b_x" not in view
        assert view.used == {"x", "teacher_a_y"}

    @pytest.mark.parametrize(
        ("names", "match"),
        [
            (["a", "a_b"], "could be of the teacher 'a' or of 'a_b'"),
            (["all"], "a word, other than 'all'"),
            (["a b"], "got 'a b'"),
            ([3], "got 3"),
            ([], "got none"),
        ],
    )
    def test_names_that_leave_entries_open(self, names, match):
        teachers = {name: tiny.Fusion() for name in names}
        with pytest.raises(errors.RecipeError, match=match):
            distiller_of(teachers=teachers)


class TestErrors:
    def test_a_term_that_names_none(self):
        with pytest.raises(errors.RecipeError, match="the distiller has 'a', 'b'"):
            distiller_of(SOFT)

    def test_a_term_that_names_the_only_one(self):
        student, teachers = models()
        with pytest.raises(errors.RecipeError, match="has a single one without a name"):
            alone({**SOFT, "teacher": "a"}, teachers["a"], student)
        assert all(p.requires_grad for p in teachers["a"].parameters())

    def test_an_unknown_teacher(self):
        with pytest.raises(errors.UnknownNameError, match="'kl_divergence/logits@aa'"):
            distiller_of({**SOFT, "teacher": "aa"}, *BOTH)

    def test_a_teacher_that_no_term_names(self):
        with pytest.raises(errors.RecipeError, match="no term learns from the teacher 'b'"):
            distiller_of(BOTH[0])

    @pytest.mark.parametrize(
        ("terms", "match"),
        [
            ({"teacher": "a", "ensemble": "logits"}, "`ensemble` is of several teachers"),
            ({"teacher": ["a", "a"]}, "several different ones"),
            ({"teacher": []}, "several different ones"),
            ({"teacher": "all", "ensemble": "median"}, "got 'median'"),
            ({"teacher": "all", "ensemble": "logits:labels"}, "got 'logits:labels'"),
            ({"ensemble": {"a": 0.5, "b": 0.0}}, "finite numbers above 0"),
            (
                {"teacher": "all", "ensemble": "logits", **ATTENTION},
                "of 'attention.text_to_image' an ensemble is the mean",
            ),
            ({"loss": "task", "on": (), "teacher": "a"}, "takes a weight and a name"),
        ],
    )
    def test_choices_that_mean_nothing(self, terms, match):
        with pytest.raises(errors.RecipeError, match=match):
            dk.Term(**{**SOFT, **terms})

    def test_weights_of_other_teachers(self):
        with pytest.raises(errors.RecipeError, match=r"are of \['a', 'c'\], its teachers"):
            distiller_of({**SOFT, "teacher": "all", "ensemble": {"a": 1.0, "c": 1.0}})

    def test_adapters_that_do_not_say_whose_they_are(self):
        with pytest.raises(errors.SignalError, match="several teachers have an adapter each"):
            distiller_of(teacher_adapter=ADAPTER)
        with pytest.raises(errors.UnknownNameError, match="of teacher_adapter="):
            distiller_of(teacher_adapter={"c": ADAPTER})

    def test_teachers_before_one_that_fails_are_given_back(self):
        teachers = models()[1]
        with pytest.raises(errors.UnknownNameError, match="nowhere"):
            distiller_of(teachers=teachers, teacher_adapter={"a": ADAPTER, "b": "nowhere"})
        assert all(p.requires_grad for p in teachers["a"].parameters())

    def test_the_teacher_of_several(self):
        distiller = distiller_of()
        with pytest.raises(errors.SignalError, match=r"distiller.teachers\[name\]"):
            _ = distiller.teacher
        with pytest.raises(errors.SignalError, match="keeps the teacher"):
            distiller.teachers = {}

    def test_teachers_whose_shapes_differ(self):
        teachers = models()[1]
        teachers["b"].head = torch.nn.Linear(tiny.WIDTH, 7)
        with pytest.raises(errors.ShapeError, match=r"'a' \(3, 3\), 'b' \(3, 7\)"):
            distiller_of({**SOFT, "teacher": "all"}, teachers=teachers)(tiny.batch())

    def test_a_student_that_shares_what_learns_with_one_of_them(self):
        student, teachers = models()
        teachers["b"].words = student.words
        with pytest.raises(errors.SignalError, match=r"share the parameter 'words\.weight'"):
            distiller_of(student=student, teachers=teachers)
        assert all(p.requires_grad for p in teachers["a"].parameters())


class TestEnsemble:
    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_probabilities_are_averaged_at_the_temperature_of_the_loss(self, temperature):
        student, teachers = models()
        options = {"options": {"temperature": temperature}}
        distiller = distiller_of(
            {**SOFT, **options, "teacher": "all"}, student=student, teachers=teachers
        )
        batch = tiny.batch()
        result = distiller(batch)
        mean = sum((one["logits"] / temperature).softmax(-1) for one in result.teacher.values()) / 2
        expected = dk.losses.kl_divergence(
            result.student["logits"], temperature * mean.log(), temperature=temperature
        ).mean()
        torch.testing.assert_close(result.loss, expected)

    def test_fixed_weights_and_logits(self):
        result = distiller_of(
            {**SOFT, "ensemble": {"b": 3.0, "a": 1.0}, "name": "fixed"},
            {**SOFT, "teacher": ["a", "b"], "ensemble": "logits", "name": "logits"},
        )(tiny.batch())
        one, other = (result.teacher[name]["logits"] for name in "ab")
        mine = result.student["logits"]
        mixed = (0.25 * one.softmax(-1) + 0.75 * other.softmax(-1)).log()
        for name, target in (("fixed", mixed), ("logits", (one + other) / 2)):
            expected = dk.losses.kl_divergence(mine, target).mean().detach()
            torch.testing.assert_close(result.parts[name], expected)

    def test_confidence_reads_its_labels(self):
        terms = [
            {**SOFT, "teacher": "all", "ensemble": "confidence:labels", "name": "labels"},
            {**SOFT, "teacher": "all", "ensemble": "confidence", "name": "entropy"},
        ]
        distiller = distiller_of(*terms, ignore=())
        batch = tiny.batch()
        result = distiller(batch)
        one, other = (result.teacher[name]["logits"] for name in "ab")
        losses = torch.stack(
            [
                torch.nn.functional.cross_entropy(x, batch["labels"], reduction="none")
                for x in (one, other)
            ]
        )
        share = 1 - losses.softmax(0)
        mean = share[0, :, None] * one.softmax(-1) + share[1, :, None] * other.softmax(-1)
        expected = dk.losses.kl_divergence(result.student["logits"], mean.log()).mean().detach()
        torch.testing.assert_close(result.parts["labels"], expected)
        assert result.parts["entropy"] != result.parts["labels"]
        assert "labels" in distiller.entries
        del batch["labels"]
        with pytest.raises(errors.SignalError, match="weighs its teachers by labels"):
            distiller(batch)

    def test_attention_is_the_mean_of_probability_matrices(self):
        result = distiller_of({**ATTENTION, "teacher": "all", "layers": "all"})(tiny.batch())
        values = []
        for i in range(2):
            mine, one, other = (
                x["attention.text_to_image"][i] for x in (result.student, *result.teacher.values())
            )
            mean = (one.probabilities() + other.probabilities()) / 2
            target = dk.Attention.from_probabilities(mean, rows=one.rows)
            rows = dk.losses.attention_kl(mine, target).mean(1)
            counted = mine.valid_rows()[:, 0]
            means = torch.where(counted, rows, 0).sum(1) / counted.sum(1)
            values.append(means.mean())
        torch.testing.assert_close(result.loss, sum(values) / 2)

    def test_an_ensemble_of_one_is_that_teacher(self):
        teachers = {"a": models()[1]["a"]}
        loss = distiller_of({**SOFT, "teacher": ["a"]}, teachers=teachers)(tiny.batch()).loss
        every = distiller_of({**SOFT, "teacher": "all"}, teachers=teachers)(tiny.batch()).loss
        plain = distiller_of({**SOFT, "teacher": "a"}, teachers=teachers)(tiny.batch()).loss
        assert loss == every == plain

    def test_a_temperature_that_is_not_known(self):
        def loss(student, teacher, *, temperature: torch.Tensor):
            return (student - teacher).square().mean(-1) / temperature

        options = {"on": "logits", "inputs": {"temperature": "t"}, "teacher": "all"}
        with pytest.raises(errors.RecipeError, match="needs the temperature as a number"):
            dk.Term(loss, **options)
        dk.Term(loss, **options, ensemble="logits")


@given(st.lists(st.one_of(st.none(), st.integers(0, 63)), min_size=2, max_size=4))
@settings(deadline=None)
def test_positions_that_count_are_those_of_all_teachers(bits):
    masks = [
        None if one is None else torch.tensor([[bool(one >> i & 1) for i in range(6)]])
        for one in bits
    ]
    teachers = {
        f"t{i}": dk.Signals(
            {"hidden.text": [torch.full((1, 6, 2), float(i))]},
            {} if mask is None else {"hidden.text": mask},
            axes={"hidden.text": (TokenAxis("text", valid=mask),)},
        )
        for i, mask in enumerate(masks)
    }
    term = dk.Term("mse", on="hidden.text", teacher="all")
    found = term.teachers.of(teachers, None)
    assert (found["hidden.text"][0] == (len(bits) - 1) / 2).all()
    given_ = [mask for mask in masks if mask is not None]
    if not given_:
        assert found.mask("hidden.text") is None
        return
    expected = torch.stack(given_).all(0)
    assert torch.equal(found.mask("hidden.text"), expected)
    assert torch.equal(found.axes("hidden.text")[0].valid, expected)


@given(st.integers(0, 15), st.integers(0, 15))
@settings(deadline=None)
def test_rows_of_attention_that_count_are_those_of_all_teachers(one, other):
    rows = [torch.tensor([[bool(bits >> i & 1) for i in range(4)]]) for bits in (one, other)]
    teachers = {
        name: dk.Signals(
            {"attention.text": [dk.Attention.from_scores(torch.zeros(1, 2, 4, 3), rows=kept)]}
        )
        for name, kept in zip("ab", rows, strict=True)
    }
    term = dk.Term("attention_kl", on="attention.text", teacher="all")
    found = term.teachers.of(teachers, None)["attention.text"][0]
    assert torch.equal(found.valid_rows(), (rows[0] & rows[1])[:, None].expand(1, 2, 4))


def test_tokens_that_differ_between_teachers_are_refused():
    def signals(special):
        axes = (TokenAxis("text", special=special, ids=torch.tensor([[1, 2]])),)
        return dk.Signals({"hidden.text": [torch.zeros(1, 2, 3)]}, axes={"hidden.text": axes})

    term = dk.Term("mse", on="hidden.text", teacher="all")
    same = term.teachers.of({"a": signals((0,)), "b": signals((0,))}, None)
    assert same.axes("hidden.text")[0].ids.tolist() == [[1, 2]]
    with pytest.raises(errors.ShapeError, match="tokens of hidden.text are of different special"):
        term.teachers.of({"a": signals((0,)), "b": signals((1,))}, None).axes("hidden.text")


class TestLife:
    @pytest.mark.parametrize("factory", [of_two_teachers, of_an_ensemble])
    def test_the_kit_passes(self, factory):
        results = testing.check_distiller(factory)
        assert not [str(one) for one in results if one.failed]

    def test_every_teacher_is_frozen_in_eval_mode_and_given_back(self):
        distiller, _ = of_two_teachers()
        teachers = distiller.teachers
        distiller.train()
        for model in teachers.values():
            assert not any(p.requires_grad for p in model.parameters())
            assert not any(m.training for m in model.modules())
        ids = {id(p) for p in distiller.parameters()}
        assert ids == {id(p) for p in distiller.student.parameters()}
        assert set(distiller.state_dict()) == {
            f"student.{n}" for n in distiller.student.state_dict()
        }
        distiller.close()
        for model in teachers.values():
            assert all(p.requires_grad for p in model.parameters())
            assert all(m.training for m in model.modules())

    def test_one_model_under_two_names_is_given_back_once(self):
        model = tiny.Fusion()
        distiller = distiller_of(teachers={"a": model, "b": model})
        for twin in (copy.deepcopy(distiller), pickle.loads(pickle.dumps(distiller))):
            assert twin.teachers["a"] is twin.teachers["b"] is not model
            assert torch.equal(twin(tiny.batch()).loss, distiller(tiny.batch()).loss)
        distiller.close()
        assert all(p.requires_grad for p in model.parameters())

    def test_teachers_go_where_the_student_goes(self):
        distiller, _ = of_two_teachers()
        placed = distiller.teachers["b"]
        placed.hf_device_map = {"": "cpu"}
        moved = []
        for name, model in distiller.teachers.items():
            model.to = lambda where, name=name: moved.append((name, str(where)))

        class There:
            device = torch.device("cuda", 0)

        distiller._teachers.move(lambda _: There)
        assert moved == [("a", "cuda:0")]

    def test_threads(self):
        distiller, batch = of_two_teachers()
        distiller.eval()
        expected, found = distiller(batch).loss, []
        threads = [
            threading.Thread(target=lambda: found.append(distiller(batch).loss)) for _ in range(3)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(found) == 3
        for loss in found:
            torch.testing.assert_close(loss, expected)

    def test_two_ranks_agree_with_one(self):
        results = testing.check_distiller(of_two_teachers, ranks=2)
        found = {one.name: one for one in results}["two_ranks_agree"]
        assert found.passed, str(found)
