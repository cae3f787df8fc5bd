"""What a backbone does about its model's output projection, remembered between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._capture.skipping import Skipped, skipping
from ..errors import SignalError
from .depth import Wanted
from .head import Head, asks_for_head, check_linear, checked_head, find_head, is_plain

SKIPPED = (
    "the output projection did not run in this forward, since no active term compares logits and "
    "one takes them from head.input and head.weight"
)


class Projection:
    """The output projection of one model: found, skipped where nobody needs it, and verified.

    Args:
        model: the model that is called.
        named: the projection's dotted name, where the adapter says it.
    """

    def __init__(self, model: nn.Module, named: str | None) -> None:
        self._model, self._named = model, named
        self._head: Head | None = None
        self._can_skip = True

    def wanted(self, wanted: Wanted | None) -> nn.Linear | None:
        """The projection, where its signals are wanted, or all are and it is a plain one.

        Raises:
            SignalError: its signals are wanted, and it is not known or no plain linear layer.
        """
        if wanted is not None and not asks_for_head(wanted):
            return None
        try:
            found = find_head(self._model, self._named)
            if found is not None:
                return check_linear(found, self._model)
        except SignalError:
            if wanted is None:
                return None
            raise
        if wanted is None:
            return None
        raise SignalError(
            f"no output projection of {type(self._model).__name__} is known: it has no "
            'get_output_embeddings(). Name the module in the adapter, head = "lm_head"'
        )

    def run(
        self, call: Callable[[], Any], linear: nn.Linear | None, *, skip: bool
    ) -> tuple[Any, Skipped | None]:
        """What the model returned, and where its projection was skipped.

        A model that does something with its logits that needs their numbers runs again with them,
        on the same random numbers, and from then on always.
        """
        if linear is None or not skip or not self._can_skip:
            return call(), None
        with skipping(linear, linear.weight.shape[0]) as skipped:
            try:
                return call(), skipped
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever reads the missing numbers; a run with them raises the rest
                if not skipped.outputs:
                    raise
        self._can_skip = False
        skipped.rewind()
        return call(), None

    def is_known(self, linear: nn.Linear, skipped: Skipped, logits: Tensor | None) -> bool:
        """Whether it is known what follows the projection, in a run without it.

        The logits that the model returned are then the very tensor that stood in for the
        projection's output, or a run with logits has shown it before. Otherwise the random states
        are brought back, for a run with logits.
        """
        if self._head is not None and self._head.module is linear:
            return True
        if len(skipped.outputs) == 1 and logits is skipped.outputs[0]:
            self._head = Head(linear)
            return True
        skipped.rewind()
        return False

    def signals(
        self, linear: nn.Linear, entered: list[Any], logits: Tensor | None
    ) -> dict[str, Callable[[], Tensor]]:
        """The signals of the projection and of what went into it, by name.

        Raises:
            SignalError: several calls or none; logits that are something else.
        """
        hidden = only_input(entered)
        head = self.head(linear, hidden, logits)
        return {"head.input": lambda: hidden, **dict(head.signals())}

    def head(self, linear: nn.Linear, hidden: Tensor, logits: Tensor | None) -> Head:
        """The projection and what follows it, verified once by the logits where there are any.

        Raises:
            SignalError: the logits are something else.
        """
        if self._head is not None and self._head.module is linear:
            return self._head
        if hidden.numel() == 0:
            return Head(linear)  # nothing to compare; the next batch shows it
        if logits is None:
            if not is_plain(self._model):
                raise SignalError(
                    "the configuration of the model names a soft cap or scale of its logits, and "
                    "its adapter offers no logits to verify head.input and head.weight by"
                )
            self._head = Head(linear)
        else:
            self._head = checked_head(linear, self._model, hidden, logits)
        return self._head


def only_input(entered: list[Any]) -> Tensor:
    """What went into the projection in the one call of it.

    Raises:
        SignalError: no call was seen, or several.
    """
    if len(entered) == 1 and isinstance(entered[0], Tensor):
        return entered[0]
    why = (
        f"it was called {len(entered)} times in one forward"
        if entered
        else "it was not called with a tensor, or was compiled before it was captured"
    )
    raise SignalError(f"head.input is what goes into the output projection, and {why}")


def logits_in(signals: Mapping[str, Any]) -> Tensor | None:
    """The logits among signals; None: there are none."""
    found = signals["logits"] if "logits" in signals else None  # noqa: SIM401 (get raises)
    return found if isinstance(found, Tensor) else None
