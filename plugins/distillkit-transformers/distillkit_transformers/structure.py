"""Find modules by what they are made of: their names move between versions of transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from distillkit.errors import CaptureError

_PROJECTIONS = (
    {"query", "key", "value"},
    {"q_proj", "k_proj", "v_proj"},
    {"qkv"},
    {"in_proj_weight"},
)


def attention_pattern(
    model: nn.Module, root: str = "", *, within: str = "", never: str = ""
) -> str:
    """The pattern over all layers of the one stack of attention modules under ``root``.

    Args:
        model: the model that is called; the pattern is over its names.
        root: dotted name of the part to look in.
        within: a segment that the names must have, such as ``"crossattention"``.
        never: a segment that they must not have.

    Raises:
        CaptureError: no stack, or several; the candidates are listed.
    """
    names = [f"{root}.{name}".strip(".") for name in _attention_names(part(model, root))]
    candidates = list(dict.fromkeys(map(_pattern, names)))
    found = [
        pattern
        for pattern in candidates
        if (not within or within in pattern.split("."))
        and (not never or never not in pattern.split("."))
    ]
    if len(found) != 1:
        what = f"with {within!r} in their names " if within else ""
        raise CaptureError(
            f"expected one stack of attention modules {what}under {root or 'the top'!r} of "
            f"{type(model).__name__}, found {found or 'none'}; attention modules there: "
            f"{candidates or 'none'}. This version of transformers may build the model otherwise: "
            "describe it in an adapter file, which needs no Python"
        )
    return found[0]


def layers_of(pattern: str) -> str:
    """The pattern of the layers whose attention modules a pattern names.

    Examples:
        >>> layers_of("text_model.layers.*.self_attn")
        'text_model.layers.*'
    """
    before, _, _ = pattern.rpartition("*")
    return f"{before}*"


def part(model: nn.Module, name: str) -> nn.Module:
    """The module of a dotted name; ``""`` is the model."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        children = ", ".join(repr(child) for child, _ in model.named_children())
        raise CaptureError(
            f"{type(model).__name__} has no part {name!r}; it has {children}"
        ) from None


def first_part(model: nn.Module, names: Iterable[str]) -> str:
    """The first of these dotted names that the model has."""
    tried = list(names)
    for name in tried:
        try:
            model.get_submodule(name)
        except AttributeError:
            continue
        return name
    children = ", ".join(repr(child) for child, _ in model.named_children())
    raise CaptureError(
        f"{type(model).__name__} has none of the parts {', '.join(map(repr, tried))}; it has "
        f"{children}"
    )


def backbone(model: nn.Module, name: str) -> str:
    """``"vilt."`` where a head stands beside the backbone of that name, ``""`` for itself."""
    return f"{name}." if isinstance(getattr(model, name, None), nn.Module) else ""


def config_of(model: nn.Module) -> Any:
    """The model's configuration."""
    return model.config


def patch_size(vision: nn.Module) -> tuple[int, int] | None:
    """Height and width of a patch: the kernel of the convolution that cuts them."""
    for module in vision.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            height, width = module.kernel_size[-2:]
            return int(height), int(width)
    return None


def _attention_names(root: nn.Module) -> list[str]:
    return [
        name
        for name, module in root.named_modules()
        if any(wanted <= _members(module) for wanted in _PROJECTIONS)
    ]


def _members(module: nn.Module) -> set[str]:
    return {*dict(module.named_children()), *dict(module.named_parameters(recurse=False))}


def _pattern(name: str) -> str:
    return ".".join("*" if segment.isdigit() else segment for segment in name.split("."))
