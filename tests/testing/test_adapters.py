"""The kit for adapters, on small models of our own; every lie of a layout is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import distillkit as dk
from distillkit import testing
from distillkit.testing.adapter_checks import CHECKS
from tests.support import tiny


def batch():
    return {k: v for k, v in tiny.batch(3).items() if k != "labels"}


def fusion(**tables):
    def factory():
        return (
            tiny.Fusion(tiny.EagerAttention),
            batch(),
            dk.DeclarativeAdapter(**{**tiny.FUSION_TABLES, **tables}),
        )

    return factory


def dual(**tables):
    def factory():
        return tiny.Dual(), batch(), dk.DeclarativeAdapter(**{**tiny.DUAL_TABLES, **tables})

    return factory


def results(factory):
    return {result.name: result for result in testing.check_adapter(factory)}


@testing.parametrize_with_adapter_checks([fusion(), dual()])
def test_adapters_from_toml(case, check):
    check(case)


def test_every_check_has_a_result_and_looks_at_something():
    found = results(fusion())
    assert list(found) == list(CHECKS)
    assert not any(result.failed for result in found.values()), found
    assert found["text_moves_only_text_tokens"].seen.endswith("text tokens moved")


IMAGE_WITH_SUMMARY = {"modality": "image", "grid": [3, 1], "special": [0]}


@pytest.mark.parametrize(
    ("factory", "caught_by"),
    [
        (fusion(tokens={"joint": [tiny.IMAGE, tiny.TEXT]}), "image_moves_only_image_tokens"),
        (fusion(tokens={"joint": [tiny.IMAGE, tiny.TEXT]}), "text_moves_only_text_tokens"),
        (fusion(tokens={"joint": [tiny.TEXT, {"modality": "image", "length": 3}]}), "layout_covers_every_position_once"),
        (fusion(tokens={"joint": [tiny.TEXT, {"modality": "image", "length": 5}]}), "layout_covers_every_position_once"),
        (fusion(tokens={"joint": [{**tiny.TEXT, "mask": None}, tiny.IMAGE]}), "masks_agree_with_padding"),
        (dual(tokens={"text": [{**tiny.TEXT, "mask": None}], "image": [tiny.IMAGE]}), "masks_agree_with_padding"),
        (dual(streams={"text": "image.blocks.*", "image": "text.blocks.*"}), "image_moves_only_image_tokens"),
        (dual(tokens={"text": [tiny.TEXT]}), "layout_covers_every_position_once"),
        (dual(streams={"text": "text.block.*", "image": "image.blocks.*"}), "repeated_forwards_agree"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_caught(factory, caught_by):
    assert results(factory)[caught_by].failed


class Shuffled(tiny.Fusion):
    """It draws the order of its patches anew in every forward."""

    def forward(self, ids, mask, pixels):
        return super().forward(ids, mask, pixels[:, torch.randperm(pixels.shape[1])])


def test_shuffled_patches_are_caught():
    def factory():
        return Shuffled(), batch(), dk.DeclarativeAdapter(**tiny.FUSION_TABLES)

    assert not results(factory)["repeated_forwards_agree"].passed
    assert results(fusion())["repeated_forwards_agree"].passed


class Detached(tiny.Dual):
    """Its image tower is cut off from its parameters."""

    def __init__(self):
        super().__init__()
        for block in self.image.blocks:
            block.heads = lambda x, heads=block.heads: [one.detach() for one in heads(x)]


def test_a_tower_without_gradient_is_caught():
    def factory():
        return Detached(), batch(), dk.DeclarativeAdapter(**tiny.DUAL_TABLES)

    found = results(factory)["gradient_reaches_every_stream"]
    assert not found.passed
    assert "stream 'image'" in found.seen


class ReadsNeighbours(tiny.Dual):
    """The text of each example depends on the batch."""

    def forward(self, ids, mask, pixels):
        text = self.text(self.words(ids) + self.words(ids).mean(0), mask)
        image = self.image(self.patches(pixels), mask.new_ones(pixels.shape[:2]))
        return tiny.Output(self.head(torch.cat([text[:, 0], image[:, 0]], -1)))


def test_a_model_that_mixes_examples_is_caught():
    def factory():
        return ReadsNeighbours(), batch(), dk.DeclarativeAdapter(**tiny.DUAL_TABLES)

    assert not results(factory)["a_batch_of_one_agrees"].passed


def test_whatever_an_adapter_raises_is_a_result():
    class Broken:
        streams, outputs, returns = {"text": "text.blocks.*"}, (), ()

        def inputs(self, batch):
            return dict(batch)

        def layout(self, batch, record):
            return 1 / 0

        def signals(self, record, output, layout):
            raise NotImplementedError

    def factory():
        return tiny.Dual(), batch(), Broken()

    assert "ZeroDivisionError" in results(factory)["repeated_forwards_agree"].seen


def test_patches_are_located_in_pictures():
    """A model that cuts pictures into patches itself, row by row; then column by column."""

    class Patches(tiny.Dual):
        turned = False

        def forward(self, ids, mask, pictures):
            cells = pictures.unfold(2, 2, 2).unfold(3, 1, 1)  # (b, 3, 2, 2, 2, 1)
            cells = cells.mT if self.turned else cells
            if self.turned:
                cells = pictures.transpose(2, 3).unfold(2, 1, 1).unfold(3, 2, 2)
            pixels = cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            return super().forward(ids, mask, pixels)

    tables = {**tiny.DUAL_TABLES, "inputs": {"ids": "ids", "mask": "mask", "pictures": "pictures"}}

    def factory_of(model):
        words = {k: v for k, v in batch().items() if k != "pixels"}
        return lambda: (
            model,
            {**words, "pictures": torch.randn(3, 3, 4, 2)},
            dk.DeclarativeAdapter(**tables),
        )

    right, turned = Patches(), Patches()
    turned.turned = True
    seen = results(factory_of(right))["a_patch_moves_its_own_cell"]
    assert seen.passed
    assert seen.seen.startswith("12 cells of stream 'image': each moves its own patch alone")
    assert results(factory_of(turned))["a_patch_moves_its_own_cell"].failed


def test_every_check_is_documented():
    page = (Path(__file__).parents[2] / "docs/reference/adapters.md").read_text()
    assert [name for name in CHECKS if f"`{name}`" not in page] == []
    assert all(check.__doc__ for check in CHECKS.values())
