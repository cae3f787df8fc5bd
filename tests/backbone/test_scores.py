"""Scores of the candidates of each example, of cross-encoders and of two towers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillkit as dk
from distillkit import errors
from distillkit._backbone.scores import examples_with_scores, grouped, pair_scores
from distillkit._objective.items import TaskItems, counts_without_models


class Scorer(nn.Module):
    """Logits of pairs, of any shape."""

    def __init__(self, width=4, classes=1):
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return {"logits": self.head(x)}


class Towers(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.text, self.image = nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, x, y):
        return {"text_embeds": self.text(x), "image_embeds": self.image(y)}


TOWERS = dk.DeclarativeAdapter(
    streams={}, embedding={"text": "text_embeds", "image": "image_embeds"}
)
CROSS = dk.DeclarativeAdapter(streams={}, logits="logits")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 4), st.randoms())
def test_the_candidates_that_there_are_come_in_order(counts, longest, random):
    counts = [min(n, longest) for n in counts]
    there = torch.zeros(len(counts), longest, dtype=torch.bool)
    for row, count in zip(there, counts, strict=True):
        row[random.sample(range(longest), count)] = True
    scores = torch.arange(sum(counts), dtype=torch.float32)
    found = grouped(scores, there)
    assert found[there].tolist() == scores.tolist()
    assert (found[~there] == -torch.inf).all()
    assert examples_with_scores(there, sum(counts)) == len(counts)


def test_equal_numbers_of_candidates_are_a_reshape():
    assert grouped(torch.arange(6.0), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert grouped(torch.arange(6.0), torch.tensor(2)).shape == (3, 2)
    assert examples_with_scores(3, 6) == 2
    assert examples_with_scores(None, 6) is None


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        (None, errors.SignalError, "the batch needs an entry 'candidates'"),
        (4, errors.ShapeError, "6 pairs do not make examples of candidates = 4"),
        (1, errors.ShapeError, "at least 2"),
        (torch.ones(2, 2, dtype=torch.bool), errors.ShapeError, "marks 4 candidates.*scored 6"),
    ],
)
def test_what_groups_nothing(candidates, error, message):
    with pytest.raises(error, match=message):
        grouped(torch.arange(6.0), candidates)


@pytest.mark.parametrize(
    ("candidates", "given"),
    [
        (2.5, "2.5"),
        (True, "True"),
        ("three", "'three'"),
        ([[True, True, True]] * 2, r"\[\[True"),
        (torch.tensor(2.5), "2.5"),
        (torch.ones(2, 3, dtype=torch.long), r"a tensor \(2, 3\) of torch.int64"),
        (torch.ones(6, dtype=torch.bool), r"a tensor \(6,\) of torch.bool"),
    ],
)
def test_candidates_are_a_whole_number_or_a_mask(candidates, given):
    for read in (
        lambda: grouped(torch.arange(6.0), candidates),
        lambda: examples_with_scores(candidates, 6),
    ):
        with pytest.raises(
            errors.SignalError, match=f"'candidates' is a whole number.*got {given}"
        ):
            read()


def test_no_pairs_are_no_examples():
    assert grouped(torch.zeros(0), 4).shape == (0, 4)
    assert examples_with_scores(4, 0) == 0


def test_a_model_that_scores_all_candidates_of_an_example_is_compared_by_its_logits():
    torch.manual_seed(0)
    on = {"student": "logits", "teacher": "scores"}
    recipe = dk.Recipe(name="rank", terms=[{"loss": "kl_divergence", "on": on}])
    student, teacher = Scorer(classes=3), Scorer()
    distiller = dk.Distiller(student, teacher, recipe, student_adapter=CROSS, teacher_adapter=CROSS)
    x = torch.randn(6, 4)
    batch = {"student_x": x[::3], "teacher_x": x, "candidates": 3}
    expected = torch.nn.functional.kl_div(
        student(x[::3])["logits"].log_softmax(-1),
        teacher(x)["logits"].view(2, 3).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(distiller(batch).loss, expected)


def test_two_classes_are_the_match_less_the_other():
    logits = torch.tensor([[1.0, 4.0], [2.0, 0.0]])
    assert pair_scores(logits, 1).tolist() == [3, -2]
    assert pair_scores(logits, 0).tolist() == [-3, 2]
    assert pair_scores(logits[:, :1], None).tolist() == [1, 2]
    with pytest.raises(errors.SignalError, match="which of both classes is the match is not known"):
        pair_scores(logits, None)
    with pytest.raises(errors.SignalError, match=r"\(p, 2\) of a match; got \(2, 3\)"):
        pair_scores(torch.zeros(2, 3), None)


def test_an_adapter_says_which_class_is_the_match():
    torch.manual_seed(0)
    adapter = dk.DeclarativeAdapter(streams={}, logits="logits", match=1)
    backbone = dk.Backbone(Scorer(classes=2), adapter)
    signals = backbone.signals({"x": torch.randn(4, 4), "candidates": 2})
    logits = signals["logits"]
    torch.testing.assert_close(signals["scores"], (logits[:, 1] - logits[:, 0]).view(2, 2))


def test_two_towers_score_pairs_or_all_with_all():
    torch.manual_seed(0)
    batch = {"x": torch.randn(4, 4), "y": torch.randn(4, 4), "candidates": 2}
    signals = dk.Backbone(Towers(), TOWERS).signals(batch)
    whole = signals["scores.text_to_image"]
    torch.testing.assert_close(signals["scores"].flatten(), whole.diagonal())
    assert torch.equal(signals["scores.image_to_text"], whole.mT)
    unequal = {**batch, "y": torch.randn(2, 4)}
    with pytest.raises(errors.SignalError, match="4 texts and 2 images"):
        dk.Backbone(Towers(), TOWERS).signals(unequal)["scores"]


def test_a_dual_encoder_ranks_as_a_cross_encoder_and_unequal_parts_add_up():
    torch.manual_seed(0)
    recipe = dk.Recipe(name="rank", terms=[{"loss": "partial_ranking", "on": "scores"}])
    distiller = dk.Distiller(
        Towers(), Scorer(), recipe, student_adapter=TOWERS, teacher_adapter=CROSS
    )
    batch = {"x": torch.randn(9, 4), "y": torch.randn(9, 4), "candidates": 3}
    parts = [
        {"x": batch["x"][part], "y": batch["y"][part], "candidates": 3}
        for part in (slice(0, 6), slice(6, 9))
    ]
    whole = distiller(batch)
    assert whole.counts == {"partial_ranking/scores": torch.tensor(3)}
    normalizer = distiller.normalizer(parts)
    assert normalizer == {"partial_ranking/scores": torch.tensor(3.0, dtype=torch.float64)}
    total = sum(distiller(part, normalizer=normalizer).loss for part in parts)
    torch.testing.assert_close(total, whole.loss)
    terms, items = distiller.objective.each(), TaskItems()
    assert counts_without_models(terms, batch, items) == {
        "partial_ranking/scores": torch.tensor(3.0)
    }


def test_scores_come_from_a_cache_too(tmp_path):
    torch.manual_seed(0)
    recipe = dk.Recipe(name="rank", terms=[{"loss": "kl_divergence", "on": "scores"}])
    batch = {"x": torch.randn(4, 4), "candidates": 2, "id": [0, 1]}
    cache = dk.SignalCache(tmp_path, recipe, inputs=())
    teacher = dk.Backbone(Scorer().eval(), CROSS)
    cache.fill(teacher, [batch], progress=False)
    expected = teacher.signals(batch)["scores"]
    torch.testing.assert_close(cache.signals(batch)["scores"], expected)
