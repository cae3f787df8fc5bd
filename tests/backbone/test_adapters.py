"""Adapters from data: layouts, pairs, directions, and what a file gets wrong."""

from __future__ import annotations

import pytest
import torch

import distillkit as dk
from distillkit import errors
from tests.support import tiny


def layout_of(tables, batch):
    return dk.DeclarativeAdapter(**tables).layout(batch, None)


def build_signals(model, tables, batch):
    adapter = dk.adapter_for(model, dk.DeclarativeAdapter(**tables))
    patterns = [pattern.partition("#")[0] for pattern in adapter.streams.values()]
    with dk.capture(model, *patterns, outputs=adapter.outputs) as record:
        output = model(**adapter.inputs(batch))
        return adapter.signals(record, output, adapter.layout(batch, record)), record


class TestLayout:
    def test_runs_lie_one_after_another(self):
        batch = tiny.batch(3)
        joint = layout_of(tiny.FUSION_TABLES, batch)["joint"]
        assert joint["text"].positions == slice(0, 5)
        assert joint["image"].positions == slice(5, 9)
        assert (joint["text"].special, joint["image"].grid) == ((0,), (2, 2))
        assert torch.equal(joint.valid, torch.cat([batch["mask"], torch.ones(3, 4).bool()], 1))

    def test_special_tokens_stand_beside_the_grid(self):
        run = {"modality": "image", "grid": [2, 3], "special": [0]}
        image = layout_of({"streams": {}, "tokens": {"image": [run]}}, {})["image"]
        assert image["image"].positions == slice(0, 7)
        assert image.valid is None

    def test_tokens_marked_by_a_value_differ_between_examples(self):
        ids = torch.tensor([[1, 9, 9, 2], [9, 3, 9, 0]])
        tables = {
            "streams": {"joint": "**"},
            "tokens": {"joint": [
                {"modality": "image", "where": "ids", "equals": 9},
                {"modality": "text", "length": "ids", "mask": "mask"},
            ]},
        }  # fmt: skip
        joint = layout_of(tables, {"ids": ids, "mask": ids != 0})["joint"]
        assert torch.equal(joint["image"].positions, ids == 9)
        assert torch.equal(joint["text"].positions, ids != 9)
        attention = dk.Attention(torch.randn(2, 1, 4, 2), torch.randn(2, 1, 4, 2))
        from distillkit._backbone.directions import attention_signals

        offered, _ = attention_signals(
            {"joint": [attention]}, layout_of(tables, {"ids": ids, "mask": ids != 0})
        )
        block = offered["attention.text_to_image"]()[-1]
        assert block.shape == (2, 1, 2, 2)
        assert block.valid_rows().tolist() == [[[True, True]], [[True, False]]]

    def test_pairs_index_the_masks_of_a_joint_sequence(self):
        tables = {**tiny.FUSION_TABLES, "pairs": {"text": "question"}}
        batch = {**tiny.batch(3), "question": torch.tensor([2, 2, 0, 1])}
        joint = layout_of(tables, batch)["joint"]
        assert torch.equal(joint.valid[:, :5], batch["mask"][[2, 2, 0, 1]])


class TestDirections:
    def test_pairs_cross_towers_that_ran_different_numbers(self):
        model, batch = tiny.Dual(), tiny.batch(3)
        model.forward = lambda ids, mask, pixels: (
            model.text(model.words(ids), mask), model.image(model.patches(pixels), torch.ones(2, 4).bool())
        )  # fmt: skip
        batch = {
            **batch,
            "pixels": batch["pixels"][:2],
            "t": torch.tensor([0, 2, 1]),
            "i": torch.tensor([1, 0, 1]),
        }
        tables = {**tiny.DUAL_TABLES, "logits": None, "pairs": {"text": "t", "image": "i"}}
        signals, record = build_signals(model, tables, batch)
        cross = signals["attention.image_to_text"][-1]
        image, text = record["image.blocks.1"].query, record["text.blocks.1"].key
        scores = image[batch["i"]] @ text[batch["t"]].mT / 2
        expected = scores.masked_fill(
            ~batch["mask"][batch["t"]][:, None, None], -torch.inf
        ).softmax(-1)
        torch.testing.assert_close(cross.probabilities(), expected)

    def test_a_stream_of_that_name_comes_first(self):
        model, batch = tiny.Fusion(), tiny.batch(2)
        tables = {**tiny.FUSION_TABLES, "streams": {"text_to_image": "encoder.blocks.*"},
                  "tokens": {"text_to_image": tiny.FUSION_TABLES["tokens"]["joint"]}}  # fmt: skip
        signals, record = build_signals(model, tables, batch)
        ours = signals["attention.text_to_image"]
        assert [one.shape for one in ours] == [record[f"encoder.blocks.{i}"].shape for i in (0, 1)]
        assert "attention.image_to_text" not in signals

    def test_towers_of_unequal_depth_pair_from_the_top(self):
        model, batch = tiny.Dual(), tiny.batch(2)
        model.image = tiny.Encoder(depth=3)
        signals, record = build_signals(model, tiny.DUAL_TABLES, batch)
        cross = signals["attention.text_to_image"]
        assert len(cross) == 2
        assert torch.equal(cross[-1].key, record["image.blocks.2"].key)
        assert torch.equal(cross[0].key, record["image.blocks.1"].key)

    def test_nothing_is_computed_before_it_is_asked_for(self):
        signals, _ = build_signals(tiny.Dual(), tiny.DUAL_TABLES, tiny.batch(2))
        layers = signals["attention.text_to_image"]
        assert layers._computed == {}
        assert layers[-1] is layers[1]
        assert list(layers._computed) == [1]


