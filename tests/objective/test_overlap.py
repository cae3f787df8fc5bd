"""The aligner `overlap`: the teacher's attention on the student's tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors, losses
from tests.support import tiny

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)


def patches(rows, columns=None, boxes=WHOLE, **known):
    grid = rows, columns or rows
    return dk.TokenAxis("image", grid=grid, extents=dk.grid_extents(grid, boxes), **known)


def words(*intervals, **known):
    return dk.TokenAxis("text", extents=torch.tensor([intervals]), **known)


def attention(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return dk.Attention.from_scores(
        torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    )


def carried(student, teacher, ours, theirs):
    return dk.overlap(student, teacher, student_tokens=ours, teacher_tokens=theirs)


class TestGrids:
    def test_equal_tokens_are_the_identity(self):
        student, teacher = attention(2, 3, 4, 9, seed=1), attention(2, 3, 4, 9)
        text = words((0, 3), (3, 7), (8, 9), (9, 14))
        axes = text, patches(3)
        ours, theirs = carried(student, teacher, axes, axes)
        torch.testing.assert_close(theirs.probabilities(), teacher.probabilities())
        torch.testing.assert_close(ours.probabilities(), student.probabilities())
        assert losses.shared_rows(ours, theirs).all()

    def test_twelve_by_twelve_onto_seven_by_seven_by_hand(self):
        teacher = attention(1, 1, 1, 144)
        student = attention(1, 1, 1, 49)
        _, theirs = carried(student, teacher, (None, patches(7)), (None, patches(12)))
        mass = teacher.probabilities().view(12, 12)
        part = torch.zeros(7, 12, dtype=torch.float64)  # of a row of twelve that a row of seven has
        for i in range(7):
            for j in range(12):
                common = min((i + 1) / 7, (j + 1) / 12) - max(i / 7, j / 12)
                part[i, j] = max(common, 0.0) * 12
        torch.testing.assert_close(part.sum(0), torch.ones(12, dtype=torch.float64))
        assert part[0, 1] == pytest.approx(12 / 7 - 1)  # 5/7 of the second row: 12/7 rows are seen
        torch.testing.assert_close(
            theirs.probabilities().view(7, 7), part @ mass @ part.T, rtol=1e-6, atol=1e-9
        )

    def test_rows_are_the_mean_of_the_rows_that_they_overlap(self):
        teacher = attention(1, 2, 16, 3)
        student = attention(1, 2, 4, 3)
        ours, theirs = carried(student, teacher, (patches(2), None), (patches(4), None))
        first = teacher.probabilities()[:, :, [0, 1, 4, 5]].mean(2)
        torch.testing.assert_close(theirs.probabilities()[:, :, 0], first)
        torch.testing.assert_close(ours.probabilities(), student.probabilities())

    def test_a_centre_crop(self):
        """The student sees the middle half of each side: the four inner patches of sixteen."""
        crop = torch.tensor([[0.25, 0.25, 0.75, 0.75]], dtype=torch.float64)
        teacher, student = attention(1, 1, 16, 16), attention(1, 1, 4, 4)
        axis, other = patches(2, boxes=crop), patches(4)
        ours, theirs = carried(student, teacher, (axis, axis), (other, other))
        inner = [5, 6, 9, 10]
        block = teacher.probabilities()[0, 0][inner][:, inner]
        torch.testing.assert_close(theirs.probabilities()[0, 0], block / block.sum(1, keepdim=True))
        torch.testing.assert_close(ours.probabilities(), student.probabilities())

    def test_a_teacher_that_sees_less(self):
        """Student tokens beside the teacher's crop neither count as rows nor hold any mass."""
        crop = torch.tensor([[0.0, 0.0, 1.0, 0.5]], dtype=torch.float64)
        teacher, student = attention(1, 1, 2, 2), attention(1, 1, 4, 4)
        axis, other = patches(2), patches(2, 1, boxes=crop)
        ours, theirs = carried(student, teacher, (axis, axis), (other, other))
        assert losses.shared_rows(ours, theirs).tolist() == [[[True, False, True, False]]]
        seen = ours.probabilities()[0, 0, 0]
        expected = student.probabilities()[0, 0, 0, [0, 2]]
        torch.testing.assert_close(seen[[0, 2]], expected / expected.sum())
        assert seen[[1, 3]].tolist() == [0, 0]
        assert torch.isfinite(losses.attention_kl(ours, theirs)).all()
        assert torch.isfinite(losses.attention_reverse_kl(ours, theirs)).all()

    def test_a_student_token_seen_in_part_weighs_by_that_part(self):
        crop = torch.tensor([[0.0, 0.0, 1.0, 0.75]], dtype=torch.float64)
        teacher, student = attention(1, 1, 1, 3), attention(1, 1, 1, 2)
        ours, _ = carried(
            student, teacher, (None, patches(1, 2)), (None, patches(1, 3, boxes=crop))
        )
        mass = student.probabilities()[0, 0, 0] * torch.tensor([1.0, 0.5], dtype=torch.float64)
        torch.testing.assert_close(ours.probabilities()[0, 0, 0], mass / mass.sum())

    def test_examples_have_crops_of_their_own(self):
        boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1, 1]], dtype=torch.float64)
        teacher, student = attention(2, 1, 1, 4), attention(2, 1, 1, 4)
        _, theirs = carried(student, teacher, (None, patches(2, boxes=boxes)), (None, patches(2)))
        first, second = theirs.probabilities()[:, 0, 0]
        torch.testing.assert_close(first, teacher.probabilities()[0, 0, 0])
        lower = teacher.probabilities()[1, 0, 0, 2:]
        expected = (lower / lower.sum()).repeat(2) / 2  # each cell's upper and lower half
        torch.testing.assert_close(second, expected)


