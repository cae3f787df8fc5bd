"""A module that runs without computing: its output is of the right shape, and holds no numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_LOCK = threading.RLock()


class Skipped:
    """One run in which a module does not compute.

    Attributes:
        outputs: what the module returned in its place, of every call.
        random: the random states before the run, for whoever repeats it.
    """

    def __init__(self, width: int) -> None:
        self.outputs: list[Tensor] = []
        self.random: tuple[Tensor, list[Tensor]] = _random_state()
        self._width, self._thread = width, threading.get_ident()

    def is_here(self) -> bool:
        """Whether the calls of this thread are meant."""
        return self._thread == threading.get_ident()

    def output(self, x: Tensor) -> Tensor:
        """A tensor ``(..., width)`` on the meta device, which occupies no memory.

        Whoever reads its numbers gets torch's error; shapes, casts and losses go on working.
        """
        made = torch.empty(*x.shape[:-1], self._width, dtype=x.dtype, device="meta")
        self.outputs.append(made)
        return made

    def rewind(self) -> None:
        """Bring the random states back to where they were before the run."""
        cpu, gpus = self.random
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


def _random_state() -> tuple[Tensor, list[Tensor]]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), gpus


class _Forward:
    """The forward of a module that some threads skip; a copy of the module gets the plain one."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.replaced = vars(module).get("forward")  # somebody's own
        self.original = module.forward
        self.skipped: tuple[Skipped, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = [one for one in self.skipped if one.is_here()]
        if here and len(args) == 1 and not kwargs:
            return here[-1].output(args[0])
        return self.original(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self._module).forward.__get__(memo[id(self._module)])

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._module, "forward")


@contextmanager
def skipping(module: nn.Module, width: int) -> Iterator[Skipped]:
    """Let a module return no numbers in this thread, until the block ends, however it ends.

    Other threads go on computing. Blocks may overlap, and end in any order; the last one leaves the
    module as it was.

    Args:
        module: any module of one tensor, such as an output projection.
        width: the last axis of what it returns.
    """
    skipped = Skipped(width)
    with _LOCK:
        forward: Any = vars(module).get("forward")
        if not isinstance(forward, _Forward):
            forward = _Forward(module)
            object.__setattr__(module, "forward", forward)
        standing: _Forward = forward
        standing.skipped = (*standing.skipped, skipped)
    try:
        yield skipped
    finally:
        with _LOCK:
            standing.skipped = tuple(one for one in standing.skipped if one is not skipped)
            if not standing.skipped and vars(module).get("forward") is standing:
                replaced = standing.replaced
                if replaced is None:
                    object.__delattr__(module, "forward")
                else:
                    object.__setattr__(module, "forward", replaced)
