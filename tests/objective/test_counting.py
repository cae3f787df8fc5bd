"""Which positions count: padding of logits, the batch entry of `mask`, `where`, empty batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import distillkit as dk
from distillkit import errors, losses
from tests.support import tiny

T, F = True, False
PADDING = torch.tensor([[T, T, T, F], [T, F, F, F]])


def pair(*shape, seed=0, requires_grad=True):
    """Tensors of both sides, of which every entry is another."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=generator) for _ in "st")
    return student.requires_grad_(requires_grad), teacher


def sides(name, student, teacher, masks=(None, None), axes=()):
    made = []
    for value, mask in zip((student, teacher), masks, strict=True):
        known = {} if mask is None else {name: mask}
        made.append(dk.Signals({name: value}, known, axes={name: axes} if axes else None))
    return made


def attention_of(*shape, seed=0, rows=None):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator).requires_grad_()
    return dk.Attention.from_scores(scores, rows=rows)


def by_example(values, kept):
    """The mean over examples of each one's mean."""
    return torch.stack([v[k].mean() for v, k in zip(values, kept, strict=True)]).mean()


class TestLogitsOfALayout:
    @staticmethod
    def axis(logits, **streams):
        made = {}
        for name, (modalities, valid) in streams.items():
            tokens = {key: dk.ModalityTokens(where) for key, where in modalities.items()}
            made[name] = dk.StreamTokens(tokens, valid)
        return dk.build_signals(
            NothingRecorded(), {}, dk.TokenLayout(made), values={"logits": logits}
        )

    def test_of_a_whole_joint_stream(self):
        valid = torch.tensor([[T, T, T, T, F], [T, T, T, T, T]])
        joint = {"image": slice(0, 2), "text": slice(2, 5)}, valid
        signals = self.axis(torch.zeros(2, 5, 7), joint=joint)
        assert torch.equal(signals.mask("logits"), valid)

    def test_of_the_words_in_a_joint_stream(self):
        valid = torch.tensor([[T, T, T, T, F], [T, T, T, T, T]])
        signals = self.axis(
            torch.zeros(2, 3, 7), joint=({"image": slice(0, 2), "text": slice(2, 5)}, valid)
        )
        assert torch.equal(signals.mask("logits"), valid[:, 2:])
        (axis,) = signals.axes("logits")
        assert (axis.positions, axis.length) == (slice(2, 5), 5)

    def test_of_words_between_patches_of_unequal_number(self):
        words = torch.tensor([[F, T, T, F, T], [T, F, F, F, T]])
        valid = torch.tensor([[T, T, T, T, T], [T, T, T, T, F]])
        joint = {"text": words, "image": ~words}, valid
        signals = self.axis(torch.zeros(2, 3, 7), joint=joint)
        assert signals.mask("logits").tolist() == [[T, T, T], [T, F, F]]
        without = {"text": words, "image": ~words}, None
        signals = self.axis(torch.zeros(2, 3, 7), joint=without)
        assert signals.mask("logits").tolist() == [[T, T, T], [T, T, F]]

    def test_of_a_text_tower_and_of_paired_texts(self):
        text = {"text": slice(0, 4)}, PADDING
        assert torch.equal(self.axis(torch.zeros(2, 4, 7), text=text).mask("logits"), PADDING)
        tokens = {"text": dk.ModalityTokens(slice(0, 4))}
        pairs = {"text": torch.tensor([1, 0, 1])}
        layout = dk.TokenLayout({"text": dk.StreamTokens(tokens, PADDING)}, pairs)
        signals = dk.build_signals(
            NothingRecorded(), {}, layout, values={"logits": torch.zeros(3, 4, 7)}
        )
        assert torch.equal(signals.mask("logits"), PADDING[[1, 0, 1]])

    @pytest.mark.parametrize("shape", [(2, 7), (2, 6, 7), (2, 4, 5, 7)])
    def test_of_anything_else_nothing_is_known(self, shape):
        signals = self.axis(torch.zeros(shape), text=({"text": slice(0, 4)}, PADDING))
        assert signals.mask("logits") is None
        assert signals.axes("logits") == ()

    def test_computed_late_they_are_computed_once_and_only_when_asked_for(self):
        calls = []

        def logits():
            calls.append(1)
            return pair(2, 4, 7)[0]

        student = self.axis(logits, text=({"text": slice(0, 4)}, PADDING))
        assert not calls
        teacher = dk.Signals({"logits": pair(2, 4, 7)[1]})
        result = dk.Objective([dk.Term("kl_divergence", on="logits", per="row")])(student, teacher)
        assert calls == [1]
        assert result.counts["kl_divergence/logits"] == 4

    def test_padding_changes_nothing_from_end_to_end(self):
        torch.manual_seed(0)
        recipe = dk.Recipe(name="x", terms=[{"loss": "kl_divergence", "on": "logits"}])
        distiller = dk.Distiller(
            Words(), Words(), recipe, student_adapter=WORDS, teacher_adapter=WORDS
        )
        batch = {"ids": torch.randint(1, 9, (2, 4)), "mask": torch.ones(2, 4, dtype=torch.bool)}
        batch["mask"][1, 2:] = False
        result = distiller(batch)
        values = losses.kl_divergence(result.student["logits"], result.teacher["logits"])
        torch.testing.assert_close(result.loss, by_example(values, batch["mask"]))
        more = {name: torch.cat([x, torch.zeros_like(x)], 1) for name, x in batch.items()}
        torch.testing.assert_close(distiller(more).loss, result.loss)
        assert "6 of 8 positions" in str(distiller.check(batch))


