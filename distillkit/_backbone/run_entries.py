"""A run of tokens, and the entries of the batch that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import SignalError, did_you_mean
from .token_run import TokenRun
from .tokens import chosen


class RunEntries(NamedTuple):
    """A run, and the entries of the batch in the order of its examples."""

    run: TokenRun
    batch: Mapping[str, Any]
    example_index: Tensor | None

    def read(self, key: str) -> Tensor:
        """An entry, example by example."""
        value = entry(self.batch, key)
        if not isinstance(value, Tensor):
            raise SignalError(
                f"the {self.run.modality} run reads the batch entry {key!r}, which is "
                f"{type(value).__name__}; expected a tensor"
            )
        return chosen(value, self.example_index) if value.ndim else value

    def known(self, key: str | None) -> Tensor | None:
        """An entry that may be None, which says that it is absent."""
        if key is None or (self.batch.get(key) is None and is_none(self.batch, key)):
            return None
        return self.read(key)


def is_none(batch: Mapping[str, Any], key: str) -> bool:
    """Whether an entry is there and says by None that it is absent."""
    says_none = getattr(batch, "says_none", None)
    if says_none is not None:
        return bool(says_none(key))
    return key in batch and batch[key] is None


def entry(batch: Mapping[str, Any], key: str) -> Any:
    """An entry of the batch, or an error that says which was meant."""
    value = batch.get(key)
    if value is None and key not in batch:
        raise SignalError(f"the batch has no entry {key!r}; {did_you_mean(key, batch)}")
    return value
