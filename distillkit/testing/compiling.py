"""The check that a compiler traces a loss whole, and the torch that can."""

from __future__ import annotations

import torch

from .._needs import WHOLE_GRAPHS_OF_ATTENTIONS
from .strategies import Arguments
from .subject import CheckFailedError, Loss, gradients, require_close


def traces_whole(loss: Loss) -> bool:
    """Whether this torch can trace a loss without a break, as far as the loss's signature says."""
    return loss.spec.signature != "attention" or WHOLE_GRAPHS_OF_ATTENTIONS.is_met()


def compiles(loss: Loss, given: Arguments) -> None:
    """``torch.compile(fullgraph=True)`` traces it whole; value and gradient are the eager ones."""
    torch.compiler.reset()  # every loss is the same code object to it
    copy, student, _ = given.with_leaves()
    expected = loss(copy)
    compiled = torch.compile(loss.function_for(copy), fullgraph=True, backend="aot_eager")
    try:
        value = compiled(*copy.student, *copy.teacher, **copy.passed)
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        too_old = "" if traces_whole(loss) else WHOLE_GRAPHS_OF_ATTENTIONS.unmet()
        raise CheckFailedError(f"torch.compile(fullgraph=True): {line}{too_old}") from None
    finally:
        torch.compiler.reset()
    require_close(value, expected, "compiled value")
    pairs = zip(gradients(value, student), gradients(expected, student), strict=True)
    for found, right in pairs:
        require_close(found, right, "compiled gradient")