class NothingRecorded:
    """What capture saw of a forward without attention."""

    def layers(self, pattern):
        raise AssertionError(pattern)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = tiny.Encoder(depth=1), nn.Linear(tiny.WIDTH, 7)
        self.words = nn.Embedding(10, tiny.WIDTH)

    def forward(self, ids, mask):
        return {"logits": self.head(self.attention(self.words(ids), mask))}


WORDS = dk.DeclarativeAdapter(
    streams={"text": "attention.blocks.*"},
    inputs={"ids": "ids", "mask": "mask"},
    logits="logits",
    tokens={"text": [{"modality": "text", "length": "ids", "mask": "mask"}]},
)


class TestPadding:
    def test_a_position_counts_where_both_sides_say_so(self):
        student, teacher = pair(2, 4, 5)
        other = torch.tensor([[F, T, T, T], [T, T, T, T]])
        term = dk.Term("kl_divergence", on="logits", per="row")
        value = term(*sides("logits", student, teacher, (PADDING, other)))
        kept = PADDING & other
        torch.testing.assert_close(value, losses.kl_divergence(student, teacher)[kept].mean())

    def test_rows_all_counts_padding(self):
        student, teacher = pair(2, 4, 5)
        term = dk.Term("kl_divergence", on="logits", per="row", rows="all")
        value = term(*sides("logits", student, teacher, (PADDING, PADDING)))
        torch.testing.assert_close(value, losses.kl_divergence(student, teacher).mean())

    def test_masks_of_different_shapes(self):
        student, teacher = pair(2, 4, 5)
        term = dk.Term("kl_divergence", on="logits")
        with pytest.raises(errors.ShapeError, match=r"kl_divergence/logits.*\(2, 4\).*\(3, 4\)"):
            term(*sides("logits", student, teacher, (PADDING, torch.ones(3, 4).bool())))

    @pytest.mark.parametrize("loss", ["cka_distance", "intra_class_pearson_distance"])
    def test_a_loss_that_consumes_the_positions_cannot_leave_padding_out(self, loss):
        student, teacher = pair(2, 4, 4)  # as many classes as positions: shapes alone say nothing
        signals = sides("logits", student, teacher, (PADDING, None))
        with pytest.raises(errors.ShapeError, match=r'\(2, 4\) positions.*rows = "all"'):
            dk.Term(loss, on="logits")(*signals)
        assert dk.Term(loss, on="logits", rows="all")(*signals).isfinite()

    def test_a_loss_between_tokens_counts_the_anchors(self):
        student, teacher = pair(2, 4, 3)
        term = dk.Term("similarity_preserving", on="hidden.text", per="row")
        value = term(*sides("hidden.text", student, teacher, (PADDING, None)))
        values = losses.similarity_preserving(student, teacher)
        torch.testing.assert_close(value, values[PADDING].mean())

    @pytest.mark.parametrize("per", ["row", "example"])
    def test_a_loss_that_consumes_the_tokens_is_told_which_count(self, per):
        student, teacher = pair(2, 4, 3)
        term = dk.Term("relation_cosine_distance", on="hidden.text", per=per, mask="answer")
        entry = torch.tensor([[T, T, F, T], [F, F, F, F]])
        with torch.no_grad():
            student[~PADDING] = torch.nan
        value = term(*sides("hidden.text", student, teacher, (PADDING, None)), {"answer": entry})
        kept = (PADDING & entry)[0]
        alone = losses.relation_cosine_distance(student[0, kept], teacher[0, kept])
        torch.testing.assert_close(value, alone)

    def test_a_loss_that_consumes_the_tokens_and_a_mask_of_examples(self):
        student, teacher = pair(2, 4, 3)
        term = dk.Term("relation_cosine_distance", on="hidden.text", per="row", mask="answer")
        value = term(
            *sides("hidden.text", student, teacher, (PADDING, None)),
            {"answer": torch.tensor([F, T])},
        )
        alone = losses.relation_cosine_distance(student[1][PADDING[1]], teacher[1][PADDING[1]])
        torch.testing.assert_close(value, alone)

    def test_what_a_loss_is_told_cannot_be_bound(self):
        with pytest.raises(errors.RecipeError, match="valid"):
            dk.Term("relation_cosine_distance", on="hidden.text", inputs={"valid": "answer"})

    def test_other_numbers_of_examples_never_broadcast_in_a_loss_of_ones_own(self):
        def l1(student, teacher):
            return (student - teacher).abs().mean(-1)

        student, teacher = pair(3, 5)
        term = dk.Term(l1, on="logits")
        with pytest.raises(
            errors.ShapeError, match=r"'l1/logits'.*student \(3, 5\), teacher \(1, 5\)"
        ):
            term(*sides("logits", student, teacher[:1]))