class TestSignals:
    def test_hidden_states_logits_and_embeddings(self):
        model, batch = tiny.Dual(), tiny.batch(3)
        tables = {**tiny.DUAL_TABLES, "logits": "module:head", "hidden": {"text": "text.blocks.*"},
                  "embedding": {"image": "module:image"}}  # fmt: skip
        signals, record = build_signals(model, tables, batch)
        assert torch.equal(signals["logits"], record.output("head"))
        assert [tuple(h.shape) for h in signals["hidden.text"]] == [(3, 5, tiny.WIDTH)] * 2
        assert torch.equal(signals.mask("hidden.text"), batch["mask"])
        assert signals["embedding.image"].shape == (3, 4, tiny.WIDTH)
        taken = signals.take(torch.tensor([2, 0])).detach()
        assert torch.equal(taken["hidden.text"][1], signals["hidden.text"][1][[2, 0]].detach())
        assert torch.equal(taken.mask("hidden.text"), batch["mask"][[2, 0]])
        assert not taken["logits"].requires_grad

    def test_inputs_default_to_what_forward_names(self):
        tables = {k: v for k, v in tiny.DUAL_TABLES.items() if k != "inputs"}
        adapter = dk.adapter_for(tiny.Dual(), dk.DeclarativeAdapter(**tables))
        assert list(adapter.inputs(tiny.batch(1))) == ["ids", "mask", "pixels"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            ({"stream": {}}, "no key of an adapter is called 'stream'; did you mean 'streams'"),
            (
                {"streams": {}, "tokens": {"joint": [{"modality": "text"}]}},
                "the text tokens have no place",
            ),
            (
                {"streams": {}, "tokens": {"joint": [{"modality": "text", "where": "ids"}]}},
                "`where` and `equals` go together",
            ),
            (
                {"streams": {}, "tokens": {"joint": [{"modality": "text", "lenght": "ids"}]}},
                "did you mean 'length'",
            ),
        ],
    )
    def test_files(self, tmp_path, tables, message):
        with pytest.raises(errors.SignalError, match=message):
            dk.DeclarativeAdapter(**tables)

    def test_a_file_names_itself(self, tmp_path):
        path = tmp_path / "model.toml"
        path.write_text("stream = 3", encoding="utf-8")
        with pytest.raises(errors.SignalError, match=r"(?s)model\.toml.*did you mean 'streams'"):
            dk.DeclarativeAdapter.from_toml(path)
        path.write_text("streams = ", encoding="utf-8")
        with pytest.raises(errors.SignalError, match=r"model\.toml"):
            dk.DeclarativeAdapter.from_toml(path)
        with pytest.raises(errors.UnknownNameError, match="no adapter file is called"):
            dk.DeclarativeAdapter.from_toml(tmp_path / "other.toml")

    def test_batches_and_outputs(self):
        batch = tiny.batch(2)
        adapter = dk.DeclarativeAdapter(**tiny.DUAL_TABLES)
        with pytest.raises(
            errors.SignalError, match="the batch has no entry 'pixels'; did you mean 'pixel'"
        ):
            adapter.inputs({"ids": 0, "mask": 0, "pixel": 0})
        with pytest.raises(
            errors.SignalError, match=r"\(Output\) has no field 'logit'; did you mean 'logits'"
        ):
            build_signals(tiny.Dual(), {**tiny.DUAL_TABLES, "logits": "logit"}, batch)

    def test_a_modality_that_the_layout_lacks(self):
        tables = {**tiny.FUSION_TABLES, "tokens": {"joint": [{"modality": "text", "length": 9}]}}
        signals, _ = build_signals(tiny.Fusion(), tables, tiny.batch(2))
        with pytest.raises(errors.SignalError, match="has no 'image' tokens"):
            signals["attention.text_to_image"]

    def test_a_signal_that_is_not_there(self):
        with pytest.raises(
            errors.UnknownNameError, match="no signal is called 'logit'; did you mean 'logits'"
        ):
            dk.Signals({"logits": torch.zeros(1)})["logit"]


PLACED = {
    **tiny.FUSION_TABLES,
    "tokens": {"joint": [
        {**tiny.TEXT, "extents": "places"}, {**tiny.IMAGE, "extents": "boxes"},
    ]},
}  # fmt: skip


