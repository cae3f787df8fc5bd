"""What is missing from a record, and why: a capture never stays silent about it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from .._needs import CAPTURE_IN_COMPILED_CODE
from ..errors import CaptureError, CaptureWarning
from .record import Record, nothing_of
from .recorder import Recorder

_AFTER_COMPILING = "; compiled code does not notice a later capture"


def check_recorded(record: Record, recorder: Recorder, compiled: Iterable[str] = ()) -> None:
    """Refuse a capture in which a chosen module never recorded anything.

    Args:
        record: what was recorded.
        recorder: what wrote it.
        compiled: the modules that run compiled, with everything in them.

    Raises:
        CaptureError: what recorded nothing, and why.
    """
    recorder.keep_score()
    compiled = list(compiled)
    check_not_stale(recorder, compiled)
    unread = record.unread
    if recorder.chosen.strict:
        for reason in unread.values():
            raise CaptureError(reason)
    if not recorder.ever and not recorder.outputs and not recorder.returned:
        reasons = [nothing_of(name, recorder) for name, _ in recorder.notices]
        raise CaptureError(
            next(iter([*unread.values(), *reasons]), "")
            or "nothing was recorded: the model that was given to capture did not run inside "
            "the `with` block, or no chosen module computes a softmax of query @ key^T in "
            f"Python (chosen: {_sample(recorder.chosen.classes)})"
            + (_AFTER_COMPILING + CAPTURE_IN_COMPILED_CODE.unmet() if compiled else "")
        )
    missing = [name for name in recorder.chosen.classes if name not in recorder.ever]
    if recorder.chosen.strict and missing:
        raise CaptureError(nothing_of(missing[0], recorder))


def check_not_stale(recorder: Recorder, compiled: Iterable[str]) -> None:
    """Refuse a model whose compiled code is older than the capture and therefore blind to it.

    Args:
        recorder: what was written down.
        compiled: the modules that run compiled, with everything in them.
    """
    recorder.ran_ever.update(recorder.ran)
    watched = recorder.chosen.classes if recorder.held is None else recorder.held
    for name in compiled:
        if not _ran_in(name, recorder) and any(_is_in(chosen, name) for chosen in watched):
            raise CaptureError(
                f"module {name!r} was compiled before it was captured, and compiled code does "
                "not notice hooks that come later; open the capture (or make the Distiller) "
                "before the first compiled call, or call torch.compiler.reset() first"
                f"{CAPTURE_IN_COMPILED_CODE.unmet()}"
            )


def warn_of_missing(
    record: Record, recorder: Recorder, modules: Mapping[str, nn.Module], stacklevel: int
) -> None:
    """Where no pattern chose: name the attentions that are missing from the record."""
    if recorder.chosen.strict:
        return
    missing = {**unseen(record, recorder, modules), **record.unread}
    if missing:
        lines = [f"  {name or '(the model)'}: {reason}" for name, reason in missing.items()]
        warnings.warn(
            "\n".join(["the record lacks the attention of modules that look like it:", *lines]),
            CaptureWarning,
            stacklevel=stacklevel,
        )


def unseen(
    record: Record, recorder: Recorder, modules: Mapping[str, nn.Module]
) -> Mapping[str, str]:
    """Modules that ran, look like attention and show none that is followed, and why."""
    unread = record.unread
    owners = {name for name, _ in recorder.seen if name in unread or record._own(name)}
    notices = dict(recorder.notices)
    found = {}
    for name in dict.fromkeys(recorder.ran):
        looks = looks_like_attention(modules[name]) or name in recorder.blind
        if looks and not any(_is_related(one, owners) for one in _with_relatives(name, modules)):
            found[name] = notices.get(
                name, "no softmax of a product of queries and keys was seen in it"
            )
    return found


def looks_like_attention(module: nn.Module) -> bool:
    """By its class's name, or by its projections of queries, keys and values."""
    if re.search(r"attention|attn", type(module).__name__, re.IGNORECASE):
        return True
    linear = {n: child for n, child in module.named_children() if isinstance(child, nn.Linear)}
    if any(child.out_features == 3 * child.in_features for child in linear.values()):
        return len(linear) >= 2
    return {"q", "k", "v"} <= {name[0].lower() for name in linear}


def _ran_in(compiled: str, recorder: Recorder) -> bool:
    """Whether anything in a compiled module called its hooks."""
    return not recorder.started or any(_is_in(name, compiled) for name in recorder.ran_ever)


def _is_in(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")


def _with_relatives(name: str, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """The module, and those around it that look like the attention which it is a part of."""
    yield name
    while name:
        name = name.rpartition(".")[0]
        if name in modules and looks_like_attention(modules[name]):
            yield name


def _is_related(name: str, owners: Iterable[str]) -> bool:
    """Whether the module is inside of one that was read, or one that was read is inside of it."""
    inside = any(owner and f"{name}.".startswith(f"{owner}.") for owner in owners)
    return inside or any(
        owner == name or owner.startswith(f"{name}.") or not name for owner in owners
    )


def _sample(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:5])
    return shown if len(listed) <= 5 else f"{shown} and {len(listed) - 5} more"
