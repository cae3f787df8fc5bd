"""Every shipped adapter tells the truth about its model, and every lie is found out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import distillkit as dk
from distillkit import testing
from distillkit.testing.adapter_checks import CHECKS as ADAPTER_CHECKS

from . import families


def spread(build):
    """Fresh models attend evenly: larger queries and keys tell tokens apart."""

    def factory():
        model, batch = build()
        return families.spread(model), batch

    factory.__name__ = build.__name__
    return factory


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family(name):
    results = testing.check_adapter(spread(families.FAMILIES[name]))
    assert [str(result) for result in results if result.failed] == []
    looked = [result for result in results if not result.seen.startswith("not applicable")]
    assert len(looked) >= 8


@testing.parametrize_with_adapter_checks([spread(families.vilt_answering)])
def test_as_a_stranger_writes_it(case, check):
    check(case)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_family_is_found_by_its_class(name):
    from distillkit_transformers.family import Family

    model, _ = families.FAMILIES[name]()
    assert isinstance(dk.adapter_for(model), Family)


# ------------------------------------------------------------------------------ planted faults


def faulty(build, change):
    """An adapter whose layout is changed."""

    def factory():
        model, batch = build()
        adapter = dk.adapter_for(families.spread(model))

        def lay(batch, record):
            layout = adapter.lay(batch, record)
            streams = {s: change(s, tokens) for s, tokens in layout.streams.items()}
            return dk.TokenLayout(streams, layout.pairs)

        return model, batch, dataclasses.replace(adapter, lay=lay)

    return factory


def with_modalities(tokens, **changed):
    return dataclasses.replace(tokens, modalities={**tokens.modalities, **changed})


def shifted(_, tokens):
    moved = {
        name: dataclasses.replace(
            one, positions=slice(one.positions.start + 1, one.positions.stop + 1)
        )
        for name, one in tokens.items()
    }
    return with_modalities(tokens, **moved)


def without_summary(_, tokens):
    """The image's [CLS] is forgotten: its patches start where the words end."""
    image = tokens["image"]
    places = image.positions
    shorter = isinstance(places, slice) and slice(places.start, places.stop - 1)
    places = shorter or places[:, 1:]
    return with_modalities(tokens, image=dataclasses.replace(image, positions=places, special=()))


def swapped(_, tokens):
    return with_modalities(tokens, text=tokens["image"], image=tokens["text"])


def unmasked(_, tokens):
    return dataclasses.replace(tokens, valid=None)


def inverted(_, tokens):
    return dataclasses.replace(tokens, valid=tokens.valid.flip(1))


def as_drawn(_, tokens):
    """ViLT's patches in the order in which this forward drew them."""
    image = tokens["image"]
    return with_modalities(
        tokens, image=dataclasses.replace(image, positions=image.positions.sort(1)[0])
    )


def transposed(_, tokens):
    """Column by column: a square of patches mirrored at its diagonal."""
    image = tokens["image"]
    rows, columns = image.grid
    special, places = image.positions[:, :1], image.positions[:, 1:]
    turned = places.view(-1, rows, columns).mT.flatten(1)
    return with_modalities(
        tokens, image=dataclasses.replace(image, positions=torch.cat([special, turned], 1))
    )


@pytest.mark.parametrize(
    ("name", "change", "caught_by"),
    [
        ("visual_bert", shifted, "layout_covers_every_position_once"),
        ("visual_bert", shifted, "image_moves_only_image_tokens"),
        ("flava", shifted, "image_moves_only_image_tokens"),
        ("flava", without_summary, "layout_covers_every_position_once"),
        ("vilt", without_summary, "layout_covers_every_position_once"),
        ("vilt", swapped, "image_moves_only_image_tokens"),
        ("flava", swapped, "image_moves_only_image_tokens"),
        ("paligemma", swapped, "text_moves_only_text_tokens"),
        ("llava", swapped, "image_moves_only_image_tokens"),
        ("vilt", inverted, "masks_agree_with_padding"),
        ("paligemma", inverted, "masks_agree_with_padding"),
        ("vilt", unmasked, "masks_agree_with_padding"),
        ("flava", unmasked, "masks_agree_with_padding"),
        ("vilt", as_drawn, "repeated_forwards_agree"),
        ("vilt", as_drawn, "a_patch_moves_its_own_cell"),
        ("vilt", transposed, "a_patch_moves_its_own_cell"),
    ],
)
def test_a_planted_fault_is_caught(name, change, caught_by):
    case = testing.AdapterCase(faulty(families.FAMILIES[name], change))
    with pytest.raises((AssertionError, dk.errors.DistillKitError)):
        ADAPTER_CHECKS[caught_by](case)


def test_nothing_is_caught_without_a_fault():
    results = testing.check_adapter(faulty(families.vilt, lambda _, tokens: tokens))
    assert [str(result) for result in results if result.failed] == []
