"""Alignment losses: pure functions of ``(student, teacher)``, unreduced over leading axes.

Every loss consumes the axes of its signature and returns one value for each position that is
left; ``masked_mean`` makes a number of them.
"""

from ._attention import attention_kl as attention_kl
from ._attention import shared_rows as shared_rows
from ._divergence import kl_divergence as kl_divergence
from ._feature import cosine_distance as cosine_distance
from ._feature import mse as mse
from ._reduce import masked_mean as masked_mean

__all__ = [
    "attention_kl",
    "cosine_distance",
    "kl_divergence",
    "masked_mean",
    "mse",
    "shared_rows",
]