class TestWords:
    def test_a_word_cut_in_two(self):
        teacher = dk.Attention.from_probabilities(torch.tensor([[[[0.1, 0.2, 0.7]]]]))
        student = attention(1, 1, 1, 2)
        _, theirs = carried(
            student, teacher, (None, words((0, 4), (5, 9))), (None, words((0, 2), (2, 4), (5, 9)))
        )
        torch.testing.assert_close(
            theirs.probabilities()[0, 0, 0], torch.tensor([0.3, 0.7]), rtol=1e-5, atol=1e-6
        )

    def test_a_word_of_the_teacher_that_the_student_cuts(self):
        teacher = dk.Attention.from_probabilities(torch.tensor([[[[0.4, 0.6]]]]))
        _, theirs = carried(
            attention(1, 1, 1, 3), teacher,
            (None, words((0, 1), (1, 4), (5, 9))), (None, words((0, 4), (5, 9))),
        )  # fmt: skip
        torch.testing.assert_close(
            theirs.probabilities()[0, 0, 0], torch.tensor([0.1, 0.3, 0.6]), rtol=1e-5, atol=1e-6
        )

    def test_special_tokens_meet_in_their_order(self):
        """[CLS] on [CLS] and [SEP] on [SEP], where both sides have both."""
        teacher = dk.Attention.from_probabilities(torch.tensor([[[[0.1, 0.2, 0.3, 0.4]]]]))
        ours, theirs = carried(
            attention(1, 1, 1, 3), teacher,
            (None, words((0, 0), (0, 8), (0, 0))), (None, words((0, 0), (0, 4), (4, 8), (0, 0))),
        )  # fmt: skip
        torch.testing.assert_close(
            theirs.probabilities()[0, 0, 0], torch.tensor([0.1, 0.5, 0.4]), rtol=1e-5, atol=1e-6
        )
        assert (ours.probabilities() > 0).all()

    def test_special_tokens_of_one_side_are_left_out(self):
        teacher = dk.Attention.from_probabilities(torch.tensor([[[[0.5, 0.2, 0.3]]]]))
        student = attention(1, 1, 1, 2)
        ours, theirs = carried(
            student, teacher,
            (None, words((0, 4), (4, 8))), (None, words((0, 0), (0, 4), (4, 8))),
        )  # fmt: skip
        torch.testing.assert_close(
            theirs.probabilities()[0, 0, 0], torch.tensor([0.4, 0.6]), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(ours.probabilities(), student.probabilities())
        back, _ = carried(
            attention(1, 1, 3, 3), attention(1, 1, 2, 2),
            [words((0, 0), (0, 4), (4, 8))] * 2, [words((0, 4), (4, 8))] * 2,
        )  # fmt: skip
        assert back.valid_rows().tolist() == [[[False, True, True]]]
        assert back.probabilities()[0, 0, 1:, 0].tolist() == [0, 0]

    def test_unequally_many_special_tokens_are_left_out(self):
        """[CLS] and [SEP] against [CLS] alone: which of them are partners is not known."""
        ours, theirs = carried(
            attention(1, 1, 1, 2), attention(1, 1, 1, 3),
            (None, words((0, 0), (0, 4))), (None, words((0, 0), (0, 4), (0, 0))),
        )  # fmt: skip
        for side in (ours, theirs):
            torch.testing.assert_close(
                side.probabilities()[0, 0, 0], torch.tensor([0.0, 1.0], dtype=torch.float64)
            )

    def test_padding_is_no_special_token(self):
        pad = torch.tensor([[True, True, False]])
        ours, _ = carried(
            attention(1, 1, 1, 3), attention(1, 1, 1, 3),
            (None, words((0, 0), (0, 4), (0, 0), valid=pad)),
            (None, words((0, 0), (0, 4), (0, 0))),
        )  # fmt: skip
        assert ours.probabilities()[0, 0, 0].tolist() == [0, 1, 0]

    def test_tokens_that_touch_but_for_rounding_do_not_overlap(self):
        right = torch.tensor([[0.0, 0.5 - 1e-7, 1.0, 1.0]], dtype=torch.float64)
        axis, other = patches(1, 2), patches(1, 2, boxes=right)
        ours, theirs = carried(
            attention(1, 1, 2, 2), attention(1, 1, 2, 2), (axis, axis), (other, other)
        )
        assert losses.shared_rows(ours, theirs).tolist() == [[[False, True]]]
        assert ours.probabilities()[0, 0, 1].tolist() == [0, 1]

    def test_padding_lies_nowhere(self):
        pad = torch.tensor([[True, True, False]])
        teacher = dk.Attention(
            torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4),
            mask=pad[:, None, None, :], rows=pad,
        )  # fmt: skip
        layout = dk.StreamTokens(
            {"text": dk.ModalityTokens(slice(0, 3), extents=torch.tensor([[[0, 4], [4, 8], [4, 9]]]))},
            pad,
        )  # fmt: skip
        from distillkit._backbone.axis import token_axis

        theirs_axis = token_axis(layout["text"], "text", pad)
        assert theirs_axis.extents[0, 2].tolist() == [0, 0]
        ours_axis = words((0, 4), (4, 8), (8, 12))
        ours, theirs = carried(
            attention(1, 1, 3, 3), teacher, (ours_axis, ours_axis), (theirs_axis, theirs_axis)
        )
        assert losses.shared_rows(ours, theirs).tolist() == [[[True, True, False]]]
        torch.testing.assert_close(
            theirs.probabilities()[:, :, :2, :2], teacher.probabilities()[:, :, :2, :2]
        )
        assert ours.probabilities()[0, 0, 0, 2] == 0

    def test_a_text_that_the_student_cuts_off(self):
        teacher = dk.Attention.from_probabilities(torch.tensor([[[[0.1, 0.2, 0.7]]]]))
        _, theirs = carried(
            attention(1, 1, 1, 2), teacher,
            (None, words((0, 4), (5, 9))), (None, words((0, 4), (5, 9), (10, 14))),
        )  # fmt: skip
        torch.testing.assert_close(
            theirs.probabilities()[0, 0, 0], torch.tensor([1 / 3, 2 / 3]), rtol=1e-5, atol=1e-6
        )


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99)
)
def test_probability_is_conserved(rows, columns, other_rows, other_columns, seed):
    """Both sides show the whole image: every row stays a distribution."""
    n, m = rows * columns, other_rows * other_columns
    teacher, student = attention(2, 2, m, m, seed=seed), attention(2, 2, n, n, seed=seed + 1)
    axis, other = patches(rows, columns), patches(other_rows, other_columns)
    ours, theirs = carried(student, teacher, (axis, axis), (other, other))
    torch.testing.assert_close(theirs.probabilities().sum(-1), torch.ones(2, 2, n).double())
    torch.testing.assert_close(ours.probabilities(), student.probabilities())
    if (rows, columns) == (other_rows, other_columns):
        torch.testing.assert_close(theirs.probabilities(), teacher.probabilities())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 8), st.integers(0, 99))
