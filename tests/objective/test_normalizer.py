"""Parts of a batch add up to the whole: accumulated, on several devices, of unequal size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors

ON = {"logits": "kl_divergence", "hidden.text": "mse", "attention.text": "attention_kl"}
Q, K, V, D = 3, 4, 5, 3


@st.composite
def batches(draw):
    """Inputs of a student, what counts of them, and where the batch is cut in two."""
    examples = draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    share = draw(st.sampled_from([0.4, 0.8, 1.1]))
    mask = torch.rand(examples, Q, generator=generator) < share
    cut = draw(st.integers(1, examples - 1))
    if draw(st.booleans()):
        mask[:cut] = False  # in a part nothing counts
    inputs = torch.randn(2, 2, examples, Q, D, generator=generator, dtype=torch.float64)
    return inputs, mask, [slice(0, cut), slice(cut, examples)]


class Student:
    """One weight that every signal depends on."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(D, D, generator=generator, dtype=torch.float64).requires_grad_()
        self.to_classes = torch.randn(D, V, generator=generator, dtype=torch.float64)

    def signals(self, inputs, mask):
        layers = [x @ self.weight for x in inputs]
        keys = inputs[0].mean(1, keepdim=True) + torch.arange(K)[:, None]
        attention = [dk.Attention(x[:, None], keys[:, None], rows=mask) for x in layers]
        values = {
            "logits": layers[-1] @ self.to_classes,
            "hidden.text": layers,
            "attention.text": attention,
        }
        return dk.Signals(values, {"logits": mask, "hidden.text": mask})


TEACHER = Student()
TEACHER.weight = TEACHER.weight.detach().flip(0)


def result_of(objective, student, inputs, mask, part=slice(None), **given):
    sides = (
        student.signals(inputs[0][:, part], mask[part]),
        TEACHER.signals(inputs[1][:, part], mask[part]),
    )
    return objective(*sides, **given)


def gradient(loss, student):
    (found,) = torch.autograd.grad(loss, student.weight)
    return found


@pytest.mark.parametrize("per", ["row", "example"])
@pytest.mark.parametrize("layers", ["last", "all", [[0, 1]]])
@given(drawn=batches())
def test_two_parts_of_unequal_size_are_the_batch(per, layers, drawn):
    inputs, mask, parts = drawn
    student = Student()
    objective = dk.Objective(
        [
            dk.Term(
                loss, on=on, per=per, weight=i + 1.0, layers="last" if on == "logits" else layers
            )
            for i, (on, loss) in enumerate(ON.items())
        ]
    )
    whole = result_of(objective, student, inputs, mask)
    normalizer = {
        name: sum(result_of(objective, student, inputs, mask, part).counts[name] for part in parts)
        for name in whole.counts
    }
    for name, count in normalizer.items():
        assert torch.equal(count, whole.counts[name]), name
    found = [
        result_of(objective, student, inputs, mask, part, normalizer=normalizer) for part in parts
    ]
    for name, value in whole.parts.items():
        added = sum(one.parts[name] for one in found)
        torch.testing.assert_close(added, value, rtol=1e-6, atol=1e-8)
    loss = sum(one.loss for one in found)
    torch.testing.assert_close(loss, whole.loss, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        gradient(loss, student), gradient(whole.loss, student), rtol=1e-6, atol=1e-8
    )


def sides(examples=2, layers=None):
    torch.manual_seed(0)
    student, teacher = (torch.randn(examples, Q, V) for _ in "st")
    mask = torch.tensor([[True, True, False], [True, False, False]])[:examples]
    made = []
    for x in (student.requires_grad_(), teacher):
        value = x if layers is None else [x * (i + 1) for i in range(layers)]
        made.append(dk.Signals({"x": value}, {"x": mask}))
    return made


class TestCounts:
    def test_by_hand(self):
        objective = dk.Objective(
            [
                dk.Term("mse", on="x", per="row", name="rows"),
                dk.Term("mse", on="x", name="examples"),
                dk.Term("mse", on="x", per="row", rows="all", name="all"),
                dk.Term("mse", on="x", weight=0.0, name="off"),
            ]
        )
        counts = objective(*sides()).counts
        assert counts == {"rows": 3, "examples": 2, "all": 6}
        assert all(not count.requires_grad and count.shape == () for count in counts.values())

    def test_one_for_each_of_several_pairs_of_layers(self):
        objective = dk.Objective([dk.Term("mse", on="x", per="row", layers="all")])
        assert objective(*sides(layers=3)).counts["mse/x"].tolist() == [3, 3, 3]

    def test_heads_are_values(self):
        scores = torch.zeros(2, 4, Q, K, requires_grad=True)
        made = [dk.Attention.from_scores(scores, rows=torch.ones(2, Q).bool()) for _ in "st"]
        signals = [dk.Signals({"a": one}) for one in made]
        objective = dk.Objective([dk.Term("attention_kl", on="a", per="row")])
        assert objective(*signals).counts["attention_kl/a"] == 2 * 4 * Q

    def test_the_task_has_what_it_was_told(self):
        objective = dk.Objective([dk.Term("task")])
        task = torch.ones((), requires_grad=True)
        assert objective(*sides(), task=task).counts == {}
        assert objective(*sides(), task=task, task_items=7).counts == {"task": 7}


