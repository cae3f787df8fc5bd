"""Attention and outputs of chosen modules, recorded while the model runs inside a ``with``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .._torch_private import hooks_before
from .diagnosis import check_recorded, warn_of_missing
from .record import Record
from .scope import Scope
from .watcher import Hooks


@contextmanager
def capture(
    model: nn.Module,
    *patterns: str,
    outputs: Iterable[str] = (),
    returns: Iterable[str] = (),
    detach: bool = False,
) -> Iterator[Record]:
    """Record the attention of chosen modules while ``model`` runs inside the ``with`` block.

    The model computes what it always computes, in whichever implementation it runs; nothing stays
    on it afterwards. A record holds the model's last forward.

    Calls of other threads are not recorded, so that two threads may capture one model. Under
    ``torch.compile`` open the capture before the first compiled call, since compiled code does not
    notice hooks that come later. Such a model keeps the hooks, inert between captures: the next
    capture of the same modules goes on with them, and nothing is compiled again.

    Args:
        model: any module, wrapped in DDP or not; it is the one that is called.
        patterns: dotted names of modules; ``*`` is one segment, ``**`` any number. None at all
            means every module. An operation belongs to the innermost chosen module.
        outputs: patterns of modules whose output is wanted: ``record.output(name)``. ``#*`` at the
            end keeps those of all calls of a forward, not of the last alone.
        returns: bound methods whose return value is wanted, ``"embeddings.visual_embed"``:
            ``record.returned(name)``; ``#*`` as of outputs.
        detach: record without gradient.

    Raises:
        CaptureError: a pattern matches no module, or a chosen module recorded nothing.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Module()
        >>> layer.forward = lambda x: (x @ x.mT).softmax(-1) @ x
        >>> model = torch.nn.Sequential(layer)
        >>> with capture(model, "0") as record:
        ...     _ = model(torch.zeros(1, 2, 3, 4))
        >>> record["0"]
        Attention(b=1, h=2, q=3, k=3)
    """
    outputs, returns = tuple(outputs), tuple(returns)
    scope = _kept_on(model, (patterns, outputs, returns))
    if scope is None:
        scope = Scope(model, patterns, outputs=outputs, returns=returns)
    with scope.recording(detach=detach) as recorder:
        record = Record(recorder)
        yield record
        check_recorded(record, recorder, scope.compiled())
        # of whoever wrote the with statement: past this function, contextlib and __exit__
        warn_of_missing(record, recorder, scope.names.modules, stacklevel=5)


def _kept_on(model: nn.Module, key: tuple[Any, ...]) -> Scope | None:
    """The scope whose hooks an earlier capture of the same modules left on a compiled model."""
    for hook in hooks_before(model):
        hooks = getattr(hook, "__self__", None)
        if not isinstance(hooks, Hooks) or not hooks.belongs_to(model) or hooks.watcher is None:
            continue
        scope: Scope = hooks.watcher.scope
        if scope.is_traced and scope.key == key and not scope.is_running and scope.is_current():
            return scope
    return None
