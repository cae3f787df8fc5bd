"""Losses, attention capture and plugins for distilling vision-language models.

Public names are imported when they are first used, so that ``import distillkit`` and every
listing stay fast: neither torch nor transformers is loaded by them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same table for editors and type checkers
    from . import errors as errors
    from . import losses as losses
    from . import plot as plot
    from . import testing as testing
    from ._attention import Attention as Attention
    from ._backbone.adapter import Adapter as Adapter
    from ._backbone.adapter import adapter_for as adapter_for
    from ._backbone.axis import TokenAxis as TokenAxis
    from ._backbone.backbone import Backbone as Backbone
    from ._backbone.backbone import Run as Run
    from ._backbone.declarative import DeclarativeAdapter as DeclarativeAdapter
    from ._backbone.directions import build_signals as build_signals
    from ._backbone.directions import layer_sources as layer_sources
    from ._backbone.layout import ModalityTokens as ModalityTokens
    from ._backbone.layout import StreamTokens as StreamTokens
    from ._backbone.layout import TokenLayout as TokenLayout
    from ._backbone.offer import BackboneCheck as BackboneCheck
    from ._backbone.offer import OfferedSignal as OfferedSignal
    from ._backbone.part import adapt as adapt
    from ._backbone.signals import Signals as Signals
    from ._backbone.tokens import grid_extents as grid_extents
    from ._backbone.tokens import select_tokens as select_tokens
    from ._cache.cache import SignalCache as SignalCache
    from ._capture.capture import capture as capture
    from ._capture.find import AttentionTable as AttentionTable
    from ._capture.find import FoundAttention as FoundAttention
    from ._capture.find import find_attention as find_attention
    from ._capture.outputs import attach_to_outputs as attach_to_outputs
    from ._capture.record import Record as Record
    from ._capture.wrappers import accepted_arguments as accepted_arguments
    from ._objective.align.overlap import overlap as overlap
    from ._objective.align.projector import Projector as Projector
    from ._objective.checks import Check as Check
    from ._objective.checks import TermCheck as TermCheck
    from ._objective.distiller import Distilled as Distilled
    from ._objective.distiller import Distiller as Distiller
    from ._objective.meter import Meter as Meter
    from ._objective.objective import Objective as Objective
    from ._objective.objective import Result as Result
    from ._objective.recipe import Recipe as Recipe
    from ._objective.recipe import load_recipe as load_recipe
    from ._objective.schedule import Schedule as Schedule
    from ._objective.term import Term as Term
    from ._objective.weighting.protocol import StepStatistics as StepStatistics
    from ._plugins.hookspecs import hookimpl as hookimpl
    from ._plugins.offers import signals_of_file as signals_of_file
    from ._plugins.registry import register as register
    from ._plugins.specs import AdapterSpec as AdapterSpec
    from ._plugins.specs import AlignerSpec as AlignerSpec
    from ._plugins.specs import LossSpec as LossSpec
    from ._plugins.specs import OperationSpec as OperationSpec
    from ._plugins.specs import RecipeSpec as RecipeSpec
    from ._plugins.specs import WeightingSpec as WeightingSpec
    from ._report.log import RunLog as RunLog
    from ._report.watch import Watch as Watch
    from ._view.view import View as View
    from ._view.view import view as view

_HOMES = {
    "Adapter": "_backbone.adapter",
    "AdapterSpec": "_plugins.specs",
    "AlignerSpec": "_plugins.specs",
    "Attention": "_attention",
    "AttentionTable": "_capture.find",
    "Backbone": "_backbone.backbone",
    "BackboneCheck": "_backbone.offer",
    "Check": "_objective.checks",
    "DeclarativeAdapter": "_backbone.declarative",
    "Distilled": "_objective.distiller",
    "Distiller": "_objective.distiller",
    "FoundAttention": "_capture.find",
    "LossSpec": "_plugins.specs",
    "Meter": "_objective.meter",
    "ModalityTokens": "_backbone.layout",
    "Objective": "_objective.objective",
    "OfferedSignal": "_backbone.offer",
    "OperationSpec": "_plugins.specs",
    "Projector": "_objective.align.projector",
    "Recipe": "_objective.recipe",
    "RecipeSpec": "_plugins.specs",
    "Record": "_capture.record",
    "Result": "_objective.objective",
    "Run": "_backbone.backbone",
    "RunLog": "_report.log",
    "Schedule": "_objective.schedule",
    "SignalCache": "_cache.cache",
    "Signals": "_backbone.signals",
    "StepStatistics": "_objective.weighting.protocol",
    "StreamTokens": "_backbone.layout",
    "Term": "_objective.term",
    "TermCheck": "_objective.checks",
    "TokenAxis": "_backbone.axis",
    "TokenLayout": "_backbone.layout",
    "WeightingSpec": "_plugins.specs",
    "View": "_view.view",
    "Watch": "_report.watch",
    "accepted_arguments": "_capture.wrappers",
    "adapt": "_backbone.part",
    "adapter_for": "_backbone.adapter",
    "attach_to_outputs": "_capture.outputs",
    "capture": "_capture.capture",
    "find_attention": "_capture.find",
    "grid_extents": "_backbone.tokens",
    "hookimpl": "_plugins.hookspecs",
    "layer_sources": "_backbone.directions",
    "load_recipe": "_objective.recipe",
    "overlap": "_objective.align.overlap",
    "register": "_plugins.registry",
    "build_signals": "_backbone.directions",
    "select_tokens": "_backbone.tokens",
    "signals_of_file": "_plugins.offers",
    "view": "_view.view",
}
_MODULES = ("errors", "losses", "plot", "testing")

__all__ = sorted([*_HOMES, *_MODULES])

__version__: str  # read from the distribution's metadata when it is asked for


if not TYPE_CHECKING:  # a checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return importlib.import_module(f".{name}", __name__)
        if name in _HOMES:
            return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        if name == "__version__":
            from ._version import installed_version

            return installed_version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