class TestMask:
    LABELS = torch.tensor([[-100, 7, 7, -100], [-100, -100, 3, 0]])

    @pytest.mark.parametrize("per", ["row", "example"])
    @pytest.mark.parametrize("labels", [True, False])
    def test_of_logits_and_hidden_states(self, per, labels):
        kept = self.LABELS != -100
        entry = self.LABELS if labels else kept
        for name, loss in (("logits", "kl_divergence"), ("hidden.text", "mse")):
            student, teacher = pair(2, 4, 5)
            term = dk.Term(loss, on=name, per=per, mask="answer")
            value = term(*sides(name, student, teacher), {"answer": entry})
            values = getattr(losses, loss)(student, teacher)
            expected = values[kept].mean() if per == "row" else by_example(values, kept)
            torch.testing.assert_close(value, expected)

    def test_it_is_on_top_of_padding_and_of_rows_all(self):
        student, teacher = pair(2, 4, 5)
        signals = sides("logits", student, teacher, (PADDING, None))
        values = losses.kl_divergence(student, teacher)
        entry = torch.tensor([[F, T, T, T], [T, T, F, F]])
        for rows, kept in (("valid", entry & PADDING), ("all", entry)):
            term = dk.Term("kl_divergence", on="logits", per="row", rows=rows, mask="m")
            torch.testing.assert_close(term(*signals, {"m": entry}), values[kept].mean())

    def test_of_examples(self):
        student, teacher = pair(3, 5)
        term = dk.Term("kl_divergence", on="logits", mask="labels")
        labels = torch.tensor([2, -100, 0])
        value = term(*sides("logits", student, teacher), {"labels": labels})
        values = losses.kl_divergence(student, teacher)
        torch.testing.assert_close(value, (values[0] + values[2]) / 2)

    def test_of_an_images_positions(self):
        student, teacher = pair(2, 3, 4, 5)
        labels = torch.randint(5, (2, 3, 4))
        labels[0, 0] = -100
        term = dk.Term("kl_divergence", on="logits", per="row", mask="labels")
        value = term(*sides("logits", student, teacher), {"labels": labels})
        values = losses.kl_divergence(student, teacher)
        torch.testing.assert_close(value, values[labels != -100].mean())

    @pytest.mark.parametrize("rows", ["valid", "all"])
    def test_of_rows_of_attention(self, rows):
        student, teacher = attention_of(2, 3, 4, 5, rows=PADDING), attention_of(2, 3, 4, 5, seed=1)
        entry = torch.tensor([[F, T, T, T], [T, T, F, F]])
        kept = entry & PADDING if rows == "valid" else entry
        term = dk.Term("attention_kl", on="attention.text", per="row", rows=rows, mask="m")
        value = term(*sides("attention.text", student, teacher), {"m": entry})
        values = losses.attention_kl(student.with_rows(None), teacher)
        torch.testing.assert_close(value, values[kept[:, None].expand(2, 3, 4)].mean())

    def test_a_mask_of_the_whole_sequence_is_selected_at_the_axis(self):
        labels = torch.tensor([[-100, -100, 4, -100, 9], [-100, 3, 3, 3, -100]])
        axis = dk.TokenAxis("text", positions=slice(2, 5), length=5)
        kept = (labels != -100)[:, 2:]
        student, teacher = attention_of(2, 2, 3, 4), attention_of(2, 2, 3, 4, seed=1)
        name = "attention.text_to_image"
        term = dk.Term("attention_kl", on=name, per="row", mask="labels")
        value = term(*sides(name, student, teacher, axes=(axis, None)), {"labels": labels})
        values = losses.attention_kl(student, teacher)
        torch.testing.assert_close(value, values[kept[:, None].expand(2, 2, 3)].mean())
        student, teacher = pair(2, 3, 5)
        term = dk.Term("kl_divergence", on="logits", per="row", mask="labels")
        value = term(*sides("logits", student, teacher, axes=(axis,)), {"labels": labels})
        torch.testing.assert_close(value, losses.kl_divergence(student, teacher)[kept].mean())

    def test_words_between_patches(self):
        words = torch.tensor([[F, T, T, F, T], [T, F, F, F, T]])
        axis = dk.TokenAxis("text", positions=words, length=5)
        labels = torch.tensor([[-100, -100, 4, -100, 9], [7, -100, -100, -100, -100]])
        student, teacher = attention_of(2, 1, 3, 4), attention_of(2, 1, 3, 4, seed=1)
        name = "attention.text_to_image"
        term = dk.Term("attention_kl", on=name, per="row", mask="labels")
        value = term(*sides(name, student, teacher, axes=(axis, None)), {"labels": labels})
        kept = torch.tensor([[F, T, T], [T, F, F]])
        torch.testing.assert_close(value, losses.attention_kl(student, teacher)[:, 0][kept].mean())

    def test_the_teachers_sequence_where_the_student_is_a_tower(self):
        student, teacher = pair(2, 3, 4)
        name = "hidden.text"
        left = dk.Signals({name: student}, axes={name: (dk.TokenAxis("text", None),)})
        axis = dk.TokenAxis("text", positions=slice(0, 3), length=9)
        right = dk.Signals({name: teacher}, axes={name: (axis,)})
        entry = torch.arange(9).expand(2, 9) % 2 == 0
        value = dk.Term("mse", on=name, per="row", mask="m")(left, right, {"m": entry})
        torch.testing.assert_close(value, losses.mse(student, teacher)[:, ::2].mean())

    def test_from_end_to_end_on_rows_of_a_joint_stream(self):
        recipe = dk.Recipe(
            name="x",
            terms=[
                {
                    "loss": "attention_kl",
                    "on": "attention.text_to_image",
                    "mask": "labels",
                    "per": "row",
                }
            ],
        )
        torch.manual_seed(0)
        adapter = dk.DeclarativeAdapter(**tiny.FUSION_TABLES)
        distiller = dk.Distiller(
            tiny.Fusion(), tiny.Fusion(), recipe, student_adapter=adapter, teacher_adapter=adapter
        )
        batch = tiny.batch()
        batch["labels"] = torch.full((3, 9), -100)  # of 5 words and 4 patches
        batch["labels"][:, 1] = 4
        result = distiller(batch)
        layers = (s["attention.text_to_image"][-1] for s in (result.student, result.teacher))
        expected = losses.attention_kl(*layers)[:, :, 1]
        torch.testing.assert_close(result.loss, expected.mean())
        assert result.counts == {"attention_kl/attention.text_to_image": expected.numel()}
        assert "3 of 15 rows" in str(distiller.check(batch))

    @pytest.mark.parametrize("shape", [(2, 6), (4,), (2,), (3, 4), (2, 4, 5), (2, 1)])
    def test_any_other_shape_is_an_error_that_names_everything(self, shape):
        student, teacher = pair(2, 4, 5)
        term = dk.Term("kl_divergence", on="logits", mask="answer", name="soft")
        wanted = rf"'soft': mask = 'answer' is \({', '.join(map(str, shape))},?\).*\(2, 4\)"
        with pytest.raises(errors.ShapeError, match=wanted):
            term(*sides("logits", student, teacher), {"answer": torch.ones(shape).bool()})

    def test_the_error_names_the_sequence_that_would_fit(self):
        axis = dk.TokenAxis("text", positions=slice(0, 3), length=9)
        student, teacher = attention_of(2, 1, 3, 4), attention_of(2, 1, 3, 4)
        term = dk.Term("attention_kl", on="a", mask="m")
        with pytest.raises(errors.ShapeError, match="each of a sequence's 9 tokens"):
            signals = sides("a", student, teacher, axes=(axis, None))
            term(*signals, {"m": torch.ones(2, 8).bool()})

    @pytest.mark.parametrize("entry", [torch.ones(2, 4), torch.ones(2, 4).byte(), [[1, 1]], None])
    def test_what_is_no_mask(self, entry):
        student, teacher = pair(2, 4, 5)
        term = dk.Term("kl_divergence", on="logits", mask="m", name="soft")
        with pytest.raises(errors.ShapeError, match="'soft': mask = 'm' is boolean.*m != 0"):
            term(*sides("logits", student, teacher), {"m": entry})

    @pytest.mark.parametrize("name", ["attention_mask", "answer", "label_mask"])
    def test_an_attention_mask_of_integers_is_an_error(self, name):
        student, teacher = pair(2, 4, 5)
        term = dk.Term("kl_divergence", on="logits", mask=name)
        with pytest.raises(errors.ShapeError, match=f"0 and 1 alone.*pass {name} != 0"):
            term(*sides("logits", student, teacher), {name: PADDING.long()})

    def test_integers_that_proved_to_be_labels_are_not_looked_at_again(self):
        student, teacher = pair(2, 4, 5)
        signals = sides("logits", student, teacher)
        term = dk.Term("kl_divergence", on="logits", per="row", mask="targets")
        term(*signals, {"targets": self.LABELS})
        value = term(*signals, {"targets": torch.zeros(2, 4, dtype=torch.long)})
        torch.testing.assert_close(value, losses.kl_divergence(student, teacher).mean())
        named = dk.Term("kl_divergence", on="logits", per="row", mask="lm_labels")
        torch.testing.assert_close(
            named(*signals, {"lm_labels": torch.ones(2, 4, dtype=torch.int32)}), value
        )

    def test_an_entry_that_is_not_there(self):
        student, teacher = pair(2, 4, 5)
        term = dk.Term("kl_divergence", on="logits", mask="lables")
        with pytest.raises(errors.SignalError, match="'lables'; did you mean 'labels'"):
            term(*sides("logits", student, teacher), {"labels": self.LABELS})
        assert term.entries == {"lables"}

    def test_it_means_nothing_for_the_task(self):
        with pytest.raises(errors.RecipeError, match="no `on`, `inputs`, `mask`"):
            dk.Term("task", mask="labels")

    def test_it_is_a_key_of_a_recipe(self):
        term = {"loss": "kl_divergence", "on": "logits", "mask": "labels"}
        assert dk.Recipe(name="x", terms=[term]).build().each()[0].mask == "labels"

    def test_a_loss_of_one_value_for_the_whole_batch_has_no_positions(self):
        student, teacher = pair(4, 3)
        term = dk.Term("cka_distance", on="embedding.text", mask="m")
        with pytest.raises(errors.ShapeError, match=r"mask = 'm' is \(4,\).*of \(\) positions"):
            signals = sides("embedding.text", student, teacher)
            term(*signals, {"m": torch.ones(4).bool()})


