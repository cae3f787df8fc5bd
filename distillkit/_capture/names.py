"""Modules by the names that their author knows, and patterns over them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import CaptureError, did_you_mean

# how wrappers call what they wrap: not part of the name that the model's author knows
_WRAPPER_SEGMENTS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by the name that its author knows: what wrappers insert is left out."""
    named: dict[str, nn.Module] = {}
    wrappers: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            wrappers.add(f"{name}.module".lstrip("."))
        named[_plain(name, wrappers)] = module
    return named


def matching(patterns: Iterable[str], names: Iterable[str], model: nn.Module) -> list[str]:
    """The names that match a pattern, in the order of the patterns, then of the model.

    Raises:
        CaptureError: a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in names if pattern_regex(pattern).fullmatch(name)]
        if not matched:
            raise CaptureError(
                f"pattern {pattern!r} matches no module of {type(model).__name__}; "
                f"{did_you_mean(pattern, filter(None, names))}"
            )
        found.update(dict.fromkeys(matched))
    return list(found)


@functools.cache  # a training step asks for the same few, every time
def pattern_regex(pattern: str) -> re.Pattern[str]:
    if pattern == "**":
        return re.compile(".*")
    parts = []
    for segment in pattern.split("."):
        any_number = r"(?:[^.]+\.)*"
        one = re.escape(segment).replace(r"\*", "[^.]*") + r"\."
        parts.append(any_number if segment == "**" else one)
    if pattern.endswith(".**"):
        parts.append(r"[^.]+\.")
    return re.compile("".join(parts).removesuffix(r"\."))


def _plain(name: str, wrappers: set[str]) -> str:
    segments = name.split(".")
    kept = [
        segment
        for i, segment in enumerate(segments)
        if segment not in _WRAPPER_SEGMENTS and ".".join(segments[: i + 1]) not in wrappers
    ]
    return ".".join(kept)


def method_of(
    name: str, modules: dict[str, nn.Module], model: nn.Module
) -> tuple[str, nn.Module, str]:
    """The module and the method that ``"embeddings.visual_embed"`` names."""
    owner, _, method = name.rpartition(".")
    if owner not in modules or not callable(getattr(modules[owner], method, None)):
        raise CaptureError(
            f"{name!r} is no method of a module of {type(model).__name__}; "
            f"{did_you_mean(owner, filter(None, modules))}"
        )
    return name, modules[owner], method


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module go through ``torch.compile``."""
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return compiled or isinstance(module, OptimizedModule)


def compiled_modules(model: nn.Module) -> list[str]:
    """The modules that are compiled, each with what is in it, by the names their author knows."""
    wrappers: set[str] = set()
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            wrappers.add(f"{name}.module".lstrip("."))
        if is_compiled(module):
            found.append(_plain(name, wrappers))
    return found
