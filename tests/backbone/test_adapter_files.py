"""Adapter files: what each key of a token run means, and what a file cannot say."""

from __future__ import annotations

import textwrap

import pytest
import torch

import distillkit as dk
from distillkit import errors
from tests.support import tiny


def stream(runs, batch, name="joint", **tables):
    adapter = dk.DeclarativeAdapter(streams={}, tokens={name: runs}, **tables)
    return adapter.layout(batch, None)[name]


IDS = torch.tensor([[1, 99, 99, 99, 99, 5, 6, 2], [0, 0, 1, 99, 99, 7, 2, 2]])
MARKED = {"modality": "image", "where": "ids", "equals": 99}
WORDS = {"modality": "text", "length": "ids"}


class TestSpecialTokens:
    def test_by_id_they_follow_left_padding(self):
        text = stream([{**WORDS, "special_ids": [1, 2]}], {"ids": IDS}, "text")["text"]
        assert text.special.tolist() == [
            [True, False, False, False, False, False, False, True],
            [False, False, True, False, False, False, True, True],
        ]

    def test_by_id_among_the_tokens_that_no_mark_takes(self):
        found = stream([MARKED, {**WORDS, "special_ids": [1]}], {"ids": IDS})
        assert found["text"].ids.tolist() == [[1, 5, 6, 2, 0, 0], [0, 0, 1, 7, 2, 2]]
        assert found["text"].special.nonzero().tolist() == [[0, 0], [1, 2]]

    @pytest.mark.parametrize(
        ("special", "places", "first_cell"), [([0], (0,), 1), ([4], (4,), 0), ([-1, 0], (0, 5), 1)]
    )
    def test_around_a_grid_every_patch_keeps_its_place(self, special, places, first_cell):
        run = {"modality": "image", "grid": [2, 2], "special": special, "uncropped": True}
        image = stream([run], {}, "image")["image"]
        assert image.special == places
        assert image.extents[0, first_cell].tolist() == [0, 0, 0.5, 0.5]
        assert image.extents[0, first_cell + 3].tolist() == [0.5, 0.5, 1, 1]
        assert image.extents[0, list(places)].eq(0).all()

    def test_newlines_end_every_row(self):
        run = {"modality": "image", "grid": [2, 2], "newlines": True, "uncropped": True}
        image = stream([run], {}, "image")["image"]
        assert image.positions == slice(0, 6)
        assert image.special == (2, 5)
        assert image.extents[0, 3].tolist() == [0.5, 0, 1, 0.5]

    def test_of_a_short_batch(self):
        with pytest.raises(
            errors.SignalError, match=r"special = \[99\]: the text run has 8 tokens"
        ):
            stream([{**WORDS, "special": [99]}], {"ids": IDS}, "text")

    def test_the_last_of_marked_tokens(self):
        found = stream([{**MARKED, "special": [-1]}, WORDS], {"ids": IDS})
        assert found["image"].special.nonzero().tolist() == [[0, 3], [1, 1]]