class TestArgumentsThatLeaveOut:
    def test_where_is_about_classes_and_a_position_without_any_does_not_count(self):
        student, teacher = pair(2, 4, 5)
        where = torch.ones(2, 4, 5, dtype=torch.bool)
        where[..., 3:] = False
        where[0, 1] = where[1, 2:] = False
        inputs = {"where": "classes"}
        term = dk.Term("kl_divergence", on="logits", per="row", inputs=inputs)
        value = term(*sides("logits", student, teacher), {"classes": where})
        values = losses.kl_divergence(student[..., :3], teacher[..., :3])
        torch.testing.assert_close(value, values[where.any(-1)].mean())

    def test_where_of_positions_alone(self):
        student, teacher = pair(2, 4, 5)
        term = dk.Term("kl_divergence", on="logits", per="row", inputs={"where": "m"})
        value = term(*sides("logits", student, teacher), {"m": PADDING[..., None]})
        torch.testing.assert_close(value, losses.kl_divergence(student, teacher)[PADDING].mean())
        examples, _ = pair(3, 5)
        other = pair(3, 5, seed=1)[1]
        kept = torch.tensor([[T], [F], [T]])
        value = dk.Term("nkd", on="logits", inputs={"where": "m", "labels": "y"})(
            *sides("logits", examples, other), {"m": kept, "y": torch.tensor([0, 1, 2])}
        )
        values = losses.nkd(examples, other, labels=torch.tensor([0, 1, 2]))
        torch.testing.assert_close(value, (values[0] + values[2]) / 2)

    def test_classes_that_are_the_same_for_all_leave_no_position_out(self):
        student, teacher = pair(2, 4, 5)
        where = torch.tensor([T, T, F, T, T])
        term = dk.Term("kl_divergence", on="logits", per="row", inputs={"where": "m"})
        comparison = term.compare(*sides("logits", student, teacher))
        value = term(*sides("logits", student, teacher), {"m": where}, comparison=comparison)
        torch.testing.assert_close(
            value, losses.kl_divergence(student, teacher, where=where).mean()
        )
        assert comparison.counts == 8

    def test_tokens_that_a_relation_leaves_out(self):
        made = [dk.Attention(*torch.randn(2, 2, 2, 4, 6).requires_grad_()) for _ in "st"]
        term = dk.Term(
            "relation_kl", on="a", per="row", options={"relation_heads": 3}, inputs={"where": "m"}
        )
        value = term(*sides("a", *made), {"m": PADDING})
        values = losses.relation_kl(*made, relation_heads=3, where=PADDING)
        torch.testing.assert_close(value, values.sum() / (3 * PADDING.sum()))

    def test_tokens_that_the_loss_itself_leaves_out(self):
        def linear(hidden, weight, other, others, *, mask: Tensor):
            return losses.linear_kl_divergence(hidden, weight, other, others, mask=mask)

        (student, teacher), (one, two) = pair(2, 4, 3), pair(5, 3, seed=1)
        left = dk.Signals({"hidden.text": student, "head": one})
        right = dk.Signals({"hidden.text": teacher, "head": two})
        names = ["hidden.text", "head"]
        for loss in ("linear_kl_divergence", linear):
            flat = [x.flatten(0, 1) for x in (student, teacher)]
            term = dk.Term(loss, on=names, per="row", inputs={"mask": "m"})
            value = term(left, right, {"m": PADDING})
            expected = losses.linear_kl_divergence(flat[0], one, flat[1], two)
            torch.testing.assert_close(value, expected[PADDING.flatten()].mean())

    def test_labels_that_are_none_and_the_mask_that_leaves_them_out(self):
        student, teacher = pair(2, 4, 5)
        labels = torch.tensor([[-100, 1, 2, -100], [3, -100, -100, -100]])
        term = dk.Term(
            "decoupled_kl_divergence", on="logits", per="row", inputs={"labels": "labels"},
            mask="labels",
        )  # fmt: skip
        value = term(*sides("logits", student, teacher), {"labels": labels})
        value.backward()
        values = losses.decoupled_kl_divergence(student, teacher, labels=labels)
        torch.testing.assert_close(value, values[labels != -100].mean())
        assert student.grad.isfinite().all()


