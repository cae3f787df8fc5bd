"""DiDE's student: where its weights come from, what it reads, and what it shares with a teacher."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as hf
from distillkit_transformers import ViltDualEncoder, ViltDualEncoderConfig
from distillkit_transformers.vilt_patches import choose_patches
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillkit as dk
from distillkit import errors

from . import families

DIRECTIONS = ("attention.text_to_image", "attention.image_to_text")
FIRST_LAYER = [
    {"loss": "attention_kl", "on": name, "layers": [(0, 0)], "rows": rows, "name": f"{name}/{rows}"}
    for name in DIRECTIONS
    for rows in ("valid", "all")
]


def teacher(kind=hf.ViltForQuestionAnswering, **changes):
    """A ViLT that tells tokens and positions apart."""
    model = families.spread(kind(families.vilt_config(**changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embeddings" in name or "bias" in name:  # they start at zero, or small
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model.eval()


def unequal():
    return families.vilt_of_unequal_images()[1]


class TestWeights:
    def test_every_weight_of_a_tower_is_the_teachers(self):
        vilt = teacher()
        student = ViltDualEncoder.from_vilt(vilt, task="ve")
        theirs = vilt.vilt.state_dict()
        for name, x in student.state_dict().items():
            tower, _, rest = name.partition(".")
            if tower not in ("text", "image"):
                continue
            if rest.endswith("token_type.weight"):
                row = 0 if tower == "text" else 1
                expected = theirs["embeddings.token_type_embeddings.weight"][row : row + 1]
            elif tower == "text" and rest.startswith("embeddings."):
                expected = theirs[f"embeddings.text_{rest}"]
            else:
                expected = theirs[rest]
            assert torch.equal(x, expected), name

    def test_the_towers_share_nothing(self):
        student = ViltDualEncoder.from_vilt(vilt := teacher())
        places = [p.data_ptr() for p in (*student.parameters(), *vilt.parameters())]
        assert len(set(places)) == len(places)

    def test_the_second_image_starts_as_the_first(self):
        vilt = teacher(hf.ViltModel, modality_type_vocab_size=3)
        student = ViltDualEncoder.from_vilt(vilt, task="nlvr2")
        types = student.image.embeddings.token_type.weight
        row = vilt.embeddings.token_type_embeddings.weight[1]
        assert types.shape == (2, 32)
        assert torch.equal(types[0], row)
        assert torch.equal(types[1], row)
        assert student.text.token_type.weight.shape == (1, 32)

    @pytest.mark.parametrize(
        ("task", "labels", "head"),
        [("vqa", 3129, 2), ("ve", 3, 2), ("nlvr2", 2, 4), ("retrieval", 1, None)],
    )
    def test_fusion_and_heads(self, task, labels, head):
        student = families.two_towers(task)
        assert [type(m) for m in student.fusion] == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]
        assert [p.shape for p in student.fusion.parameters() if p.ndim == 2] == [(64, 64), (32, 64)]
        assert student.config.num_labels == labels
        if head is None:
            assert student.rank_output.weight.shape == (1, 32)
        else:
            width = 32 * (2 if task == "nlvr2" else 1)
            assert student.classifier[0].weight.shape == (64, width)
            assert student.classifier[3].weight.shape == (labels, 64)
        fresh = student.fusion[0].weight
        assert fresh.std().item() == pytest.approx(0.02, rel=0.1)
        assert fresh.mean().abs() < 2e-3
        assert not student.fusion[0].bias.any()

    def test_dropout_stands_where_vilt_has_it(self):
        student = families.two_towers()
        rates = {name: m.p for name, m in student.named_modules() if isinstance(m, nn.Dropout)}
        layer = "image.encoder.layer.0."
        assert rates[f"{layer}attention.attention.dropout"] == 0
        for name in (
            f"{layer}attention.output.dropout", f"{layer}intermediate.intermediate_act_fn.1",
            f"{layer}output.dropout", "image.embeddings.dropout", "text.embeddings.dropout",
        ):  # fmt: skip
            assert rates[name] == 0.1, name

    def test_the_next_stage_starts_with_the_towers_of_the_one_before(self, tmp_path):
        first = families.two_towers("pretraining")
        first.save_pretrained(tmp_path)
        second = ViltDualEncoder.from_vilt(tmp_path, task="nlvr2")
        for name in ("text.encoder.layer.1.output.dense.weight", "image.embeddings.cls_token"):
            assert torch.equal(second.state_dict()[name], first.state_dict()[name])
        types = second.image.embeddings.token_type.weight
        assert torch.equal(types[1], first.image.embeddings.token_type.weight[0])

    def test_a_checkpoint_of_another_kind(self, tmp_path):
        teacher().save_pretrained(tmp_path)
        assert ViltDualEncoder.from_vilt(tmp_path, task="ve").config.task == "ve"
        with pytest.raises(errors.OptionError, match="lacks .* weights of a ViltForMaskedLM"):
            ViltDualEncoder.from_vilt(tmp_path, task="pretraining")

    def test_what_cannot_be_a_source(self):
        with pytest.raises(errors.OptionError, match="starts from a ViLT of transformers"):
            ViltDualEncoder.from_vilt(families.clip()[0])
        without = hf.ViltModel(families.vilt_config(), add_pooling_layer=False)
        with pytest.raises(errors.OptionError, match=r"image\.pooler\.dense\.bias.*at random"):
            ViltDualEncoder.from_vilt(without)
        with pytest.raises(errors.OptionError, match="did you mean 'nlvr2'"):
            ViltDualEncoderConfig(task="nlvr")
        with pytest.raises(errors.OptionError, match="one score for a pair"):
            ViltDualEncoderConfig(task="retrieval", num_labels=2)


class TestFiles:
    @pytest.mark.parametrize("task", ["vqa", "ve", "nlvr2", "retrieval", "pretraining"])
    def test_what_is_saved_is_loaded(self, task, tmp_path):
        student = families.two_towers(task).eval()
        student.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
        again, report = ViltDualEncoder.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        batch = families.pair()
        if task == "nlvr2":
            batch["pixel_values"] = torch.rand(2, 2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(**batch).logits, student(**batch).logits)
        assert again.config.task == task
        assert again.config.hidden_dropout_prob == 0.1

    def test_labels_keep_their_names(self, tmp_path):
        names = {0: "contradiction", 1: "entailment", 2: "neutral"}
        student = ViltDualEncoder.from_vilt(teacher(), task="ve", id2label=names)
        student.save_pretrained(tmp_path)
        assert ViltDualEncoder.from_pretrained(tmp_path).config.id2label == names

    def test_copies_and_pickles(self):
        student = families.two_towers().eval()
        batch = families.pair()
        for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
            with torch.no_grad():
                torch.testing.assert_close(other(**batch).logits, student(**batch).logits)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtypes(self, dtype):
        student = families.two_towers().to(dtype)
        out = student(**families.pair(), labels=torch.rand(2, 3129))
        assert out.logits.dtype == dtype
        out.loss.backward()

    def test_gradient_checkpointing(self):
        student = families.two_towers("ve").eval()
        batch = {**families.pair(), "labels": torch.tensor([0, 2])}
        student(**batch).loss.backward()
        plain = {name: p.grad.clone() for name, p in student.named_parameters()}
        student.zero_grad()
        student.train()
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        newer = getattr(student, "activation_checkpointing_enable", None)
        (newer or student.gradient_checkpointing_enable)()
        student(**batch).loss.backward()
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(parameter.grad, plain[name], msg=name)


class TestReuse:
    def test_one_image_many_questions(self):
        student = families.two_towers().eval()
        batch = families.pair()
        with torch.no_grad():
            image = student.encode_image(batch["pixel_values"][:1])
            text = student.encode_text(batch["input_ids"], batch["attention_mask"])
            found = student.answer(text, image)
            repeated = {**batch, "pixel_values": batch["pixel_values"][:1].repeat(2, 1, 1, 1)}
            torch.testing.assert_close(found, student(**repeated).logits)
            indexed = {**batch, "pixel_values": batch["pixel_values"][:1]}
            indexed["image_index"] = torch.tensor([0, 0])
            torch.testing.assert_close(student(**indexed).logits, found)

    def test_one_text_many_images(self):
        student = families.two_towers("retrieval").eval()
        batch = families.pair()
        with torch.no_grad():
            images = student.encode_image(batch["pixel_values"])
            text = student.encode_text(batch["input_ids"][:1])
            assert student.answer(text, images).shape == (2, 1)

    def test_pairs_of_images(self):
        student = families.two_towers("nlvr2").eval()
        batch = {**families.pair(), "pixel_values": torch.rand(2, 2, 3, 32, 32)}
        with torch.no_grad():
            image = student.encode_image(batch["pixel_values"])
            text = student.encode_text(batch["input_ids"], batch["attention_mask"])
            assert image.pooled.shape == (2, 2, 32)
            torch.testing.assert_close(student.answer(text, image), student(**batch).logits)
            # by hand: each image fused with the text, the two vectors joined
            fused = [
                student.fusion(torch.cat([text.pooled, image.pooled[:, i]], 1)) for i in (0, 1)
            ]
            logits = student.classifier(torch.cat(fused, 1))
            torch.testing.assert_close(logits, student(**batch).logits)

    def test_the_token_types_tell_the_images_apart(self):
        student = families.two_towers("nlvr2").eval()
        one = torch.rand(1, 1, 3, 32, 32).expand(1, 2, -1, -1, -1)
        with torch.no_grad():
            same = student.encode_image(one).pooled[0]
            torch.testing.assert_close(same[0], same[1])
            student.image.embeddings.token_type.weight[1] += torch.randn(32)
            other = student.encode_image(one).pooled[0]
        torch.testing.assert_close(other[0], same[0])
        assert (other[1] - same[1]).abs().max() > 1e-3

    def test_padding_changes_nothing(self):
        """A short text and a small image in a batch are what they are alone."""
        student = families.two_towers().double().eval()
        batch = unequal()
        batch["pixel_values"] = batch["pixel_values"].double()
        with torch.no_grad():
            text = student.encode_text(batch["input_ids"], batch["attention_mask"])
            alone = student.encode_text(batch["input_ids"][1:, :5])
            torch.testing.assert_close(text.pooled[1:], alone.pooled)
            torch.testing.assert_close(text.states[1:, :5], alone.states)
            image = student.encode_image(batch["pixel_values"], batch["pixel_mask"])
            alone = student.encode_image(batch["pixel_values"][1:, :, :, :16])
            torch.testing.assert_close(image.pooled[1:], alone.pooled)
            torch.testing.assert_close(image.states[1:, :9], alone.states)

    def test_no_examples(self):
        """ViLT's layers cannot run on none, and the error says so."""
        batch = {name: x[:0] for name, x in families.pair().items()}
        with pytest.raises(errors.SignalError, match="the batch holds no example"):
            dk.Backbone(families.two_towers()).run(batch)

    def test_no_pairs(self):
        student = families.two_towers().eval()
        batch = families.pair()
        with pytest.raises(errors.ShapeError, match="2 texts and 1 images.*image_index"):
            student(**{**batch, "pixel_values": batch["pixel_values"][:1]})
        three = student.encode_text(torch.randint(5, 90, (3, 4)))
        with pytest.raises(errors.ShapeError, match="3 texts and 2 images"):
            student.answer(three, student.encode_image(batch["pixel_values"]))
        with pytest.raises(errors.ShapeError, match="task 'vqa' has pixel_values"):
            student.encode_image(torch.rand(2, 2, 3, 32, 32))
        with pytest.raises(errors.ShapeError, match="task 'nlvr2' has pixel_values"):
            families.two_towers("nlvr2")(**batch)
        with pytest.raises(errors.OptionError, match="answers nothing"):
            words = families.two_towers("pretraining")
            words.answer(three, three)
        with pytest.raises(errors.ShapeError, match="takes texts and images"):
            student(batch["input_ids"])


