"""What is compared: made once per step, looked at before training, refused without gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distillkit as dk
from distillkit import errors, losses
from distillkit._objective.checks import check_first_batch, check_term, counted_lines

NAME = "attention.text_to_image"


def attention(b=2, q=3, k=4, *, rows=None, learns=True, seed=0):
    torch.manual_seed(seed)
    query = torch.randn(b, 2, q, 8, requires_grad=learns)
    return dk.Attention(query, torch.randn(b, 2, k, 8), rows=rows)


def sides(student, teacher, *, axes=None, name=NAME, masks=(None, None)):
    return [
        dk.Signals(
            {name: value},
            {} if mask is None else {name: mask},
            axes=None if axes is None else {name: axes},
        )
        for value, mask in zip((student, teacher), masks, strict=True)
    ]


def axes(words, patches):
    return dk.TokenAxis("text", valid=words), dk.TokenAxis("image", valid=patches)


def objective_of(*terms):
    return dk.Objective([dk.Term(**term) for term in terms])


ATTENTION = {"loss": "attention_kl", "on": NAME}


class Replayed:
    """An attention that says how often its scores were replayed."""

    def __init__(self, *, learns=True):
        self.scores = torch.randn(2, 2, 3, 4, requires_grad=learns)
        self.replays = 0

    def replay(self):
        self.replays += 1
        return self.scores * 1

    @property
    def attention(self):
        return dk.Attention.replayed(self.scores.shape, scores=self.replay)


class TestGradient:
    @staticmethod
    def layers(*learn):
        return [torch.randn(2, 3, 4, requires_grad=x) for x in learn]

    @pytest.mark.parametrize(
        ("layers", "place"),
        [([[0, 0]], "0 of 3"), ("all", "0 of 3"), ([[2, 0], [-3, 1]], "0 of 3")],
    )
    def test_every_layer_that_is_compared_carries_one(self, layers, place):
        student, teacher = self.layers(False, True, True), self.layers(False, False, False)
        signals = sides(student, teacher, name="hidden.text")
        term = dk.Term("mse", on="hidden.text", layers=layers)
        with pytest.raises(errors.SignalError, match=rf"'hidden.text', layer {place}, carries no"):
            term(*signals)
        assert f"layer {place}" in "".join(check_term(term.eval(), *signals, None).problems)
        assert term(*signals) > 0, "no error in evaluation"

    def test_layers_that_are_not_compared_may_be_frozen(self):
        signals = sides(self.layers(False, True), self.layers(False, False), name="hidden.text")
        assert dk.Term("mse", on="hidden.text")(*signals).requires_grad

    def test_every_signal_carries_one(self):
        def both(a, b, c, d):
            return (a - c).square().mean(-1) + (b - d).square().mean(-1)

        student, other = self.layers(True, False)
        left = dk.Signals({"x": student, "y": other})
        right = dk.Signals({"x": other, "y": other})
        with pytest.raises(errors.SignalError, match="'y' carries no gradient"):
            dk.Term(both, on=["x", "y"])(left, right)

    def test_a_replayed_attention_is_not_replayed_for_the_question(self):
        made = Replayed()
        value = dk.Term("attention_kl", on=NAME)(
            *sides([made.attention], [attention(learns=False)])
        )
        alone = Replayed()
        losses.attention_kl(alone.attention, attention(learns=False))
        assert value.requires_grad
        assert made.replays == alone.replays

    def test_a_replayed_attention_without_gradient_is_found_all_the_same(self):
        made = Replayed(learns=False)
        term = dk.Term("attention_kl", on=NAME)
        with pytest.raises(errors.SignalError, match=f"'{NAME}', layer 0 of 1, carries no"):
            term(*sides([made.attention], [attention(learns=False)]))
        teacher = attention()  # its gradient is not the student's
        with pytest.raises(errors.SignalError, match="carries no gradient"):
            term(*sides([made.attention], [teacher]))

    def test_an_aligner_that_learns_says_nothing_of_the_student(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(()))

            def forward(self, student, teacher):
                return dk.Attention.from_scores(student.scores() * self.scale), teacher

        dk.register(dk.AlignerSpec("test_scaled", factory=Scaled))
        term = dk.Term("attention_kl", on=NAME, align=["test_scaled"])
        teacher = attention(learns=False)
        with pytest.raises(errors.SignalError, match="carries no gradient"):
            term(*sides([Replayed(learns=False).attention], [teacher]))
        assert term(*sides([Replayed().attention], [teacher])).requires_grad


class TestFirstBatch:
    @staticmethod
    def compared(student, teacher, **known):
        objective = objective_of(ATTENTION, {"loss": "task"})
        names = [term.name for term in objective.each()]
        return check_first_batch(objective, names, *sides([student], [teacher], **known))

    def test_it_says_which_terms_were_compared(self):
        assert self.compared(attention(), attention()) == {f"attention_kl/{NAME}"}

    def test_a_term_of_weight_zero_is_not_looked_at(self):
        objective = objective_of(ATTENTION)
        signals = dk.Signals({})
        assert check_first_batch(objective, [], signals, signals) == set()

    @pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 4), (0, 3, 4)])
    def test_a_batch_without_pairs_is_postponed(self, shape):
        assert self.compared(attention(*shape), attention(*shape)) == set()

    def test_a_batch_in_which_nothing_is_real_is_postponed(self):
        words, patches = torch.ones(2, 3).bool(), torch.zeros(2, 4).bool()
        assert not self.compared(attention(), attention(), axes=axes(words, patches))
        assert not self.compared(
            attention(rows=torch.zeros(2, 3).bool()), attention(rows=torch.zeros(2, 3).bool())
        )
        words, patches = torch.tensor([[True], [False]]), torch.tensor([[False], [True]])
        assert not self.compared(
            attention(), attention(), axes=axes(words.expand(2, 3), patches.expand(2, 4))
        ), "no example has both"
        assert self.compared(
            attention(), attention(), axes=axes(words.expand(2, 3), words.expand(2, 4))
        )

    def test_tokens_of_which_no_row_counts_are_an_error(self):
        q, k = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 4, 8)
        blind = dk.Attention(q, k, mask=torch.zeros(1, 1, 1, 4).bool())
        with pytest.raises(errors.ShapeError, match="no row of this batch counts"):
            self.compared(attention(), blind)

    def test_one_side_without_tokens_is_an_error(self):
        with pytest.raises(errors.ShapeError, match="unequal keys"):
            self.compared(attention(2, 3, 0), attention(2, 3, 4))
        words = torch.ones(2, 3).bool()
        left = sides([attention()], [], axes=axes(words, torch.zeros(2, 4).bool()))[0]
        right = sides([attention()], [], axes=axes(words, torch.ones(2, 4).bool()))[0]
        with pytest.raises(errors.ShapeError, match="keys differ in padding"):
            check_first_batch(objective_of(ATTENTION), ["attention_kl/" + NAME], left, right)

    def test_hidden_states(self):
        objective = objective_of({"loss": "mse", "on": "h"})

        def look(shape, *masks):
            signals = sides([torch.randn(shape)], [torch.randn(shape)], name="h", masks=masks)
            return check_first_batch(objective, ["mse/h"], *signals)

        left, right = torch.tensor([[True, False]]), torch.tensor([[False, True]])
        assert look((1, 2, 3), left, left) == {"mse/h"}
        assert look((1, 0, 3), None, None) == set()
        assert look((1, 2, 3), left & right, left & right) == set()
        with pytest.raises(errors.ShapeError, match="no position is real on both sides"):
            look((1, 2, 3), left, right)

    def test_other_numbers_of_examples(self):
        with pytest.raises(errors.ShapeError, match=r"different numbers of examples: student \(2"):
            self.compared(attention(2), attention(3))

    def test_it_looks_without_autocast_as_the_loss_computes(self):
        align = [{"name": "projector", "student_width": 4, "teacher_width": 4}]
        objective = objective_of({"loss": "mse", "on": "h", "align": align})
        signals = sides(torch.randn(2, 4, requires_grad=True), torch.randn(2, 4), name="h")
        expected = objective(*signals).loss
        with torch.autocast("cpu", torch.bfloat16):
            made = objective.compare(*signals, ["mse/h"])
            check_first_batch(objective, ["mse/h"], *signals, made)
            assert objective(*signals, comparisons=made).loss == expected


class TestOncePerStep:
    def test_look_and_loss_share_what_they_compare(self):
        calls = []

        def counting(student, teacher):
            calls.append("align")
            return student, teacher

        dk.register(dk.AlignerSpec("test_counting", factory=lambda: counting))
        term = {**ATTENTION, "align": ["test_counting"], "layers": "all"}
        objective = objective_of(term)
        names = [one.name for one in objective.each()]
        signals = sides([attention(), attention()], [attention(), attention()])
        made = objective.compare(*signals, names)
        check_first_batch(objective, names, *signals, made)
        assert calls == ["align"] * 2
        result = objective(*signals, comparisons=made)
        assert calls == ["align"] * 2
        torch.testing.assert_close(result.loss, objective(*signals).loss)

    def test_lines_for_a_log(self):
        objective = objective_of(
            {**ATTENTION, "per": "row"}, {"loss": "mse", "on": "h"}, {"loss": "mse", "on": "e"}
        )
        rows = torch.tensor([[True, True, False], [True, False, False]])
        hidden, embedding = (
            torch.randn(2, 3, 4, requires_grad=True),
            torch.randn(2, 4).requires_grad_(),
        )
        known = dk.Signals({NAME: [attention(rows=rows)], "h": hidden, "e": embedding}, {"h": rows})
        made = objective.compare(known, known, [term.name for term in objective.each()])
        assert counted_lines(made) == []
        objective(known, known, comparisons=made)
        assert counted_lines(made) == [
            f"attention_kl/{NAME}: 3 of 6 rows", "mse/h: 3 of 6 positions", "mse/e: 2 of 2 examples",
        ]  # fmt: skip


class TestCheck:
    def test_it_says_how_much_counts_after_mask_and_where(self):
        logits = torch.randn(2, 3, 5, requires_grad=True)
        padding = torch.tensor([[True, True, True], [True, True, False]])
        signals = sides(logits, logits.detach() + 1, name="logits", masks=(padding, None))
        term = dk.Term("kl_divergence", on="logits", mask="labels", inputs={"where": "w"})
        batch = {
            "labels": torch.tensor([[-100, 4, 4], [4, 4, 4]]),
            "w": torch.tensor([[[True], [True], [False]], [[True], [True], [True]]]),
        }
        seen = check_term(term, *signals, batch)
        assert (seen.student, seen.counts) == ("(2, 3, 5)", "3 of 6 positions")

    def test_one_class(self):
        signals = sides(torch.randn(3, 1, requires_grad=True), torch.randn(3, 1), name="logits")
        seen = check_term(dk.Term("kl_divergence", on="logits"), *signals, None)
        assert seen.value is None
        assert "one class has no distribution" in seen.problems[0]

    def test_a_batch_without_pairs_is_no_problem(self):
        signals = sides([attention(2, 3, 0)], [attention(2, 3, 0)])
        seen = check_term(dk.Term(**ATTENTION), *signals, None)
        assert (seen.problems, seen.value, seen.counts) == ((), 0, "0 of 6 rows")
