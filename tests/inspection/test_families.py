"""Files that ``inspect`` writes of real architectures, held to the kit and to files by hand."""

from __future__ import annotations

import pytest

import distillkit as dk
from distillkit._capture.scope import Scope
from distillkit._inspect.inspection import inspect_model
from tests.support import families_to_inspect, zoo
from tests.support.families_by_file import FILES
from tests.support.layouts_told import told


@pytest.mark.parametrize("name", families_to_inspect.NAMES)
def test_the_file_passes_or_says_which_line_is_missing(name):
    inspection = inspect_model(*families_to_inspect.build(name))
    assert families_to_inspect.outcome(inspection) == families_to_inspect.expected(name)
    assert inspection.passed == (name not in families_to_inspect.INCOMPLETE)
    if inspection.passed:
        assert "stream_" not in str(inspection)


LINES = {
    "llava_next": ("newlines = true",),
    "qwen2_vl": (
        'grid = "image_grid_thw"',
        "merge = 2",
        "equals = [3, 4]  # vision_start_token_id, vision_end_token_id of the model's config",
        '"attention.image_to_text" = "the model lets no image token see a word"',
    ),
    "idefics2": ("length = 4\nnowhere = true",),
    "lxmert": (
        'text_to_image = "encoder.x_layers.*.visual_attention.att#0"',
        'image_to_text = "encoder.x_layers.*.visual_attention.att#1"',
        'length = "visual_feats"\n# extents = "visual_pos"',
    ),
    "siglip2": ('mask = "pixel_attention_mask"', 'grid = "spatial_shapes"'),
    "kosmos2": ('where = "image_embeds_position_mask"\nequals = 1',),
    "groupvit": ('modality = "image"\ngrid = [4, 4]',),
    "vilt": ("# missing: positions  # the image's tokens come in another order in every forward",),
}


@pytest.mark.parametrize("name", LINES)
def test_the_lines_that_a_family_is_known_for(name):
    printed = str(inspect_model(*families_to_inspect.build(name)))
    for line in LINES[name]:
        assert line in printed, printed


def test_most_files_pass_unedited():
    passing = set(families_to_inspect.NAMES) - set(families_to_inspect.INCOMPLETE)
    assert len(passing) >= 46


OF_ONE_IMAGE = set(FILES) - {"got_ocr2", "ovis2"}  # whose zoo batch or config says otherwise


@pytest.mark.parametrize("name", sorted(OF_ONE_IMAGE))
def test_the_file_says_what_one_by_hand_says(name):
    model, batch = zoo.build(name)
    file = inspect_model(model, batch).file.tables
    by_hand = FILES[name]
    modules = Scope(model, ()).names.matching
    assert {s: modules(one) for s, one in file["streams"].items()} == {
        s: modules(one) for s, one in by_hand["streams"].items()
    }
    ours = told(dk.DeclarativeAdapter(**file), model, batch)
    theirs = told(dk.DeclarativeAdapter(**by_hand), model, batch)
    assert ours == theirs