class TestGrids:
    def test_from_the_batch_image_by_image(self):
        grid = torch.tensor([[1, 4, 4], [1, 2, 4]])
        run = {**MARKED, "grid": "image_grid_thw", "merge": 2, "uncropped": True}
        image = stream([run, WORDS], {"ids": IDS, "image_grid_thw": grid})["image"]
        assert image.grid.tolist() == [[[2, 2]], [[1, 2]]]
        assert image.extents[0, 3].tolist() == [0.5, 0.5, 1, 1]
        assert image.extents[1].tolist() == [[0, 0, 1, 0.5], [0, 0.5, 1, 1], [0] * 4, [0] * 4]

    def test_one_size_for_all_is_a_pair(self):
        ids = IDS[:1].repeat(2, 1)
        run = {**MARKED, "grid": "grids"}
        batch = {"ids": ids, "grids": torch.tensor([[2, 2], [2, 2]])}
        assert stream([run, WORDS], batch)["image"].grid == (2, 2)

    def test_that_marks_other_numbers_of_tokens(self):
        batch = {"ids": IDS, "grids": torch.tensor([[2, 2], [2, 2]])}
        with pytest.raises(errors.SignalError, match="marks 2 image tokens of example 1.*make 4"):
            stream([{**MARKED, "grid": "grids"}, WORDS], batch)

    @pytest.mark.parametrize(
        ("size", "shape", "grid"),
        [
            ({"patch": 8}, (2, 3, 32, 16), (4, 2)),
            ({"patch": [16, 8]}, (2, 3, 32, 16), (2, 2)),
            ({"patch": 8, "merge": 2}, (2, 3, 32, 16), (2, 1)),
            ({"patch": 8}, (2, 1, 3, 32, 16), (4, 2)),
            ({"patch": 8}, (2, 3, 37, 16), (4, 2)),
        ],
    )
    def test_from_the_image(self, size, shape, grid):
        run = {"modality": "image", "special": [0], **size}
        image = stream([run], {"pixel_values": torch.zeros(shape)}, "image")["image"]
        assert image.grid == grid
        assert image.positions == slice(0, grid[0] * grid[1] + 1)

    def test_of_unequal_images_without_marks_the_rest_is_padding(self):
        run = {"modality": "image", "grid": "shapes", "uncropped": True}
        found = stream([run], {"shapes": torch.tensor([[2, 2], [1, 2]])}, "image")
        assert found.valid.tolist() == [[True] * 4, [True, True, False, False]]
        assert found["image"].extents[1, 1].tolist() == [0, 0.5, 1, 1]
        padded = stream([{**run, "length": 6}], {"shapes": torch.tensor([[2, 2]])}, "image")
        assert padded.valid.tolist() == [[True] * 4 + [False] * 2]

    def test_of_an_image_in_a_run_that_is_longer(self):
        run = {"modality": "image", "patch": 8, "length": "tokens", "uncropped": True}
        batch = {"pixel_values": torch.zeros(2, 3, 16, 8), "tokens": torch.zeros(2, 5, 4)}
        found = stream([run], batch, "image")
        assert found.valid.tolist() == [[True, True, False, False, False]]
        with pytest.raises(errors.SignalError, match="has 1 tokens, but its patches .* are 2"):
            stream([run], {**batch, "tokens": torch.zeros(2, 1, 4)}, "image")

    def test_that_were_first_seen_in_another_mode(self):
        run = {"modality": "image", "grid": [3, 5], "extents": "boxes"}
        boxes = torch.tensor([[0.0, 0, 1, 1]])
        with torch.inference_mode(), torch.device("meta"):
            stream([run], {"boxes": boxes}, "image")
        batch = {"boxes": boxes.clone().requires_grad_()}
        stream([run], batch, "image")["image"].extents.square().sum().backward()
        assert batch["boxes"].grad.any()

    def test_in_pixels(self):
        run = {"modality": "image", "grid": "image_sizes", "patch": 16}
        batch = {"image_sizes": torch.tensor([[32, 48]])}
        assert stream([run], batch, "image")["image"].grid == (2, 3)