def test_splitting_a_teachers_tokens_changes_nothing(lengths, parts, seed):
    """A token cut into pieces that share its mass by length is the same token."""
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    whole = list(itertools.pairwise(edges))
    pieces = [
        (start + (stop - start) * i / parts, start + (stop - start) * (i + 1) / parts)
        for start, stop in whole
        for i in range(parts)
    ]
    coarse = attention(1, 1, 1, len(whole), seed=seed).probabilities()
    fine = coarse.repeat_interleave(parts, -1) / parts
    results = [
        carried(
            attention(1, 1, 1, 2), dk.Attention.from_probabilities(mass),
            (None, words((0, edges[-1] / 3), (edges[-1] / 3, edges[-1]))), (None, words(*tokens)),
        )[1].probabilities()
        for mass, tokens in ((coarse, whole), (fine, pieces))
    ]  # fmt: skip
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_gradient_reaches_the_student_and_only_what_both_see():
    query = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    crop = torch.tensor([[0.0, 0.0, 1.0, 0.5]], dtype=torch.float64)
    axis, other = patches(2), patches(4, 2, boxes=crop)
    teacher = attention(1, 2, 8, 8)

    def loss(query, key):
        ours, theirs = carried(dk.Attention(query, key), teacher, (axis, axis), (other, other))
        rows = losses.attention_kl(ours, theirs)
        return losses.masked_mean(rows, losses.shared_rows(ours, theirs))

    assert torch.autograd.gradcheck(loss, (query, key))
    loss(query, key).backward()
    assert query.grad[:, :, [0, 2]].abs().sum(-1).min() > 0
    assert query.grad[:, :, [1, 3]].abs().max() == 0
    assert key.grad[:, :, [1, 3]].abs().max() == 0