class TestNothing:
    @pytest.mark.parametrize("per", ["row", "example"])
    @pytest.mark.parametrize("rows", ["valid", "all"])
    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
    @pytest.mark.parametrize("align", [(), ("overlap",)])
    def test_of_attention_is_zero_with_a_zero_gradient(self, per, rows, shape, align):
        b, q, k = shape
        scale = nn.Parameter(torch.ones(()))
        made = [
            dk.Attention(torch.randn(b, 2, q, 8) * x, torch.randn(b, 2, k, 8)) for x in (scale, 1)
        ]
        axes = (
            dk.TokenAxis("text", extents=torch.zeros(b, q, 2)),
            dk.TokenAxis("image", extents=torch.zeros(b, k, 4)),
        )
        name = "attention.text_to_image"
        objective = dk.Objective(
            [dk.Term("attention_kl", on=name, per=per, rows=rows, align=align)]
        )
        result = objective(*sides(name, *made, axes=axes))
        result.loss.backward()
        assert result.loss == 0
        assert not scale.grad
        if per == "row":
            assert result.counts["attention_kl/" + name] == 0

    @pytest.mark.parametrize("per", ["row", "example"])
    @pytest.mark.parametrize(
        ("loss", "shape"),
        [
            ("kl_divergence", (0, 5)), ("kl_divergence", (0, 4, 5)), ("kl_divergence", (2, 0, 5)),
            ("mse", (0, 4, 3)), ("cka_distance", (0, 3)), ("rkd_angle", (0, 3)),
            ("intra_class_pearson_distance", (0, 5)), ("info_nce", (0, 3)),
        ],
    )  # fmt: skip
    def test_of_tensors_is_zero_with_a_zero_gradient(self, per, loss, shape):
        student, teacher = pair(*shape)
        result = dk.Objective([dk.Term(loss, on="x", per=per)])(*sides("x", student, teacher))
        result.loss.backward()
        assert result.loss == 0
        assert student.grad.shape == shape

    def test_of_groups_with_projections_of_their_own(self):
        hidden = torch.zeros(0, 3, 4, requires_grad=True)
        weight = torch.zeros(0, 5, 4)
        losses.linear_kl_divergence(hidden, weight, hidden.detach(), weight).sum().backward()
        assert hidden.grad.shape == (0, 3, 4)

    def test_a_mask_that_keeps_nothing(self):
        student, teacher = pair(2, 4, 5)
        labels = torch.full((2, 4), -100)
        for per in ("row", "example"):
            term = dk.Term("kl_divergence", on="logits", per=per, mask="labels")
            value = term(*sides("logits", student, teacher), {"labels": labels})
            value.backward()
            assert value == 0
            assert not student.grad.any()