class TestSeveralImages:
    def test_packed_images_go_to_the_example_whose_tokens_they_make(self):
        ids = torch.tensor([[99] * 4 + [99] * 2, [99] * 2 + [5] * 4])
        run = {**MARKED, "grid": "grids", "images": True, "uncropped": True}
        batch = {"ids": ids, "grids": torch.tensor([[2, 2], [1, 2], [2, 1]])}
        image = stream([run, WORDS], batch)["image"]
        assert image.grid.tolist() == [[[2, 2], [1, 2]], [[2, 1], [0, 0]]]
        assert image.extents.shape == (2, 6, 6)
        assert image.extents[0, 4].tolist() == [1, 0, 0, 2, 1, 0.5]  # of the second image
        assert image.extents[1, 1].tolist() == [0, 0.5, 0, 1, 1, 1]
        run = {**run, "uncropped": False, "extents": "boxes"}
        batch["boxes"] = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0.5, 0, 1, 1]])
        image = stream([run, WORDS], batch)["image"]
        assert image.extents[0, 4].tolist() == [1, 0, 0, 2, 1, 0.5]
        assert image.extents[1, 1].tolist() == [0, 0.75, 0, 1, 1, 1]
        assert image.extents[1, 2:].eq(0).all()
        with pytest.raises(errors.SignalError, match="has 2 boxes for 3 images"):
            stream([run, WORDS], {**batch, "boxes": batch["boxes"][:2]})

    def test_that_make_another_number_of_tokens(self):
        ids = torch.tensor([[99] * 4 + [99] * 2])
        run = {**MARKED, "grid": "grids", "images": True}
        for grids, message in (
            ([[2, 2], [2, 2]], "has 6 image tokens, which no whole number of images makes"),
            ([[2, 2], [1, 2], [1, 1]], "is of 3 image images, but the marked tokens are of 2"),
        ):
            with pytest.raises(errors.SignalError, match=message):
                stream([run, WORDS], {"ids": ids, "grids": torch.tensor(grids)})

    def test_a_number_of_each_example(self):
        run = {"modality": "image", "grid": [2, 2], "images": 2, "extents": "boxes"}
        boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
        image = stream([run], {"boxes": boxes}, "image")["image"]
        assert image.grid.tolist() == [[[2, 2], [2, 2]]]
        assert image.extents[0, 7].tolist() == [1, 0.25, 0.5, 2, 0.5, 1]
        with pytest.raises(errors.SignalError, match="3 boxes, which are not 2 for each example"):
            stream([run], {"boxes": boxes[:3]}, "image")

    def test_unsaid_they_are_refused(self):
        run = {"modality": "image", "patch": 8}
        with pytest.raises(errors.SignalError, match="3 pictures for each example: say what"):
            stream([run], {"pixel_values": torch.zeros(2, 3, 3, 8, 8)}, "image")
        with pytest.raises(errors.SignalError, match="of 4 examples, but where = 'ids' is of 2"):
            batch = {"ids": IDS, "grids": torch.ones(4, 2).long()}
            stream([{**MARKED, "grid": "grids"}, WORDS], batch)


class TestFrames:
    def test_have_a_time_beside_their_place(self):
        run = {"modality": "image", "grid": [1, 2], "frames": 2, "uncropped": True}
        image = stream([run], {}, "image")["image"]
        assert image.extents[0].tolist() == [
            [0, 0, 0, 0.5, 1, 0.5], [0, 0, 0.5, 0.5, 1, 1],
            [0.5, 0, 0, 1, 1, 0.5], [0.5, 0, 0.5, 1, 1, 1],
        ]  # fmt: skip

    def test_as_many_as_the_batch_says(self):
        run = {"modality": "image", "frames": True, "special": [0]}
        clips = {"pixel_values": torch.zeros(2, 5, 3, 8, 8)}
        assert stream([{**run, "patch": 8}], clips, "image")["image"].positions == slice(0, 6)
        grids = {"grids": torch.tensor([[3, 2, 1]])}
        assert stream([{**run, "grid": "grids"}], grids, "image")["image"].positions.stop == 7
        with pytest.raises(errors.SignalError, match="has 3 frames: say `frames = true`"):
            stream([{"modality": "image", "grid": "grids"}], grids, "image")

    def test_overlap_carries_frames_onto_frames(self):
        from distillkit._objective.align.overlap import overlap

        def axis(frames):
            run = {"modality": "image", "grid": [1, 2], "frames": frames, "uncropped": True}
            return dk.TokenAxis("image", extents=stream([run], {}, "image")["image"].extents)

        teacher = torch.arange(8.0)[None, None, None].softmax(-1)
        student = dk.Attention.from_scores(torch.zeros(1, 1, 1, 4))
        _, carried = overlap(
            student, dk.Attention.from_probabilities(teacher),
            student_tokens=(None, axis(2)), teacher_tokens=(None, axis(4)),
        )  # fmt: skip
        expected = teacher.view(2, 2, 2).sum(1).flatten()  # two frames of the teacher are one here
        torch.testing.assert_close(carried.probabilities().flatten(), expected)


