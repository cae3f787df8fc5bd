"""Modules by the names that their author knows, and patterns over them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from torch import nn

from .._torch_private import children_of, is_compiled
from ..errors import CaptureError, did_you_mean
from .wrappers import plain_names


class ModuleNames:
    """The modules of a model by name.

    A name leaves out what wrappers insert (``module.``, ``_orig_mod.``, ``base_model.model.``); the
    name that ``model.named_modules()`` gives finds the same module.

    Attributes:
        modules: plain name -> module.
        paths: plain name -> the name that ``named_modules()`` gives.
        plain: that name -> plain name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.plain = plain_names(model)
        self.modules: dict[str, nn.Module] = {}
        self.paths: dict[str, str] = {}
        for path, module in model.named_modules():
            self.modules[self.plain[path]] = module
            self.paths[self.plain[path]] = path
        self._class = type(model).__name__

    def matching(self, pattern: str) -> list[str]:
        """The plain names that match, in the order of the model; ``#1`` at the end is ignored."""
        regex = pattern_regex(pattern.partition("#")[0])
        found = [name for name in self.modules if regex.fullmatch(name)]
        if found:
            return found
        return list(
            dict.fromkeys(name for path, name in self.plain.items() if regex.fullmatch(path))
        )

    def matching_all(self, patterns: Iterable[str]) -> list[str]:
        """The names that match a pattern, in the order of the patterns, then of the model.

        Raises:
            CaptureError: a pattern that matches nothing.
        """
        found: dict[str, None] = {}
        for pattern in patterns:
            matched = self.matching(pattern)
            if not matched:
                raise CaptureError(
                    f"pattern {pattern!r} matches no module of {self._class}; "
                    f"{did_you_mean(pattern, filter(None, self.modules))}"
                )
            found.update(dict.fromkeys(matched))
        return list(found)

    def method(self, name: str) -> tuple[nn.Module, str]:
        """The module and the method that ``"embeddings.visual_embed"`` names.

        Raises:
            CaptureError: no such module, or no such method.
        """
        path, _, method = name.rpartition(".")
        owner = self.modules.get(self.plain.get(path, path))
        if owner is None or not callable(getattr(owner, method, None)):
            raise CaptureError(
                f"{name!r} is no method of a module of {self._class}; "
                f"{did_you_mean(path, filter(None, self.modules))}"
            )
        return owner, method

    def compiled(self, model: nn.Module) -> list[str]:
        """The modules that run compiled now, each with what is in it."""
        found = [self.plain[path] for path, one in model.named_modules() if is_compiled(one)]
        return list(dict.fromkeys(found))


def named_modules(model: nn.Module) -> Mapping[str, nn.Module]:
    """Every module by the name that its author knows: what wrappers insert is left out."""
    return ModuleNames(model).modules


@functools.cache  # a training step asks for the same few, every time
def pattern_regex(pattern: str) -> re.Pattern[str]:
    """``*`` is one segment of a dotted name, ``**`` any number of them."""
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


def module_at(model: nn.Module, segments: Iterable[str]) -> nn.Module | None:
    """The module of a name as ``named_modules()`` gives it, in segments; None: it is not there."""
    module: nn.Module | None = model
    for segment in segments:
        if module is None:
            return None
        module = children_of(module).get(segment)  # getattr costs five times as much
    return module