class TestBadInput:
    def test_unequal_tokens_without_extents_name_the_fix(self):
        with pytest.raises(
            errors.ShapeError,
            match=r"(?s)student has 4 text queries and the teacher 3.*offset_mapping",
        ):
            carried(
                attention(1, 1, 4, 2), attention(1, 1, 3, 2),
                (dk.TokenAxis("text"), None), (words((0, 1), (1, 2), (2, 3)), None),
            )  # fmt: skip
        with pytest.raises(
            errors.ShapeError, match=r"(?s)image keys.*teacher lie.*image_boxes.*uncropped = true"
        ):
            carried(
                attention(1, 1, 2, 4),
                attention(1, 1, 2, 9),
                (None, patches(2)),
                (None, dk.TokenAxis("image")),
            )
        with pytest.raises(errors.ShapeError, match="both layouts"):
            carried(attention(1, 1, 2, 4), attention(1, 1, 2, 9), (), ())

    def test_equal_tokens_without_extents_stay_as_they_are(self):
        student, teacher = attention(1, 1, 3, 2), attention(1, 1, 3, 2, seed=4)
        assert carried(student, teacher, (), ()) == (student, teacher)

    def test_characters_against_boxes(self):
        with pytest.raises(errors.ShapeError, match="same raw input"):
            carried(
                attention(1, 1, 1, 1),
                attention(1, 1, 1, 1),
                (None, patches(1)),
                (None, words((0, 1))),
            )

    def test_extents_of_another_number_of_tokens(self):
        with pytest.raises(errors.ShapeError, match="teacher's attention has 5 keys"):
            carried(
                attention(1, 1, 1, 1), attention(1, 1, 1, 5), (None, patches(1)), (None, patches(2))
            )

    def test_no_attention(self):
        with pytest.raises(errors.ShapeError, match="no attention"):
            dk.overlap(torch.zeros(1), torch.zeros(1))

    def test_nothing_in_common_is_no_nan(self):
        left = torch.tensor([[0.0, 0.0, 1.0, 0.5]], dtype=torch.float64)
        right = torch.tensor([[0.0, 0.5, 1.0, 1.0]], dtype=torch.float64)
        axis, other = patches(2, boxes=left), patches(3, boxes=right)
        ours, theirs = carried(
            attention(1, 1, 4, 4), attention(1, 1, 9, 9), (axis, axis), (other, other)
        )
        rows = losses.attention_kl(ours, theirs)
        assert rows.eq(0).all()
        assert not losses.shared_rows(ours, theirs).any()


def test_a_term_carries_what_two_declarative_adapters_say():
    """12 patches of one side, 4 of the other, both from TOML; the loss by hand."""
    torch.manual_seed(0)
    teacher, student = tiny.Fusion(), tiny.Dual()
    image = {"modality": "image", "grid": [2, 2], "uncropped": True}
    fine = {"modality": "image", "grid": [4, 3], "uncropped": True}
    batch = {**tiny.batch(3), "teacher_pixels": torch.randn(3, 12, 6)}
    recipe = dk.load_recipe("dide_attention")
    distiller = dk.Distiller(
        student, teacher, recipe, ignore=["labels"],
        student_adapter=dk.DeclarativeAdapter(**{**tiny.DUAL_TABLES, "tokens": {"text": [tiny.TEXT], "image": [image]}}),
        teacher_adapter=dk.DeclarativeAdapter(**{**tiny.FUSION_TABLES, "tokens": {"joint": [tiny.TEXT, fine]}}),
    )  # fmt: skip
    result = distiller(batch)
    ours = result.student["attention.text_to_image"][-1]
    theirs = result.teacher["attention.text_to_image"][-1]
    assert (ours.shape[3], theirs.shape[3]) == (4, 12)
    mass = theirs.probabilities().view(3, 4, 5, 2, 2, 3)
    left = mass[..., 0] + mass[..., 1] / 2
    right = mass[..., 2] + mass[..., 1] / 2
    expected = torch.stack([left.sum(-1), right.sum(-1)], -1).flatten(3)
    rows = losses.attention_kl(ours, dk.Attention.from_probabilities(expected))
    by_example = [row[:, keep].mean() for row, keep in zip(rows, batch["mask"], strict=True)]
    torch.testing.assert_close(
        result.parts["attention_kl/attention.text_to_image"],
        torch.stack(by_example).mean().detach(),
    )
    result.loss.backward()
    assert student.image.blocks[0].qkv.weight.grad.abs().max() > 0