class TestLayers:
    def test_a_signal_without_layers_belongs_to_every_layer(self):
        def scaled(hidden, scale, other, others):
            return (hidden * scale - other * others).abs().mean(-1)

        hidden, other = (list(x) for x in pair(3, 2, 4, 5))
        scale, others = pair(2, 1, 5, seed=1)
        left = dk.Signals({"hidden.text": hidden, "scale": scale})
        right = dk.Signals({"hidden.text": other, "scale": others})
        term = dk.Term(scaled, on=["hidden.text", "scale"], layers=[[0, 1], [2, 2]])
        expected = [scaled(hidden[i], scale, other[j], others).mean() for i, j in ((0, 1), (2, 2))]
        torch.testing.assert_close(term(left, right), torch.stack(expected).mean())

    def test_no_layers_at_all(self):
        for chosen in ("all", "first", "uniform", "middle", [[0, 0]], [[0.5, 0.5]]):
            term = dk.Term("mse", on="h", layers=chosen)
            with pytest.raises(errors.RecipeError, match="a layer that is not there"):
                term(dk.Signals({"h": []}), dk.Signals({"h": []}))


def test_a_step_reads_nothing_back_from_a_device():
    """Whatever would wait for an accelerator fails on tensors that hold no numbers."""
    with torch.device("meta"):
        student, teacher = pair_on_meta(2, 4, 5)
        mask, where = torch.ones(2, 4).bool(), torch.ones(2, 4, 1).bool()
        labels, count = torch.ones(2, 4, dtype=torch.long), torch.ones(())
        term = dk.Term("kl_divergence", on="logits", mask="labels", inputs={"where": "w"})
        signals = sides("logits", student, teacher, (mask, mask))
        batch = {"labels": labels, "w": where}
        result = dk.Objective([term])(*signals, batch=batch, normalizer={term.name: count})
    assert result.loss.device.type == "meta"
    assert result.counts[term.name].device.type == "meta"