class TestNormalizer:
    def test_one_number_for_every_term_but_the_task(self):
        objective = dk.Objective(
            [dk.Term("mse", on="x", per="row"), dk.Term("mse", on="x", name="e"), dk.Term("task")]
        )
        task = torch.tensor(3.0, requires_grad=True)
        plain = objective(*sides(), task=task)
        found = objective(*sides(), task=task, normalizer=12, task_items=2)
        torch.testing.assert_close(found.parts["mse/x"], plain.parts["mse/x"] * 3 / 12)
        torch.testing.assert_close(found.parts["e"], plain.parts["e"] * 2 / 12)
        assert found.parts["task"] == 3

    def test_the_tasks_share_needs_both_numbers(self):
        objective = dk.Objective([dk.Term("task", name="labels"), dk.Term("mse", on="x")])
        task = torch.tensor(3.0, requires_grad=True)

        def value(normalizer, items):
            given = {"normalizer": normalizer, "task_items": items}
            return objective(*sides(), task=task, **given).parts["labels"].item()

        both = {"labels": torch.tensor(8.0), "mse/x": 2}
        assert value(both, 2) == 0.75
        assert value(both, torch.tensor(4)) == 1.5
        assert value(both, None) == 3
        assert value({"mse/x": 2}, 2) == 3
        assert value(None, 2) == 3

    def test_a_mean_over_nothing_has_no_share(self):
        objective = dk.Objective([dk.Term("task")])
        task = torch.tensor(math.nan, requires_grad=True)
        result = objective(*sides(), task=task, normalizer={"task": 5}, task_items=0)
        result.loss.backward()
        assert result.loss == 0
        assert task.grad is None

    def test_several_layers_take_one_number_or_one_each(self):
        term = dk.Term("mse", on="x", per="row", layers="all")
        plain = [
            dk.Term("mse", on="x", per="row", layers=[[i, i]])(*sides(layers=2)) for i in (0, 1)
        ]
        one = term(*sides(layers=2), normalizer=6)
        torch.testing.assert_close(one, (plain[0] + plain[1]) / 2 * 3 / 6)
        each = term(*sides(layers=2), normalizer=torch.tensor([6.0, 12.0]))
        torch.testing.assert_close(each, (plain[0] * 3 / 6 + plain[1] * 3 / 12) / 2)
        with pytest.raises(errors.OptionError, match=r"each of 2 pairs of layers.*shape \(3,\)"):
            term(*sides(layers=2), normalizer=torch.ones(3))

    def test_a_count_in_float64_leaves_the_loss_in_float32(self):
        term = dk.Term("mse", on="x")
        assert term(*sides(), normalizer=torch.tensor(4.0).double()).dtype == torch.float32
        assert term(*sides(), normalizer=torch.tensor(4)).dtype == torch.float32

    @pytest.mark.parametrize("per", ["row", "example"])
    def test_a_batch_in_which_nothing_counts(self, per):
        """Its count is 0, and so are its sum and its gradient."""
        student, teacher = sides()
        nothing = torch.zeros(2, Q, dtype=torch.bool)
        term = dk.Term("mse", on="x", per=per, mask="m")
        objective = dk.Objective([term])
        counts = objective(student, teacher, batch={"m": nothing}).counts
        result = objective(student, teacher, batch={"m": nothing}, normalizer=counts)
        result.loss.backward()
        assert result.loss == 0
        assert not student["x"].grad.any()

    @pytest.mark.parametrize("number", [0, -1.0, math.nan, math.inf, "3"])
    def test_numbers_that_nobody_counted(self, number):
        objective = dk.Objective([dk.Term("mse", on="x")])
        given = [{"mse/x": number}]
        if isinstance(number, (int, float)):
            given += [number, {"mse/x": torch.tensor(float(number))}]
        for normalizer in given:
            with pytest.raises(errors.OptionError, match="'mse/x' is a finite number above 0"):
                objective(*sides(), normalizer=normalizer)

    @pytest.mark.parametrize("items", [-1, math.nan, torch.tensor(-1.0)])
    def test_items_that_nobody_counted(self, items):
        objective = dk.Objective([dk.Term("task")])
        task = torch.ones((), requires_grad=True)
        with pytest.raises(errors.OptionError, match="task_items is a finite number"):
            objective(*sides(), task=task, normalizer={"task": 2}, task_items=items)

    def test_names(self):
        objective = dk.Objective(
            [dk.Term("mse", on="x"), dk.Term("mse", on="x", name="off", weight=0.0)]
        )
        with pytest.raises(
            errors.RecipeError, match="no term is called 'mse/y'; did you mean 'mse/x'"
        ):
            objective(*sides(), normalizer={"mse/y": 2, "mse/x": 3})
        with pytest.raises(errors.RecipeError, match="none for the term 'mse/x'"):
            objective(*sides(), normalizer={"off": 2})
        with pytest.raises(errors.RecipeError, match="none for the term 'mse/x'"):
            objective(*sides(), normalizer={"mse/x": None})
        assert objective(*sides(), normalizer={"mse/x": 2, "off": 3}).loss > 0
