"""The aligner ``drop_special``: a [CLS] that one side alone has is left out, by value."""

from __future__ import annotations

import copy

import pytest
import torch

import distillkit as dk
from distillkit import errors, losses
from distillkit._objective.checks import check_term
from tests.support import tiny

NAME = "attention.text_to_image"
WORDS = dk.TokenAxis("text", special=(0,))


def patches(*special, grid=(1, 3), **known):
    return dk.TokenAxis("image", special=special, grid=grid, **known)


def attention(q=2, k=3, *, learns=False, seed=0, **masks):
    torch.manual_seed(seed)
    query = torch.randn(2, 2, q, 4, requires_grad=learns)
    return dk.Attention(query, torch.randn(2, 2, k, 4), **masks)


def sides(student, teacher, *axes, name=NAME, masks=(None, None)):
    return [
        dk.Signals({name: value}, {} if mask is None else {name: mask}, axes={name: known})
        for value, known, mask in zip((student, teacher), axes, masks, strict=True)
    ]


def term_of(loss, on=NAME, **keys):
    return dk.Term(loss, on=on, align=["drop_special"], **keys)


class TestAttention:
    def test_keys_of_one_side_are_left_out_and_the_rest_is_renormalised(self):
        student, teacher = attention(k=4, learns=True), attention(k=3, seed=1)
        made = sides(student, teacher, (WORDS, patches(0)), (WORDS, patches()))
        expected = losses.attention_kl(
            dk.Attention.from_scores(student.scores()[..., 1:]), teacher
        ).mean()
        torch.testing.assert_close(term_of("attention_kl")(*made), expected)

    def test_of_the_teacher_alike(self):
        student, teacher = attention(k=3, learns=True), attention(k=5, seed=1)
        made = sides(student, teacher, (WORDS, patches()), (WORDS, patches(0, 4)))
        left = dk.Attention.from_scores(teacher.scores()[..., 1:4])
        expected = losses.attention_kl(student, left).mean()
        torch.testing.assert_close(term_of("attention_kl")(*made), expected)

    def test_special_tokens_in_between(self):
        student, teacher = attention(k=4, learns=True), attention(k=3, seed=1)
        made = sides(student, teacher, (WORDS, patches(1)), (WORDS, patches()))
        left = dk.Attention.from_scores(student.scores()[..., [0, 2, 3]])
        expected = losses.attention_kl(left, teacher).mean()
        torch.testing.assert_close(term_of("attention_kl")(*made), expected)

    def test_special_tokens_at_other_places_are_left_out_on_both_sides(self):
        student, teacher = attention(k=4, learns=True), attention(k=4, seed=1)
        made = sides(student, teacher, (WORDS, patches(0)), (WORDS, patches(3)))
        expected = losses.attention_kl(
            dk.Attention.from_scores(student.scores()[..., 1:]),
            dk.Attention.from_scores(teacher.scores()[..., :3]),
        ).mean()
        torch.testing.assert_close(term_of("attention_kl")(*made), expected)

    def test_what_both_have_stays(self):
        student, teacher = attention(learns=True), attention(seed=1)
        axes = (WORDS, patches(0, grid=(1, 2)))
        made = sides(student, teacher, axes, axes)
        expected = losses.attention_kl(student, teacher).mean()
        torch.testing.assert_close(term_of("attention_kl")(*made), expected)

    def test_rows_and_padding_follow(self):
        rows = torch.tensor([[True, True, False], [True, False, False]])
        kept = torch.tensor([[True, True, True, False], [True, True, False, False]])
        student = attention(q=3, k=4, learns=True, rows=rows, mask=kept[:, None, None])
        teacher = attention(q=2, k=3, seed=1)
        text = dk.TokenAxis("text", valid=rows, special=(0,))
        made = sides(
            student, teacher, (text, patches(0, valid=kept)), (dk.TokenAxis("text"), patches())
        )
        left = dk.Attention.from_scores(student.scores()[:, :, 1:, 1:], rows=rows[:, 1:])
        values = losses.attention_reverse_kl(left, teacher)
        counted = rows[:, 1:][:, None].expand(values.shape)
        value = term_of("attention_reverse_kl", per="row")(*made)
        torch.testing.assert_close(value, values[counted].mean())

    def test_overlap_follows_it_and_gets_the_tokens_that_remain(self):
        boxes = dk.grid_extents((1, 3), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), special=1)
        student, teacher = attention(k=4, learns=True), attention(k=3, seed=1)
        made = sides(
            student, teacher,
            (WORDS, patches(0, extents=boxes)), (WORDS, patches(extents=boxes[:, 1:])),
        )  # fmt: skip
        term = dk.Term("attention_kl", on=NAME, align=["drop_special", "overlap"])
        torch.testing.assert_close(term(*made), term_of("attention_kl")(*made))


