"""An attention with further tokens at the end that never count, to meet a longer one."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from .attention import Attention


def pad_tokens(attention: Attention, rows: int, keys: int) -> Attention:
    """The same attention of more tokens: those behind its own see nothing, and nobody sees them.

    Args:
        attention: of q rows and k keys.
        rows: the number of rows to reach, at least q.
        keys: the number of keys to reach, at least k.

    Examples:
        >>> import torch
        >>> pad_tokens(Attention.from_scores(torch.zeros(1, 1, 1, 2)), 2, 3).probabilities()
        tensor([[[[0.5000, 0.5000, 0.0000],
                  [0.0000, 0.0000, 0.0000]]]])
    """
    b, h, q, k = attention.shape
    if (rows, keys) == (q, k):
        return attention
    more_rows, more_keys = rows - q, keys - k
    seen = attention.valid_rows().new_zeros(b, 1, rows, keys)
    seen[:, :, :q, :k] = True
    own_rows = None if attention.rows is None else pad(attention.rows, (0, more_rows))
    value = None if attention.value is None else pad(attention.value, (0, 0, 0, more_keys))

    def block(x: Tensor) -> Tensor:
        """One entry for every row and key; the new ones are dropped by the mask."""
        return pad(x.expand(*x.shape[:2], q, k), (0, more_keys, 0, more_rows))

    if attention.is_as_used:
        return Attention.replayed(
            (b, h, rows, keys),
            used=lambda: block(attention.probabilities()),
            value=value, mask=seen, rows=own_rows,
        )  # fmt: skip
    if attention.is_replayed:
        return Attention.replayed(
            (b, h, rows, keys),
            scores=lambda: block(attention.scores()),
            value=value, mask=seen, rows=own_rows,
        )  # fmt: skip
    mask = seen if attention.mask is None else seen & block(attention.mask)
    return Attention(
        pad(attention.query, (0, 0, 0, more_rows)),
        pad(attention.key, (0, 0, 0, more_keys)),
        value,
        scale=attention.scale,
        mask=mask,
        bias=None if attention.bias is None else block(attention.bias),
        rows=own_rows,
        causal=attention.causal,
    )
