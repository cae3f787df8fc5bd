"""What needs a newer torch than the library itself does, each by its name."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Need(NamedTuple):
    """A feature, and the first torch that it was seen to work with."""

    feature: str
    major: int
    minor: int

    @property
    def version(self) -> str:
        """As torch writes it."""
        return f"{self.major}.{self.minor}"

    def is_met(self) -> bool:
        """Whether the torch that runs has it."""
        major, minor = torch.__version__.split(".")[:2]
        return (int(major), int(minor)) >= (self.major, self.minor)

    def unmet(self) -> str:
        """What a message says of it where torch is too old; empty where it is not.

        Examples:
            >>> Need("flying", 99, 1).unmet()
            '; flying needs torch 99.1, and this is ...'
        """
        if self.is_met():
            return ""
        return f"; {self.feature} needs torch {self.version}, and this is {torch.__version__}"


WHOLE_GRAPHS_OF_ATTENTIONS = Need("torch.compile(fullgraph=True) of a loss on attentions", 2, 9)
CAPTURE_IN_COMPILED_CODE = Need("capture inside of torch.compile", 2, 13)
NEEDS = (WHOLE_GRAPHS_OF_ATTENTIONS, CAPTURE_IN_COMPILED_CODE)