class TestTiles:
    def test_each_covers_its_part(self):
        run = {"modality": "image", "grid": [1, 2], "tiles": [2, 1], "thumbnail": "last"}
        image = stream([{**run, "uncropped": True}], {}, "image")["image"]
        assert image.extents[0].tolist() == [
            [0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1],
            [0, 0, 1, 0.5], [0, 0.5, 1, 1],
        ]  # fmt: skip
        first = stream([{**run, "thumbnail": "first", "uncropped": True}], {}, "image")["image"]
        assert torch.equal(first.extents, image.extents.roll(2, 1))

    def test_from_the_batch(self):
        ids = torch.tensor([[99] * 6, [99] * 2 + [5] * 4])
        run = {**MARKED, "grid": [1, 2], "tiles": "tiling", "thumbnail": "last", "uncropped": True}
        batch = {"ids": ids, "tiling": torch.tensor([[1, 2], [0, 0]])}
        image = stream([run, WORDS], batch)["image"]
        assert image.grid.tolist() == [[[1, 2]] * 3, [[1, 2], [0, 0], [0, 0]]]
        assert image.extents[1, :2].tolist() == [[0, 0, 1, 0.5], [0, 0.5, 1, 1]]

    def test_runs_of_their_own_are_joined(self):
        runs = [
            {"modality": "image", "grid": [1, 2], "uncropped": True},
            {"modality": "image", "length": 1, "special": [0]},
            {"modality": "image", "grid": [2, 1], "box": [0, 0, 0.5, 1]},
        ]
        image = stream(runs, {}, "image")["image"]
        assert image.positions == slice(0, 5)
        assert image.special == (2,)
        assert image.grid.tolist() == [[[1, 2], [2, 1]]]
        assert image.extents[0, 2:].tolist() == [[0] * 4, [0, 0, 0.25, 1], [0.25, 0, 0.5, 1]]

    def test_runs_that_share_the_marked_tokens(self):
        ids = torch.tensor([[5, 99, 99, 5, 99, 99], [99, 99, 99, 99, 5, 5]])
        runs = [
            {**MARKED, "grid": [1, 2], "uncropped": True},
            {**MARKED, "grid": [2, 1], "uncropped": True},
            WORDS,
        ]
        image = stream(runs, {"ids": ids})["image"]
        assert torch.equal(image.positions, ids == 99)
        assert image.extents[0].tolist() == image.extents[1].tolist()
        assert image.extents[0, 2].tolist() == [0, 0, 0.5, 1]
        assert image.grid.tolist() == [[[1, 2], [2, 1]]]

    def test_runs_between_which_words_lie(self):
        runs = [
            {"modality": "image", "grid": [1, 2], "uncropped": True, "special": [0]},
            {**WORDS, "mask": "mask"},
            {"modality": "image", "grid": [2, 1], "uncropped": True},
        ]
        tables = {"streams": {"joint": "encoder.blocks.*"}, "tokens": {"joint": runs}}

        class Record:  # of three examples
            def layers(self, pattern):
                return [torch.zeros(3, 4, 13, 13)]

        batch = {"ids": IDS, "mask": IDS != 0}
        found = dk.DeclarativeAdapter(**tables).layout(batch, Record())["joint"]
        assert found.valid.shape == (2, 13)
        assert found["image"].positions.shape == (3, 13)
        assert found["image"].positions[0].nonzero()[:, 0].tolist() == [0, 1, 2, 11, 12]
        assert found["image"].special == (0,)
        assert found["image"].grid.tolist() == [[[1, 2], [2, 1]]]
        assert found["image"].extents[2, 4].tolist() == [0.5, 0, 1, 1]

    def test_runs_whose_marks_take_turns(self):
        ids = torch.tensor([[99, 98, 5, 99, 98], [5, 99, 98, 99, 98]])
        runs = [
            {**MARKED, "extents": "boxes"},
            {**MARKED, "equals": 98, "length": 2, "special": [0, 1]},
            WORDS,
        ]
        boxes = torch.arange(40.0).view(2, 5, 4)
        image = stream(runs, {"ids": ids, "boxes": boxes})["image"]
        assert image.special == (1, 3)
        assert torch.equal(image.extents[0, [0, 2]], boxes[0, [0, 3]])
        assert torch.equal(image.extents[1, [0, 2]], boxes[1, [1, 3]])
        assert image.extents[:, [1, 3]].eq(0).all()


