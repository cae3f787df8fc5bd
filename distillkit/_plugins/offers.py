"""The signals that an adapter file promises, read off its tables without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DIRECTIONS = ("text_to_image", "image_to_text")


def signals_of_file(tables: Mapping[str, Any]) -> tuple[str, ...]:
    """The signals that the models of an adapter file offer, sorted, for :class:`AdapterSpec`.

    A model of the family may lack one of them: a class without a head has no ``logits``.

    Args:
        tables: the file, as ``tomllib`` reads it.

    Examples:
        >>> signals_of_file({"streams": {"joint": "blocks.*"}, "logits": "logits"})
        ('attention.image_to_text', 'attention.joint', 'attention.text_to_image', 'logits')
    """
    streams = tables.get("streams", {})
    found = {f"attention.{stream}" for stream in streams}
    if "joint" in streams or {"text", "image"} <= set(streams):
        found.update(f"attention.{direction}" for direction in DIRECTIONS)
    if "through" in tables:
        found.add("attention.text_to_image")
    found.update(f"hidden.{stream}" for stream in tables.get("hidden", {}))
    found.update(f"embedding.{modality}" for modality in tables.get("embedding", {}))
    if "logits" in tables:
        found.add("logits")
    return tuple(sorted(found.difference(tables.get("absent", {}))))