class TestHiddenStates:
    def test_the_tokens_that_remain_are_compared(self):
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 4)
        made = sides(student, teacher, (patches(),), (patches(0),), name="h")
        expected = losses.mse(student, teacher[:, 1:]).mean()
        torch.testing.assert_close(term_of("mse", on="h")(*made), expected)

    @pytest.mark.parametrize("padding_in", ["mask", "axis"])
    def test_padding_follows(self, padding_in):
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 4)
        kept = torch.tensor([[True, True, True, False], [True, True, False, False]])
        axis = patches(0, valid=kept) if padding_in == "axis" else patches(0)
        masks = (None, kept) if padding_in == "mask" else (None, None)
        made = sides(student, teacher, (patches(),), (axis,), name="h", masks=masks)
        values = losses.mse(student, teacher[:, 1:])
        value = term_of("mse", on="h", per="row")(*made)
        torch.testing.assert_close(value, values[kept[:, 1:]].mean())

    def test_a_mask_of_the_whole_sequence_is_selected_where_the_rest_sits(self):
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 4)
        axis = patches(0, positions=slice(2, 6), length=7)
        other = patches(positions=slice(0, 3), length=3)
        made = sides(student, teacher, (other,), (axis,), name="h")
        whole = torch.tensor([[False, False, False, True, False, True, False]] * 2)
        value = term_of("mse", on="h", mask="m", per="row")(*made, {"m": whole})
        values = losses.mse(student, teacher[:, 1:])
        torch.testing.assert_close(value, values[whole[:, 3:6]].mean())

    def test_a_projector_is_built_for_what_remains(self):
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 6)
        made = sides(student, teacher, (patches(),), (patches(0),), name="h")
        term = dk.Term("mse", on="h", align=["drop_special", "projector"])
        term.build_aligners(*made)
        expected = losses.mse(term.aligners[1].linear(student), teacher[:, 1:]).mean()
        torch.testing.assert_close(term(*made), expected)


class TestTokenAxis:
    @pytest.mark.parametrize(
        ("positions", "special", "left"),
        [
            (slice(2, 6), (0,), slice(3, 6)),
            (slice(2, 6), (3,), slice(2, 5)),
            (slice(2, 6), (1,), [[2, 4, 5], [2, 4, 5]]),
            (torch.tensor([[5, 3, 4, 2], [0, 1, 2, 3]]), (0,), [[3, 4, 2], [1, 2, 3]]),
            (
                torch.tensor([[True, False, True, True, True], [False, True, True, True, True]]),
                (1,),
                [[True, False, False, True, True], [False, True, False, True, True]],
            ),
            (None, (0,), None),
        ],
    )
    def test_everything_known_follows(self, positions, special, left):
        axis = dk.TokenAxis(
            "image",
            valid=torch.ones(2, 4, dtype=torch.bool),
            special=special,
            ids=torch.arange(4).expand(2, 4),
            extents=torch.arange(16.0).view(1, 4, 4),
            positions=positions,
            length=9,
        )
        found = axis.without_special()
        kept = [i for i in range(4) if i not in special]
        assert found.special == ()
        assert found.ids.tolist() == [kept, kept]
        assert torch.equal(found.extents, axis.extents[:, kept])
        assert found.valid.shape == (2, 3)
        where = (
            found.positions.tolist()
            if isinstance(found.positions, torch.Tensor)
            else found.positions
        )
        assert where == left


class TestErrors:
    @pytest.mark.parametrize(
        ("student", "teacher", "axes", "complaint"),
        [
            (torch.zeros(2, 5), torch.zeros(2, 5), ((), ()), r"have tokens; the student's signal is \(2, 5\)"),
            (attention(), torch.zeros(2, 3, 4), ((), ()), "one side is an attention, the other is n"),
            (attention(), attention(), ((), ()), r"nothing says which tokens.*`special = \[0\]`"),
            (attention(), attention(), ((WORDS, patches(0)), (WORDS, None)), "known of the teacher's"),
            (attention(), attention(), ((None, None), (WORDS, None)), "known of the student's"),
            (attention(), attention(), ((WORDS, patches(7)), (WORDS, patches())), "student's layout calls token 7 special, but there are 3"),
        ],
    )  # fmt: skip
    def test_what_it_cannot_do(self, student, teacher, axes, complaint):
        term = term_of("mse")
        with pytest.raises(errors.ShapeError, match=f"term 'mse/.*{complaint}"):
            term.aligners.aligned(student, teacher, axes)


TABLES = {
    **tiny.DUAL_TABLES,
    "hidden": {"image": "image.blocks.*"},
    "tokens": {
        "text": [tiny.TEXT],
        "image": [{"modality": "image", "special": [0], "grid": [2, 2]}],
    },
}


class TestModels:
    def distiller(self, **term):
        torch.manual_seed(0)
        return dk.Distiller(
            tiny.Dual(),
            tiny.Dual(),
            dk.Recipe(name="test", terms=[term]),
            student_adapter=dk.DeclarativeAdapter(
                **{**tiny.DUAL_TABLES, "hidden": {"image": "image.blocks.*"}}
            ),
            teacher_adapter=dk.DeclarativeAdapter(**TABLES),
            ignore=["labels"],
        )

    def batch(self):
        return {**tiny.batch(), "teacher_pixels": torch.randn(3, 5, 6)}

    @pytest.mark.parametrize("loss_on", [("attention_kl", NAME), ("mse", "hidden.image")])
    def test_a_recipe_names_it_and_the_check_suggests_it(self, loss_on):
        loss, on = loss_on
        plain = self.distiller(loss=loss, on=on)
        problems = str(plain.check(self.batch()))
        assert 'align = ["drop_special"]' in problems
        assert "overlap" not in problems
        distiller = self.distiller(loss=loss, on=on, align=["drop_special"])
        check = distiller.check(self.batch())
        assert check.passed, str(check)
        result = distiller(self.batch())
        result.loss.backward()
        assert distiller.student.image.blocks[1].qkv.weight.grad.any()
        copied = copy.deepcopy(distiller)
        torch.testing.assert_close(copied(self.batch()).loss > 0, torch.tensor(True))

    def test_of_other_grids_it_does_not_suggest_itself(self):
        student, teacher = attention(k=5, learns=True), attention(k=9, seed=1)
        made = sides(
            student, teacher, (WORDS, patches(0, grid=(2, 2))), (WORDS, patches(grid=(3, 3)))
        )
        (problem,) = check_term(dk.Term("attention_kl", on=NAME), *made, None).problems
        assert "overlap" in problem
        assert "drop_special" not in problem