class TestMarks:
    def test_stand_within_the_run_of_their_entry(self):
        runs = [
            {"modality": "latent", "length": 3},
            MARKED,
            {"modality": "marker", "where": "ids", "equals": [1, 2]},
            {**WORDS, "mask": "mask"},
            {"modality": "image", "grid": [2, 2]},
        ]
        found = stream(
            [*runs[:4], {**runs[4], "modality": "patch"}], {"ids": IDS, "mask": IDS != 0}
        )
        assert found["latent"].positions == slice(0, 3)
        assert found["patch"].positions == slice(11, 15)
        inside = torch.zeros(2, 15, dtype=torch.bool)
        inside[:, 3:11] = IDS == 99
        assert torch.equal(found["image"].positions, inside)
        assert found["text"].positions.sum(1).tolist() == [2, 3]
        assert found["marker"].positions[:, 3:11].sum(1).tolist() == [2, 3]
        counts = sum(
            one.positions.long() if isinstance(one.positions, torch.Tensor)
            else torch.zeros(2, 15).long().index_fill(1, torch.arange(15)[one.positions], 1)
            for one in found.values()
        )  # fmt: skip
        assert counts.eq(1).all()
        assert found.valid[:, 3:11].tolist() == (IDS != 0).tolist()

    def test_of_another_length(self):
        batch = {"ids": IDS, "kinds": IDS[:, :4]}
        with pytest.raises(errors.SignalError, match="marks 4 tokens, but the run .* has 8"):
            stream([{**MARKED, "where": "kinds"}, WORDS], batch)

    def test_kinds_are_not_words(self):
        batch = {"kinds": torch.zeros(1, 3).long(), "token_type_ids": torch.zeros(1, 3).long()}
        for length in batch:
            run = {"modality": "text", "length": length}
            assert stream([run], batch, "text")["text"].ids is None
        named = stream([{**run, "ids": "kinds"}], batch, "text")["text"]
        assert torch.equal(named.ids, batch["kinds"])


class TestPadding:
    def test_by_lengths(self):
        run = {**WORDS, "lengths": "sizes"}
        batch = {"ids": IDS, "sizes": torch.tensor([8, 3])}
        assert stream([run], batch, "text").valid.sum(1).tolist() == [8, 3]
        left = stream([{**run, "padding": "left"}], batch, "text").valid
        assert left[1].tolist() == [False] * 5 + [True] * 3

    def test_a_mask_of_another_shape(self):
        with pytest.raises(errors.SignalError, match=r"got \(2,\).*lengths = 'mask'"):
            stream([{**WORDS, "mask": "mask"}], {"ids": IDS, "mask": torch.ones(2)}, "text")


class TestNowhere:
    def test_tokens_of_a_resampler_lie_nowhere(self):
        image = stream([{"modality": "image", "length": 3, "nowhere": True}], {}, "image")["image"]
        assert image.extents.shape == (1, 3, 4)
        assert image.extents.eq(0).all()

    def test_beside_patches(self):
        runs = [
            {"modality": "image", "grid": [1, 2], "uncropped": True, "frames": 1},
            {"modality": "image", "length": 1, "nowhere": True},
        ]
        image = stream(runs, {}, "image")["image"]
        assert image.extents.shape == (1, 3, 6)
        assert image.extents[0, 2].eq(0).all()


class Grouped(tiny.Dual):
    """Its image tower has learned tokens behind the patches."""

    def __init__(self):
        super().__init__()
        self.groups = torch.nn.Parameter(torch.randn(1, 3, tiny.WIDTH))

    def forward(self, ids, mask, pixels):
        text = self.text(self.words(ids), mask)
        x = torch.cat([self.patches(pixels), self.groups.expand(len(pixels), -1, -1)], 1)
        image = self.image(x, mask.new_ones(x.shape[:2]))
        return tiny.Output(self.head(torch.cat([text[:, 0], image[:, 0]], -1)))


