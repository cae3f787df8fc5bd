"""All calls of one module in a forward as the examples of one: NLVR2's two images of a text.

The calls of an example follow each other: row ``i * calls + c`` is call c of example i. Forwards
of several batches concatenate in this order, and a model that gets the images of a batch flattened,
``pixel_values.flatten(0, 1)``, has them in it as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._attention import Attention
from .._attention.padding import pad_tokens
from ..errors import CaptureError

EVERY_CALL = "*"


def split_call(pattern: str) -> tuple[str, str]:
    """A pattern, and which calls it takes: ``""`` the only one, ``"1"`` the second, ``"*"`` all.

    Raises:
        CaptureError: something else behind the ``#``.
    """
    chosen, mark, call = pattern.partition("#")
    if mark and call != EVERY_CALL and not call.isdecimal():
        raise CaptureError(
            f'{pattern!r}: behind # stands the number of a call, counted from 0 ("{chosen}#1" is '
            f'the second), or * for all calls as further examples ("{chosen}#*")'
        )
    return chosen, call


def stack_attentions(name: str, calls: Sequence[Attention]) -> Attention:
    """The calls of a module as examples; shorter ones are padded at the end.

    Raises:
        CaptureError: calls of unequally many examples.
    """
    order = _order(name, [one.shape[0] for one in calls], calls[0].device)
    if len(calls) == 1:
        return calls[0]
    rows, keys = (max(one.shape[axis] for one in calls) for axis in (2, 3))
    return Attention.concatenate([pad_tokens(one, rows, keys) for one in calls]).take(order)


def stack_tensors(name: str, calls: Sequence[Tensor]) -> Tensor:
    """What a module returned in each call, as examples; shorter sequences end in zeros.

    Raises:
        CaptureError: calls of unequally many examples.
    """
    order = _order(name, [len(one) for one in calls], calls[0].device)
    if len(calls) == 1:
        return calls[0]
    if calls[0].ndim > 2:
        length = max(one.shape[1] for one in calls)
        beside = (0, 0) * (calls[0].ndim - 2)
        calls = [pad(one, (*beside, 0, length - one.shape[1])) for one in calls]
    return torch.cat(list(calls))[order]


def _order(name: str, sizes: Sequence[int], device: torch.device) -> Tensor:
    if len(set(sizes)) > 1:
        raise CaptureError(
            f"'{name}#*' stacks all calls as examples, and the {len(sizes)} calls of {name!r} are "
            f"of unequally many: {list(sizes)}; take one of them, '{name}#0'"
        )
    return torch.arange(sum(sizes), device=device).view(len(sizes), -1).mT.reshape(-1)