class TestOwnLoss:
    def test_answers_are_scored_one_by_one(self):
        student = families.two_towers("vqa").double().eval()
        batch = families.pair()
        batch["pixel_values"] = batch["pixel_values"].double()
        labels = torch.rand(2, 3129).double()
        out = student(**batch, labels=labels)
        x = out.logits
        per_class = x.clamp_min(0) - x * labels + torch.log1p(torch.exp(-x.abs()))
        torch.testing.assert_close(out.loss, per_class.mean() * 3129)
        with pytest.raises(errors.ShapeError, match="scores of every answer"):
            student(**batch, labels=torch.tensor([1, 2]))

    def test_retrieval_has_none(self):
        with pytest.raises(errors.OptionError, match="no loss of a single pair"):
            families.two_towers("retrieval")(**families.pair(), labels=torch.tensor([1, 0]))


class TestPatches:
    def run(self, student, vilt, batch):
        distiller = dk.Distiller(student.eval(), vilt, dk.Recipe(name="first", terms=FIRST_LAYER))
        with torch.no_grad():
            return distiller.eval()(batch).parts

    @pytest.mark.parametrize("make", [families.pair, unequal])
    def test_the_first_layer_is_the_teachers(self, make):
        """Same weights, same tokens: nothing to learn there yet, in both directions."""
        vilt = teacher().double()
        batch = make()
        batch["pixel_values"] = batch["pixel_values"].double()
        if "pixel_mask" in batch:  # processors pad with 0
            batch["pixel_values"] = batch["pixel_values"] * batch["pixel_mask"][:, None]
        student = ViltDualEncoder.from_vilt(vilt, task="vqa").double()
        for name, part in self.run(student, vilt, batch).items():
            assert abs(part.item()) < 1e-12, name
        with torch.no_grad():
            student.image.embeddings.position_embeddings[:, 5] += torch.randn(32)
        assert max(self.run(student, vilt, batch).values()) > 1e-6

    def test_a_teacher_that_draws_some_patches(self):
        """Given the teacher's draw, the student sees what it saw; without, nobody is misled."""
        vilt = teacher(max_image_length=6).double()
        student = ViltDualEncoder.from_vilt(vilt, task="vqa").double().eval()
        batch = families.pair()
        batch["pixel_values"] = batch["pixel_values"].double()
        done = dk.Backbone(vilt).trace(batch)
        _, _, (drawn, _) = done.record.returned("vilt.embeddings.visual_embed")
        distiller = dk.Distiller(student, None, dk.Recipe(name="first", terms=FIRST_LAYER)).eval()
        with torch.no_grad():
            given = {**batch, "patches": drawn, "teacher_signals": done.signals}
            for name, part in distiller(given).parts.items():
                assert abs(part.item()) < 1e-12, name
            with pytest.raises(errors.ShapeError):
                distiller({**batch, "teacher_signals": done.signals})

    @given(st.integers(1, 4), st.integers(1, 5), st.data())
    def test_padding_comes_last_and_real_patches_in_raster_order(self, rows, columns, data):
        count = data.draw(st.integers(1, 3))
        mask = torch.zeros(count, rows, columns)
        for one in mask:
            one[: data.draw(st.integers(1, rows)), : data.draw(st.integers(1, columns))] = 1
        chosen = choose_patches(mask, count, (rows, columns))
        sizes = mask.flatten(1).sum(1).int().tolist()
        assert chosen.raster.shape == (count, max(sizes))
        for i, size in enumerate(sizes):
            expected = mask[i].flatten().nonzero()[:, 0].tolist()
            assert chosen.raster[i, :size].tolist() == expected
            assert chosen.real[i].tolist() == [True] * size + [False] * (max(sizes) - size)
            assert len(set(chosen.raster[i].tolist())) == max(sizes)
        shuffled = chosen.places[:, torch.randperm(max(sizes))]
        again = choose_patches(mask, count, (rows, columns), shuffled)
        assert torch.equal(again.real, chosen.real)
        for i, size in enumerate(sizes):
            assert torch.equal(again.raster[i, :size], chosen.raster[i, :size])

    def test_patches_of_other_images(self):
        student = families.two_towers()
        batch = families.pair()
        with pytest.raises(errors.ShapeError, match=r"patches are \(b, n, 2\)"):
            student(**batch, patches=torch.zeros(3, 5, 2).long())
        with pytest.raises(errors.ShapeError, match="lies beyond the 4 x 4"):
            student(**batch, patches=torch.full((2, 5, 2), 4))

    def test_the_tower_is_the_teachers_half(self):
        """What ViLT embeds of an image, in its raster order, is what the tower reads."""
        vilt = teacher(hf.ViltModel).double()
        student = ViltDualEncoder.from_vilt(vilt).double().eval()
        batch = unequal()
        pixels = (batch["pixel_values"] * batch["pixel_mask"][:, None]).double()
        with torch.no_grad():
            ours, mask = student.image.embeddings(pixels, batch["pixel_mask"], None, None)
            theirs, seen, (index, (_, columns)) = vilt.embeddings.visual_embed(
                pixels, batch["pixel_mask"], max_image_length=-1
            )
            theirs = theirs + vilt.embeddings.token_type_embeddings.weight[1]
        rank = torch.where(seen[:, 1:] != 0, index[..., 0] * columns + index[..., 1], 99)
        order = torch.cat([torch.zeros(2, 1).long(), rank.argsort(dim=1, stable=True) + 1], 1)
        torch.testing.assert_close(ours, theirs.gather(1, order[..., None].expand(-1, -1, 32)))
        assert torch.equal(mask, seen.gather(1, order) != 0)