def test_learned_tokens_in_a_tower_are_left_out_of_what_words_see():
    tables = {**tiny.DUAL_TABLES, "tokens": {
        "text": [tiny.TEXT],
        "image": [{**tiny.IMAGE, "uncropped": True}, {"modality": "group", "length": 3}],
    }}  # fmt: skip
    batch = {k: v for k, v in tiny.batch(3).items() if k != "labels"}
    model = Grouped()
    signals = dk.Backbone(model, dk.DeclarativeAdapter(**tables)).signals(batch)
    name = "attention.text_to_image"
    assert signals[name][-1].shape == (3, 4, 5, 4)
    assert signals.axes(name)[1].extents.shape == (1, 4, 4)
    assert signals["attention.image"][-1].shape == (3, 4, 7, 7)
    whole = dk.Backbone(tiny.Dual(), dk.DeclarativeAdapter(**tiny.DUAL_TABLES))
    distiller = dk.Distiller(
        model, tiny.Dual(), "dide_attention",
        student_adapter=dk.DeclarativeAdapter(**tables), teacher_adapter=whole.adapter,
    )  # fmt: skip
    assert distiller.check(batch).passed, str(distiller.check(batch))
    distiller(batch).loss.backward()


class TakesAnything(tiny.Dual):
    def forward(self, ids, **others):
        return super().forward(ids, others["mask"], others["pixels"])


def test_what_a_file_names_reaches_a_forward_that_takes_anything():
    tables = {k: v for k, v in tiny.DUAL_TABLES.items() if k != "inputs"}
    tables["tokens"] = {
        "text": [tiny.TEXT],
        "image": [{"modality": "image", "length": "pixels"}],
    }
    batch = {k: v for k, v in tiny.batch(3).items() if k != "labels"}
    backbone = dk.Backbone(TakesAnything(), dk.DeclarativeAdapter(**tables))
    assert sorted(backbone.adapter.inputs(batch)) == ["ids", "mask", "pixels"]
    backbone.run(batch)
    tables["tokens"]["image"][0]["grid"] = "shapes"  # what only the layout needs stays here
    tables["tokens"]["image"][0]["extents"] = "boxes"
    batch |= {"shapes": torch.tensor([[2, 2]] * 3), "boxes": torch.tensor([[0.0, 0, 1, 1]] * 3)}
    backbone = dk.Backbone(TakesAnything(), dk.DeclarativeAdapter(**tables))
    assert sorted(backbone.adapter.inputs(batch)) == ["ids", "mask", "pixels"]
    assert {"shapes", "boxes"} < backbone.adapter.entries
    assert backbone.run(batch)[1].axes("attention.text_to_image")[1].grid == (2, 2)


# ------------------------------------------------------------------------- what a file cannot say

