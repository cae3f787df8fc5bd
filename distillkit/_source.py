"""What an attention is known by, where its queries and keys do not say it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._transfer import trackable
from .errors import CaptureError, ShapeError


class Source(NamedTuple):
    """A map of queries x keys, held or computed on demand.

    Attributes:
        kind: ``"scores"``; ``"probabilities"``, whose logarithms are the scores; or ``"used"``:
            the weights that the values met, which are the probabilities as they are.
        of: the tensor ``(b, h, q, k)``, or what computes it.
    """

    kind: Literal["scores", "probabilities", "used"]
    of: Tensor | Callable[[], Tensor]

    @property
    def held(self) -> Tensor | None:
        """The tensor, where it need not be computed."""
        return self.of if isinstance(self.of, Tensor) else None

    def tensor(self) -> Tensor:
        """The tensor ``(b, h, q, k)``, computed where it is not held."""
        return trackable(self.of if isinstance(self.of, Tensor) else self.of())

    def scores(self) -> Tensor:
        """The scores that it stands for, ``(b, h, q, k)``."""
        tensor = self.tensor()
        return tensor if self.kind == "scores" else _logs(tensor)

    def map(self, function: Callable[[Tensor], Tensor]) -> Source:
        """The same through a function: now where it is held, and otherwise when it is computed."""
        if isinstance(self.of, Tensor):
            return self._replace(of=function(self.of))
        return self._replace(of=lambda: function(self.tensor()))

    @classmethod
    def concatenate(cls, parts: Sequence[Source | None]) -> Source | None:
        """The examples of several, one after another."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        kinds = {part.kind for part in known}
        if len(known) < len(parts) or ("used" in kinds and len(kinds) > 1):
            found = ", ".join("queries and keys" if p is None else p.kind for p in parts)
            raise ShapeError(
                "attentions to concatenate are known by the same thing; these are by "
                f"{found}. Attention.from_scores(attention.scores()) makes scores of each"
            )
        if len(kinds) > 1:
            return cls("scores", lambda: torch.cat([part.scores() for part in known]))
        if all(part.held is not None for part in known):
            return cls(known[0].kind, torch.cat([part.tensor() for part in known]))
        return cls(known[0].kind, lambda: torch.cat([part.tensor() for part in known]))


def _logs(probabilities: Tensor) -> Tensor:
    """Their logarithms, -inf where there is nothing."""
    if bool((probabilities < 0).any()):
        raise CaptureError(
            "this attention has negative weights (its model mixes heads or subtracts softmaxes), "
            "which no divergence compares; probabilities() has them as they are"
        )
    kept = probabilities > 0
    return torch.where(kept, torch.where(kept, probabilities, 1).log(), -torch.inf)
