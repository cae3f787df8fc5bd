"""The checks of an adapter, each a function of a case that says what it saw.

Everything is found out by running the model: an image is changed, and only the positions that the
layout calls the image's may move; a mask is changed, and only the padded token may vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .adapter_case import AdapterCase
from .cells import check_cells
from .moving_checks import (
    image_moves_only_image_tokens,
    special_tokens_hold_no_content,
    text_moves_only_text_tokens,
)
from .sequences import covered, real_tokens
from .signal_checks import (
    a_batch_of_one_agrees,
    a_shorter_text_loses_one_token,
    attention_is_what_the_streams_define,
    both_orders_of_capture_agree,
    gradient_reaches_every_stream,
    repeated_forwards_agree,
    rows_sum_to_one_over_real_keys,
)
from .verdicts import UnmetError


def layout_covers_every_position_once(case: AdapterCase) -> str:
    """Every position of every sequence belongs to exactly one modality."""
    run = case.run
    for one in run.sequences:
        if one.tokens is None:
            raise UnmetError(f"the layout says nothing of the {one}")
        counts = covered(one)
        wrong = (counts != 1).nonzero()
        if len(wrong):
            example, position = wrong[0].tolist()
            found = int(counts[example, position])
            raise UnmetError(
                f"position {position} of the {one} of example {example} belongs to {found} "
                f"modalities; every position belongs to exactly one of {', '.join(one.tokens)}"
            )
    return f"{len(run.sequences)} sequences"


def a_patch_moves_its_own_cell(case: AdapterCase) -> str:
    """A pixel of each cell moves the token that the grid places there, and none farther."""
    return check_cells(case)


def masks_agree_with_padding(case: AdapterCase) -> str:
    """The model masks the tokens that the layout calls padding, and no others."""
    run = case.run
    padded = 0
    for stream in dict.fromkeys(one.stream for one in run.sequences):
        ends = [one for one in run.sequences if one.stream == stream]
        rows, keys = ends[0], ends[-1]
        attention = rows.attention
        b, h, q, k = attention.shape
        keep = attention.keep()
        kept = (
            torch.ones(b, q, k, dtype=torch.bool)
            if keep is None
            else keep.expand(b, h, q, k).any(1)
        )
        real_rows, real_keys = (real_tokens(one, length) for one, length in ((rows, q), (keys, k)))
        if real_rows.shape != (b, q) or real_keys.shape != (b, k):
            raise UnmetError(
                f"padding of {rows} and {keys} is told for {tuple(real_rows.shape)} and "
                f"{tuple(real_keys.shape)} tokens, but the attention has {(b, q)} and {(b, k)}"
            )
        seen = (kept & real_rows[:, :, None]).any(1)
        for wrong, what in (
            (seen & ~real_keys, "padding in the layout, but the model attends to it"),
            (real_keys & ~kept.any(1), "a real token in the layout, but the model never sees it"),
        ):
            if bool(wrong.any()):
                example, position = wrong.nonzero()[0].tolist()
                raise UnmetError(f"key {position} of the {keys} of example {example} is {what}")
        padded += int((~real_keys).sum())
    return f"{padded} padded keys"


CHECKS: Mapping[str, Callable[[AdapterCase], str]] = {
    check.__name__: check
    for check in (
        layout_covers_every_position_once,
        image_moves_only_image_tokens,
        text_moves_only_text_tokens,
        special_tokens_hold_no_content,
        a_patch_moves_its_own_cell,
        masks_agree_with_padding,
        attention_is_what_the_streams_define,
        repeated_forwards_agree,
        rows_sum_to_one_over_real_keys,
        gradient_reaches_every_stream,
        both_orders_of_capture_agree,
        a_batch_of_one_agrees,
        a_shorter_text_loses_one_token,
    )
}