HEAD = 'streams = { joint = "layers.*" }\n\n'
WRONG = [
    (8, 'special = "first"', "an integer or a list of them; got 'first'"),
    (8, "special = [0, 0]\nlength = 4", "names a position twice"),
    (8, "special = [4, -1]\ngrid = [1, 3]", "names a position twice, of 5 tokens"),
    (8, "special = [9]\ngrid = [2, 2]", "this run has 5 tokens, 0 to 4"),
    (8, "grid = [2, 0]", r"\[rows, columns\] of patches, both at least 1"),
    (8, "grid = [2, 2, 2]", r"\[rows, columns\] of patches"),
    (8, "patch = 0", "the side of a patch in pixels"),
    (9, "grid = [2, 2]\npatch = 8", "`patch` divides the pixels .* give one"),
    (9, "grid = [2, 2]\nmerge = 2", "write the merged grid itself"),
    (8, "length = true", "a number of tokens, or the batch entry"),
    (8, "length = 0", "a number of tokens"),
    (9, "grid = [2, 2]\nlength = 5", "`length` = 5, but the patches and special tokens are 4"),
    (8, "newlines = true\nlength = 4", "`newlines` is about a grid"),
    (8, "tiles = [2, 2]\nlength = 4", "`tiles` is about a grid"),
    (9, 'grid = [2, 2]\nthumbnail = "last"', "`thumbnail` stands beside `tiles`"),
    (9, 'grid = [2, 2]\nthumbnail = "middle"', "Input should be 'first' or 'last'"),
    (9, "grid = [2, 2]\nbox = [0.5, 0, 0.5, 1]", "`box` is top, left, bottom, right"),
    (10, "grid = [2, 2]\nuncropped = true\nbox = [0, 0, 1, 1]", "each say where the tokens lie"),
    (8, "nowhere = true\ngrid = [2, 2]", "`nowhere` says that no place is known"),
    (9, 'grid = [2, 2]\nspecial_ids = [1]', "say which batch entry holds them"),
    (10, 'where = "ids"\nequals = 3\nlength = "ids"', "says nothing of tokens that `where` marks"),
    (8, 'where = "ids"', "`where` and `equals` go together"),
    (8, 'equals = "3"\nwhere = "ids"', "an integer or a list of them"),
    (9, 'length = "ids"\nlengths = "sizes"\nmask = "mask"', "the same as `mask`"),
    (8, 'padding = "left"\nlength = "ids"', "`padding` says on which side"),
    (8, "lenght = 4", "did you mean 'length'"),
    (9, "grid = [2, 2]\nframes = 0", "a number, or true for as many"),
    (8, 'pixels = "image"\ngrid = [2, 2]', "it needs `patch` and no `grid`"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "lines", "message"), WRONG, ids=[one[1] for one in WRONG])
def test_a_run_that_means_nothing_is_refused_with_its_line(tmp_path, line, lines, message):
    run = f'[[tokens.joint]]\nmodality = "image"\n{lines}\n'
    path = tmp_path / "model.toml"
    path.write_text(
        HEAD + '[[tokens.joint]]\nmodality = "text"\n' + "length = 4\n" + run, encoding="utf-8"
    )
    assert path.read_text(encoding="utf-8").splitlines()[5:7] == [
        "[[tokens.joint]]",
        'modality = "image"',
    ]
    with pytest.raises(errors.SignalError, match=message) as raised:
        dk.DeclarativeAdapter.from_toml(path)
    assert f"line {line}: tokens.joint.1" in str(raised.value), str(raised.value)


TOGETHER = [
    (
        "one of two runs says where it lies",
        'modality = "image"\ngrid = [2, 2]\nuncropped = true',
        'modality = "image"\nlength = 4',
        "only some say where they lie",
    ),
    (
        "only one counts images",
        'modality = "image"\ngrid = [2, 2]\nuncropped = true',
        'modality = "image"\ngrid = [2, 2]\nuncropped = true\nimages = 2',
        "only some count `images`",
    ),
    (
        "two runs mark one value",
        'modality = "image"\nwhere = "ids"\nequals = [3, 4]',
        'modality = "marker"\nwhere = "ids"\nequals = 3',
        "'ids' is 3 at tokens of two runs",
    ),
    (
        "the first of two that share leaves open what it takes",
        'modality = "image"\nwhere = "ids"\nequals = 3',
        'modality = "image"\nwhere = "ids"\nequals = 3',
        "only the last may leave open",
    ),
]


@pytest.mark.parametrize("case", TOGETHER, ids=[one[0] for one in TOGETHER])
def test_runs_that_contradict_each_other(tmp_path, case):
    _, one, two, message = case
    path = tmp_path / "model.toml"
    path.write_text(HEAD + f"[[tokens.joint]]\n{one}\n[[tokens.joint]]\n{two}\n", encoding="utf-8")
    with pytest.raises(errors.SignalError, match=message) as raised:
        dk.DeclarativeAdapter.from_toml(path)
    assert "line 3: " in str(raised.value)


