"""Signals that are made of others: of any adapter, lazily, with what is known of their tokens."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillkit as dk
from distillkit import errors
from tests.support import tiny

TABLES = {**tiny.FUSION_TABLES, "hidden": {"joint": "encoder.blocks.*"}}
NAMES = [
    "hidden.joint.image", "hidden.joint.text", "attention.all_to_image", "attention.text_to_text",
    "attention.image_to_image", "attention_mass.text_to_image", "attention_mass.all_to_text",
]  # fmt: skip


def backbone(**changes):
    torch.manual_seed(0)
    return dk.Backbone(tiny.Fusion().eval(), dk.DeclarativeAdapter(**TABLES, **changes))


def test_they_are_there_by_name_and_not_in_the_list():
    signals = backbone().signals(tiny.batch())
    assert set(NAMES) <= signals.derived
    assert not signals.derived & set(signals)
    assert all(name in signals for name in NAMES)
    check = backbone().check(tiny.batch())
    assert "made of these: attention.all_to_image" in str(check)


def test_hidden_states_of_a_modality_keep_mask_and_axis():
    done = backbone().trace(tiny.batch())
    tokens = done.layout["joint"]
    for modality in ("text", "image"):
        place, name = tokens[modality].positions, f"hidden.joint.{modality}"
        for one, whole in zip(done.signals[name], done.signals["hidden.joint"], strict=True):
            assert torch.equal(one, whole[:, place])
        assert torch.equal(done.signals.mask(name), tokens.valid[:, place])
        assert done.signals.axes(name)[0].modality == modality


@given(seed=st.integers(0, 1000), examples=st.integers(1, 4))
def test_shares_weigh_the_blocks_into_the_whole_map(seed, examples):
    done = backbone().trace(tiny.batch(examples, seed=seed))
    whole = done.signals["attention.joint"][-1].probabilities()
    tokens = done.layout["joint"]
    total = 0
    for key in ("text", "image"):
        keys = tokens[key].positions
        for query, rows in (("text", tokens["text"].positions), ("all", slice(None))):
            mass = done.signals[f"attention_mass.{query}_to_{key}"][-1]
            block = done.signals[f"attention.{query}_to_{key}"][-1].probabilities()
            assert mass.shape == (examples, whole[:, 0, rows].shape[1], whole.shape[1])
            torch.testing.assert_close(block * mass.mT[..., None], whole[:, :, rows, keys])
        total = total + mass
    torch.testing.assert_close(total, whole.sum(-1).mT)  # 0 where a row does not count


def test_the_share_has_a_gradient():
    made = backbone()
    share = made.signals(tiny.batch())["attention_mass.text_to_image"][-1]
    share.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in made.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_only_the_wanted_layer_is_recorded(name):
    _, signals = backbone().run(tiny.batch(), wanted={name: frozenset({-1})})
    assert name in set(signals)  # wanted, so that it is listed and lives as the others do
    assert signals[name][-1] is not None
    with pytest.raises(errors.CaptureError, match="was not (kept|recorded)"):
        signals[name][0]


def test_what_is_wanted_is_copied_pickled_rebuilt_and_moved():
    _, signals = backbone().run(tiny.batch(), wanted=dict.fromkeys(NAMES, frozenset({-1})))
    rebuilt = type(signals)({name: signals[name] for name in signals})
    others = [
        pickle.loads(pickle.dumps(signals)), copy.deepcopy(signals), rebuilt,
        signals.detach(), signals.to(torch.float64).to(torch.float32), signals.take(slice(None)),
        dk.Signals.concatenate([signals]),
    ]  # fmt: skip
    for other in others:
        for name in NAMES:
            one, two = signals[name][-1], other[name][-1]
            if name.startswith("attention."):
                one, two = one.probabilities(), two.probabilities()
            torch.testing.assert_close(one, two)
            first, second = signals.mask(name), other.mask(name)
            assert (first is None) == (second is None)
            assert first is None or torch.equal(first, second)


def test_what_is_not_listed_follows_a_move_and_not_a_pickle():
    signals = backbone().signals(tiny.batch())
    assert signals.to(torch.float64)["hidden.joint.image"][-1].dtype == torch.float64
    assert signals.take(slice(0, 1))["hidden.joint.image"][-1].shape[0] == 1
    kept = pickle.loads(pickle.dumps(signals))
    with pytest.raises(errors.UnknownNameError, match="no signal is called 'hidden.joint.image'"):
        kept["hidden.joint.image"]


def test_a_modality_that_is_not_there_is_named():
    signals = backbone().signals(tiny.batch())
    with pytest.raises(errors.UnknownNameError, match="did you mean 'hidden.joint.image'"):
        signals["hidden.joint.imge"]
    with pytest.raises(errors.SignalError, match=r"term 'mse/x.y'.*'x\.y'"):
        dk.Term("mse", on="x.y")(signals, signals)


def test_what_an_adapter_offers_or_rules_out_itself_stays():
    absent = {"attention_mass.text_to_image": "not this one", "attention.text_to_text": "nor this"}
    signals = backbone(absent=absent).signals(tiny.batch())
    with pytest.raises(errors.SignalError, match="not this one"):
        signals["attention_mass.text_to_image"]
    assert "attention_mass.text_to_text" not in signals


# --------------------------------------------------------------------------------------- logits


class Decoder(nn.Module):
    """A joint stream with logits at every position, image first."""

    def __init__(self):
        super().__init__()
        self.inner = tiny.Fusion()
        self.head = nn.Linear(tiny.WIDTH, 10)

    def forward(self, input_ids, mask, pixels):
        x = torch.cat([self.inner.patches(pixels), self.inner.words(input_ids[:, 4:])], 1)
        seen = torch.cat([mask.new_ones(pixels.shape[:2]), mask], 1)
        return tiny.Output(self.head(self.inner.encoder(x, seen)))


DECODER = {
    "streams": {"joint": "inner.encoder.blocks.*"},
    "logits": "logits",
    "tokens": {
        "joint": [
            {"modality": "image", "grid": [2, 2]},
            {"modality": "text", "length": 5, "mask": "mask"},
        ]
    },
}


def decoder(**changes):
    torch.manual_seed(0)
    return dk.Backbone(Decoder().eval(), dk.DeclarativeAdapter(**DECODER, **changes))


def questions(*, response=(2, 3)):
    """Four patches, five words of which the last few are the response; the second is padded."""
    inner = tiny.batch(2, seed=3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 4] = False
    ids = torch.randint(1, 10, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    for i, count in enumerate(response):
        labels[i, 9 - count :] = ids[i, 9 - count :]
    labels[1, 8] = -100
    return {"input_ids": ids, "mask": mask, "pixels": inner["pixels"], "labels": labels}


def test_labels_that_repeat_the_input_are_predicted_one_position_before():
    batch = questions()
    signals = decoder().signals(batch)
    logits = signals["logits"]
    response = signals["logits.response"]
    assert response.shape == (2, 2, 10)
    assert torch.equal(signals.mask("logits.response"), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(response[0], logits[0, 6:8])
    torch.testing.assert_close(response[1], logits[1, 5:7])


def test_every_real_position_is_of_one_part():
    batch = questions(response=(2, 5))
    signals = decoder().signals(batch)
    counts = {
        part: signals.mask(f"logits.{part}").sum(1).tolist()
        for part in ("response", "prompt", "image")
    }
    # the fourth patch of the second example predicts the first word of its response
    assert counts == {"response": [2, 4], "prompt": [3, 1], "image": [4, 3]}
    assert signals["logits.image"].shape == (2, 4, 10)
    assert not signals["logits.image"][1, 3].any()  # packed, and filled with 0


@pytest.mark.parametrize("kind", ["masked", "shifted"])
def test_labels_that_differ_from_the_input_are_predicted_where_they_stand(kind):
    batch = questions()
    if kind == "masked":
        batch["labels"] = torch.where(batch["labels"] != -100, 10 - batch["labels"] + 10, -100)
    else:
        batch["labels"] = torch.cat([batch["labels"][:, 1:], torch.full((2, 1), -100)], 1)
        batch["input_ids"][:, :-1] += batch["input_ids"][:, :-1] == batch["labels"][:, :-1]
    signals = decoder().signals(batch)
    asked = batch["labels"] != -100
    expected = [signals["logits"][i][asked[i]] for i in range(2)]
    for i, rows in enumerate(expected):
        torch.testing.assert_close(signals["logits.response"][i, : len(rows)], rows)


def test_labels_that_repeat_the_input_in_part_are_an_error_unless_the_adapter_says():
    batch = questions(response=(4, 4))
    batch["labels"][0, 8] = (batch["labels"][0, 8] + 1) % 10
    with pytest.raises(errors.SignalError, match=r"6 of 7 labels repeat.*predicts = \"next\""):
        decoder().signals(batch)["logits.response"]
    said = decoder(predicts="next").signals(batch)
    torch.testing.assert_close(said["logits.response"][0], said["logits"][0, 4:8])
    with pytest.raises(errors.SignalError, match="predicts"):
        decoder(predicts="nxt")


def test_a_batch_without_labelled_tokens_does_not_decide_for_the_next():
    made = decoder()
    empty = questions()
    empty["labels"] = torch.full_like(empty["labels"], -100)
    assert made.signals(empty)["logits.response"].shape == (2, 0, 10)
    assert made.signals(questions())["logits.response"].shape == (2, 2, 10)


def test_what_is_missing_is_said():
    batch = questions()
    without = {k: v for k, v in batch.items() if k != "labels"}
    with pytest.raises(errors.SignalError, match=r"logits\.response.*'labels'.*the batch has none"):
        decoder().signals(without)["logits.response"]
    short = {**batch, "labels": batch["labels"][:, 4:]}
    with pytest.raises(errors.ShapeError, match=r"the labels are \(2, 5\).*\(2, 9\) positions"):
        decoder().signals(short)["logits.response"]
    answers = dk.Backbone(tiny.Fusion(), dk.DeclarativeAdapter(**TABLES)).signals(tiny.batch())
    with pytest.raises(errors.SignalError, match="of one answer are `logits`"):
        answers["logits.response"]


RECIPE = dk.Recipe(
    name="parts",
    terms=[
        {"loss": "kl_divergence", "on": "logits.response", "per": "row"},
        {"loss": "attention_kl", "on": "attention.all_to_image"},
    ],
)


class Watched(Decoder):
    def forward(self, input_ids, mask, pixels, labels=None):
        assert labels is None, "a teacher never sees labels"
        return super().forward(input_ids, mask, pixels)


def test_the_teacher_is_told_apart_by_the_labels_that_it_never_sees():
    torch.manual_seed(0)
    student, teacher = Decoder(), Watched()
    adapter = dk.DeclarativeAdapter(**DECODER)
    distiller = dk.Distiller(
        student, teacher, RECIPE, student_adapter=adapter, teacher_adapter=adapter
    )
    batch = questions()
    result = distiller(batch)
    ours, theirs = (side["logits"] for side in (result.student, result.teacher))
    rows = [(0, 6), (0, 7), (1, 5), (1, 6)]
    log_q, log_p = (torch.stack([x[i, t] for i, t in rows]).log_softmax(-1) for x in (ours, theirs))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    torch.testing.assert_close(result.parts["kl_divergence/logits.response"], expected.detach())
    assert result.counts["kl_divergence/logits.response"].item() == 4
    result.loss.backward()
    assert student.head.weight.grad.any()


def test_from_a_cache_the_loss_is_the_same(tmp_path):
    torch.manual_seed(0)
    student, teacher = Decoder().eval(), Decoder().eval()
    adapter = dk.DeclarativeAdapter(**DECODER)
    batch = {**questions(), "id": [0, 1]}
    cache = dk.SignalCache(tmp_path / "cache", RECIPE)
    cache.fill(dk.Backbone(teacher, adapter), [batch], progress=False)
    live = dk.Distiller(
        student, teacher, RECIPE, student_adapter=adapter, teacher_adapter=adapter, ignore=["id"]
    )
    cached = dk.Distiller(student, cache, RECIPE, student_adapter=adapter)
    torch.testing.assert_close(cached(batch).loss, live(batch).loss, rtol=1e-5, atol=1e-6)