class TestBeside:
    def test_its_own_adapter_wins(self):
        student = families.two_towers()
        assert dk.adapter_for(student).streams.keys() == {"text", "image"}

        class Mine(ViltDualEncoder):
            pass

        assert dk.adapter_for(Mine(student.config)).streams.keys() == {"text", "image"}

    def test_check_and_learn(self):
        vilt = teacher()
        student = ViltDualEncoder.from_vilt(vilt, task="vqa", num_labels=9)
        batch = unequal()
        del batch["pixel_mask"]
        distiller = dk.Distiller(student, vilt, "dide")
        assert "ready to train" in str(distiller.check(batch))
        optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
        distiller.eval()  # without dropout, to compare
        losses = []
        for _ in range(25):
            loss = distiller(batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]

    def test_pairs_of_two_images_come_text_by_text(self):
        student = families.two_towers("nlvr2").eval()
        batch = {**families.pair(), "pixel_values": torch.rand(2, 2, 3, 32, 32)}
        with torch.no_grad():
            signals = dk.Backbone(student).signals(batch)
            found = signals["attention.text_to_image"][-1]
            assert found.shape == (4, 4, 7, 17)
            text = signals["attention.text"][-1]
            image = signals["attention.image"][-1]
        for pair, (example, number) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            scores = text.query[example] @ image.key[example * 2 + number].mT * 8**-0.5
            words = int(batch["attention_mask"][example].sum())
            torch.testing.assert_close(
                found.probabilities()[pair, :, :words], scores.softmax(-1)[:, :words]
            )

    @pytest.mark.parametrize("task", ["ve", "nlvr2", "retrieval"])
    def test_parts_of_a_batch_add_up(self, task):
        """Two images for a text, or two texts for an image: a pair is no example of the batch."""
        student = families.two_towers(task).eval()
        batch = families.pair()
        if task == "nlvr2":
            batch["pixel_values"] = torch.rand(2, 2, 3, 32, 32)
        if task == "retrieval":
            batch = {name: x.repeat_interleave(2, 0) for name, x in batch.items()}
            batch["pixel_values"] = batch["pixel_values"][::2]
            batch["image_index"] = torch.tensor([0, 0, 1, 1])
        other = families.two_towers(task).eval()
        terms = [{"loss": "attention_kl", "on": name} for name in DIRECTIONS]
        terms.append({"loss": "mse", "on": "logits", "name": "answers"})
        terms.append({"loss": "mse", "on": "embedding.image", "name": "images"})
        distiller = dk.Distiller(student, None, dk.Recipe(name="parts", terms=terms)).eval()
        signals = dk.Backbone(other).run(batch)[1].detach()
        whole = distiller(batch, teacher_signals=signals)
        parts = []
        for i in range(2):
            part = {name: x.chunk(2)[i] for name, x in batch.items() if name != "image_index"}
            if task == "retrieval":
                part["image_index"] = torch.tensor([0, 0])
            parts.append(part)
        normalizer = distiller.normalizer(
            [
                {**part, "teacher_signals": dk.Backbone(other).run(part)[1].detach()}
                for part in parts
            ]
        )
        assert normalizer == {name: count.double() for name, count in whole.counts.items()}
        losses = [
            distiller(
                part, teacher_signals=dk.Backbone(other).run(part)[1].detach(),
                normalizer=normalizer,
            ).loss
            for part in parts
        ]  # fmt: skip
        torch.testing.assert_close(sum(losses), whole.loss)