class TestAxes:
    """What is known of the tokens travels with the signals."""

    def signals(self, seed=0):
        places = torch.arange(10).view(1, 5, 2).repeat(3, 1, 1)
        boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1]])
        batch = {**tiny.batch(3, seed=seed), "places": places, "boxes": boxes}
        return build_signals(tiny.Fusion(), PLACED, batch)[0], batch

    def test_queries_and_keys_in_their_direction(self):
        signals, batch = self.signals()
        text, image = signals.axes("attention.text_to_image")
        assert (text.modality, image.modality, image.grid) == ("text", "image", (2, 2))
        assert torch.equal(text.valid, batch["mask"])
        assert torch.equal(text.ids, batch["ids"])
        assert text.extents[~batch["mask"]].eq(0).all()  # padding lies nowhere
        assert torch.equal(text.extents[batch["mask"]], batch["places"][batch["mask"]])
        assert image.extents[1, 0].tolist() == [0, 0, 0.25, 0.5]
        assert signals.axes("attention.image_to_text")[0].modality == "image"
        assert signals.axes("logits") == ()

    def test_taken_kept_joined(self):
        signals, _ = self.signals()
        name = "attention.text_to_image"
        index = torch.tensor([2, 0])
        taken = signals.take(index).detach().only(name)
        for before, after in zip(signals.axes(name), taken.axes(name), strict=True):
            assert torch.equal(after.extents, before.extents[index])
            assert torch.equal(after.valid, before.valid[index])
        whole = dk.Signals.concatenate([signals.only(name), taken])
        assert whole.axes(name)[1].extents.shape == (5, 4, 4)
        assert torch.equal(whole.axes(name)[0].ids[3:], signals.axes(name)[0].ids[index])

    def test_one_box_for_all_stays_one(self):
        image = {**tiny.IMAGE, "uncropped": True}
        tables = {**tiny.DUAL_TABLES, "tokens": {"text": [tiny.TEXT], "image": [image]}}
        signals, _ = build_signals(tiny.Dual(), tables, tiny.batch(3))
        name = "attention.text_to_image"
        assert signals.axes(name)[1].extents.shape == (1, 4, 4)
        some = signals.take(torch.tensor([True, False, True]))
        assert some.axes(name)[1].extents.shape == (2, 4, 4)
        joined = dk.Signals.concatenate([signals.only(name)] * 2)
        assert joined.axes(name)[1].extents.shape == (1, 4, 4)

    def test_marked_tokens_are_packed(self):
        ids = torch.tensor([[1, 9, 9, 2], [9, 3, 9, 9]])
        run = {"modality": "text", "length": "ids", "extents": "places"}
        tables = {"streams": {"joint": "**"}, "tokens": {"joint": [
            {"modality": "image", "where": "ids", "equals": 9}, run,
        ]}}  # fmt: skip
        places = torch.arange(8).view(1, 4, 2).repeat(2, 1, 1)
        joint = layout_of(tables, {"ids": ids, "places": places})["joint"]
        assert joint["text"].ids.tolist() == [[1, 2], [3, 0]]
        assert joint["text"].extents.tolist() == [[[0, 1], [6, 7]], [[2, 3], [0, 0]]]

    @pytest.mark.parametrize(
        ("extents", "message"),
        [
            (torch.zeros(3, 5, 3), r"characters from start to stop.*got \(3, 5, 3\)"),
            (torch.zeros(3, 4, 2), "extents are of 4 tokens.*but there are 5 text tokens"),
        ],
    )
    def test_extents_that_fit_nothing(self, extents, message):
        tables = {
            **tiny.FUSION_TABLES,
            "tokens": {"joint": [{**tiny.TEXT, "extents": "places"}, tiny.IMAGE]},
        }
        signals, _ = build_signals(tiny.Fusion(), tables, {**tiny.batch(3), "places": extents})
        with pytest.raises(errors.ShapeError, match=message):
            signals.axes("attention.text_to_image")

    def test_files_that_contradict_themselves(self):
        with pytest.raises(errors.SignalError, match="`uncropped` says that `grid`"):
            dk.DeclarativeAdapter(
                streams={},
                tokens={"image": [{"modality": "image", "length": 4, "uncropped": True}]},
            )

    def test_a_signal_that_a_file_rules_out(self):
        tables = {**tiny.FUSION_TABLES, "absent": {"attention.image_to_text": "it is causal"}}
        signals, _ = build_signals(tiny.Fusion(), tables, tiny.batch(3))
        with pytest.raises(errors.SignalError, match="it is causal"):
            signals["attention.image_to_text"]
        assert "attention.image_to_text" not in signals


def test_an_object_that_lacks_members_is_told_which():
    class Half:
        streams, outputs = {}, ()

        def inputs(self, batch):
            return batch

    with pytest.raises(TypeError, match="Half lacks `returns`, `layout`, `signals`"):
        dk.adapter_for(tiny.Fusion(), Half())