def pair_on_meta(*shape):
    return torch.randn(shape, requires_grad=True), torch.randn(shape)


def test_one_class_through_a_term_names_the_term():
    student, teacher = pair(3, 1)
    term = dk.Term("kl_divergence", on="logits", name="matching")
    with pytest.raises(
        errors.ShapeError, match=r"'matching': kl_divergence: one class.*soft_binary_cross_entropy"
    ):
        term(*sides("logits", student, teacher))
    legal = dk.Term("soft_binary_cross_entropy", on="logits")(*sides("logits", student, teacher))
    assert legal > 0
    one_key = dk.Term("attention_kl", on="a")
    assert one_key(*sides("a", attention_of(2, 1, 3, 1), attention_of(2, 1, 3, 1))) == 0


def test_a_loss_of_attentions_with_values_that_are_no_rows():
    def mean_row(student, teacher):
        return losses.attention_kl(student, teacher).mean((1, 2))

    term = dk.Term(mean_row, on="a")
    with pytest.raises(errors.ShapeError, match=r"one value for each row, \(b, h, q\); got \(2,\)"):
        term(*sides("a", attention_of(2, 1, 3, 4), attention_of(2, 1, 3, 4)))


@pytest.mark.parametrize("given", ["layout", "entry"])
def test_masks_of_inference_mode_can_be_saved_for_the_backward(given):
    student, teacher = pair(2, 4, 5)
    with torch.inference_mode():
        mask = PADDING.clone()
    of_layout = mask if given == "layout" else None
    term = dk.Term("kl_divergence", on="logits", mask="m" if given == "entry" else None)
    signals = sides("logits", student, teacher, (None, of_layout))
    term(*signals, {"m": mask}).backward()
    assert math.isfinite(student.grad.sum())
    assert not student.grad[~PADDING].any()
