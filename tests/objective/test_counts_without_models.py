"""What counts is the same whether models were run to count it or not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import distillkit as dk
from tests.support import tiny

ATTENTION = {"loss": "attention_kl", "on": "attention.text_to_image"}
FREE = {
    "logits": {"loss": "kl_divergence", "on": "logits"},
    "attention": ATTENTION,
    "layers": {**ATTENTION, "layers": "all"},
    "batch": {"loss": "similarity_preserving", "on": "logits"},
    "off": {"loss": "mse", "on": "logits", "per": "row", "weight": 0.0},
    "task": {"loss": "task"},
}
"""Terms that the batch alone can be counted for."""
COSTLY = {
    "rows": {**ATTENTION, "per": "row"},
    "masked": {**ATTENTION, "mask": "chosen"},
    "masked rows": {**ATTENTION, "mask": "chosen", "per": "row"},
    "one value": {"loss": "cka_distance", "on": "logits"},
    "classes": {"loss": "intra_class_pearson_distance", "on": "logits"},
}
"""Terms for which the models run: of the last two, a batch has one value, and one for each class."""


def task_loss(output, batch):
    labels = batch["labels"]
    return (
        F.cross_entropy(output.logits, labels) if (labels >= 0).any() else output.logits.sum() * 0
    )


def distiller_of(names):
    terms = [{**({**FREE, **COSTLY}[name]), "name": name} for name in sorted(names)]
    torch.manual_seed(0)
    return dk.Distiller(
        tiny.Dual(), tiny.Fusion(), dk.Recipe(name="test", terms=terms),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        task_loss=task_loss, ignore=["labels", "chosen", "table"],
    )  # fmt: skip


@st.composite
def steps(draw):
    """Micro-batches of one step; in some, entries have unequal first axes, or no label counts."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        part = tiny.batch(draw(st.integers(2, 5)), seed=draw(st.integers(0, 99)))
        part["chosen"] = part["ids"] % 2 == 0
        ignored = torch.rand(len(part["labels"])) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        part["labels"] = part["labels"].masked_fill(ignored, -100)
        if draw(st.booleans()):
            part["table"] = torch.zeros(7)
        parts.append(part)
    return parts


@given(
    free=st.sets(st.sampled_from(sorted(FREE)), min_size=1).filter(lambda names: names != {"off"}),
    costly=st.sets(st.sampled_from(sorted(COSTLY)), max_size=2),
    parts=steps(),
)
def test_the_counts_are_those_of_the_calls(free, costly, parts):
    distiller = distiller_of(free | costly)
    runs = []
    distiller.student.register_forward_pre_hook(lambda *_: runs.append(1))
    normalizer = distiller.normalizer(parts)
    on = (free | costly) - {"off"}
    costs = bool(costly) or any("table" in part for part in parts)
    assert len(runs) == (len(parts) if costs else 0)
    assert normalizer.keys() == on
    results = [distiller(part) for part in parts]
    for name in on - {"task"}:
        expected = sum(result.counts[name].double() for result in results)
        assert (normalizer[name] == expected).all(), name
    if "task" in on:
        assert normalizer["task"] == sum((part["labels"] != -100).sum() for part in parts)
    if all((part["labels"] != -100).any() for part in parts):
        whole = [distiller(part, normalizer=normalizer).loss for part in parts]
        assert torch.isfinite(sum(whole))


@pytest.mark.parametrize("name", sorted(COSTLY))
def test_a_step_of_one_batch_is_that_batch(name):
    distiller, batch = distiller_of([name]), tiny.batch(4)
    batch["chosen"] = batch["ids"] % 2 == 0
    loss = distiller(batch, normalizer=distiller.normalizer([batch])).loss
    torch.testing.assert_close(loss, distiller(batch).loss)


def test_a_function_of_ones_own_is_run_to_be_counted():
    def one_value(student, teacher):
        return (student - teacher).square().mean()

    torch.manual_seed(0)
    distiller = dk.Distiller(
        tiny.Dual(), tiny.Fusion(), dk.Objective([dk.Term(one_value, on="logits")]),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES), ignore=["labels"],
    )  # fmt: skip
    parts = [tiny.batch(2), tiny.batch(3)]
    normalizer = distiller.normalizer(parts)
    assert normalizer == {"one_value/logits": 2.0}
    losses = [distiller(part).loss for part in parts]
    added = sum(distiller(part, normalizer=normalizer).loss for part in parts)
    torch.testing.assert_close(added, sum(losses) / 2)