def test_marks_that_could_lie_in_two_runs():
    runs = [
        {"modality": "text", "length": "ids"},
        {"modality": "answer", "length": "answers"},
        {"modality": "image", "where": "kinds", "equals": 1},
    ]
    with pytest.raises(errors.SignalError, match="2 could be meant.*`length` of that one"):
        dk.DeclarativeAdapter(streams={}, tokens={"joint": runs})
    runs[2]["where"] = "answers"
    dk.DeclarativeAdapter(streams={}, tokens={"joint": runs})


def test_a_table_of_no_stream(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text(HEAD + '[[tokens.jiont]]\nmodality = "text"\nlength = 3\n', encoding="utf-8")
    with pytest.raises(
        errors.SignalError,
        match=r"line 3: \[\[tokens\.jiont\]\] is of no stream.*did you mean 'joint'",
    ):
        dk.DeclarativeAdapter.from_toml(path)


def test_lines_of_nested_and_dotted_keys():
    from distillkit._backbone.toml_lines import line_of

    text = textwrap.dedent("""
        streams.joint = "x"

        [hidden]
        "a b" = 3
        [[tokens.joint]]
        modality = "text"
        [[tokens.text]]
        [[tokens.joint]]
        grid = [
          2,
        ]
    """).strip()
    assert line_of(text, ("streams", "joint")) == 1
    assert line_of(text, ("hidden", "a b")) == 4
    assert line_of(text, ("tokens", "joint", 1, "grid", 0)) == 9
    assert line_of(text, ("tokens", "joint", 0, "nothing")) == 5
    assert line_of(text, ("tokens", "joint", 1), ["grid"]) == 9
    assert line_of(text, ("nothing",)) == 1


class TestClasses:
    """What a layout written in Python cannot say either."""

    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ({"special": 0}, r"write special=\(0,\)"),
            ({"special": (8,)}, "there are 4 tokens"),
            ({"special": torch.zeros(4)}, r"boolean \(b, m\)"),
            ({"grid": (2, 3)}, "are 6 tokens, but there are 4 positions"),
            ({"grid": [2, 2]}, "a grid is a tuple"),
            ({"grid": (2, 2), "special": (0,)}, "are 5 tokens"),
            ({"grid": torch.zeros(2, 2).long()}, r"integers \(b, g, 2\)"),
        ],
    )
    def test_of_so_many_positions(self, facts, message):
        with pytest.raises(errors.ShapeError, match=message):
            dk.ModalityTokens(slice(3, 7), **facts)

    def test_a_grid_is_compared_with_the_marked_tokens(self):
        from distillkit._backbone.axis import token_axis

        for marks, message in (
            ([[True] * 3], "are 4 tokens, but there are 3"),
            ([[True] * 4, [True, True, True, False]], "unequally many"),
        ):
            tokens = dk.ModalityTokens(torch.tensor(marks), grid=(2, 2))
            with pytest.raises(errors.ShapeError, match=message):
                token_axis(tokens, "image", None)

    def test_a_layout_that_is_too_short(self):
        tables = {**tiny.FUSION_TABLES, "tokens": {"joint": [
            {"modality": "text", "length": "ids"}, {"modality": "image", "length": 3},
        ]}}  # fmt: skip
        batch = {k: v for k, v in tiny.batch(3).items() if k != "labels"}
        signals = dk.Backbone(tiny.Fusion(), dk.DeclarativeAdapter(**tables)).signals(batch)
        with pytest.raises(errors.SignalError, match="describes 8 tokens, but its attention has 9"):
            signals["attention.text_to_image"][-1]


def test_special_masks_of_several_forwards_are_joined():
    one = dk.TokenAxis("text", ids=torch.tensor([[1, 5]]), special=(0,))
    two = dk.TokenAxis("text", ids=torch.tensor([[5, 1]]), special=torch.tensor([[False, True]]))
    joined = dk.TokenAxis.concatenate([one, two])
    assert joined.special.tolist() == [[True, False], [False, True]]
    assert joined.take(torch.tensor([1])).special.tolist() == [[False, True]]
