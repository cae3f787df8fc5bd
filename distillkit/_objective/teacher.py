"""The teacher of a distiller: frozen while somebody distils from it, and where it lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from .._backbone.adapter import Adapter
from .._backbone.backbone import Backbone
from .._backbone.batch import SideOfBatch
from .._backbone.depth import Wanted
from .._backbone.head import can_do_without_logits
from .._backbone.signals import Signals
from ..errors import SignalError
from .objective import Objective

_LOCK = threading.Lock()
_QUANTISED = ("is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit", "quantization_method")

SIGNALS = "teacher_signals"
"""The batch entry in which a data loader brings the teachers' signals."""

Flags: TypeAlias = "tuple[set[str], set[str]]"
"""The names of parameters that learn, and of modules in training mode."""


def flags_of(model: nn.Module) -> Flags:
    """Which parameters of a model learn, and which of its modules are in training mode."""
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    return learns, {name for name, module in model.named_modules() if module.training}


def flags_before(teacher: nn.Module) -> Flags | None:
    """The flags that its only distiller gives back; None: it has none, or several."""
    state = _frozen.get(teacher)
    return (state.learns, state.trains) if state is not None and state.distillers == 1 else None


class _State:
    """The state of a teacher before the first of its distillers froze it."""

    def __init__(self, model: nn.Module) -> None:
        self.distillers = 0
        self.learns, self.trains = flags_of(model)

    def put_back(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self.learns:
                parameter.requires_grad = True
        for name, module in model.named_modules():
            module.training = name in self.trains


_frozen: weakref.WeakKeyDictionary[nn.Module, _State] = weakref.WeakKeyDictionary()


@runtime_checkable
class SignalSource(Protocol):
    """What stands in for a teacher that does not run here: a :class:`SignalCache`, a server."""

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that it reads."""
        ...

    def check(self, recipe: Objective) -> None:
        """Refuse a recipe that needs signals which it does not have."""
        ...

    def run(self, view: SideOfBatch, wanted: Wanted | None) -> Signals:
        """The teacher's signals for the examples of a batch."""
        ...


class Teacher:
    """A frozen model in eval mode, which several distillers may share.

    Args:
        model: the teacher; frozen until :meth:`close`.
        adapter: as in :func:`adapter_for`.
    """

    def __init__(self, model: nn.Module, adapter: Adapter | str | Path | None) -> None:
        self._given = adapter
        self.backbone = Backbone(model, adapter)
        _freeze(model)

    @property
    def model(self) -> nn.Module:
        """The model that is imitated."""
        return self.backbone.model

    @property
    def scope(self) -> Any:
        """The scope of its capture."""
        return self.backbone.scope

    def run(self, view: SideOfBatch, wanted: Wanted | None) -> Signals:
        """Its signals for a batch, without gradient, in eval mode whoever called ``train``."""
        model = self.model
        if _trains(model):
            model.eval()
        with torch.no_grad():
            skip = wanted is not None and can_do_without_logits(wanted)
            return self.backbone.trace(view, wanted=wanted, skip_logits=skip).signals

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a student that ``to`` moves to another device; a dtype is the student's own.

        A teacher that was placed by somebody (dispatched over devices, offloaded, quantised, on the
        meta device in part) stays where it is. So does one of a student that goes to the meta
        device, as accelerate sends it before it shards it: the student's weights are loaded again
        from a state dict, in which the teacher's are not.
        """
        here = _only_device(self.model)
        if here is None or _is_placed(self.model):
            return
        # to(), cuda(), cpu() and the like change an integer's device and nothing else of it
        there = function(torch.empty(0, dtype=torch.uint8, device=here)).device
        if there not in (here, torch.device("meta")):
            self.model.to(there)

    def close(self) -> None:
        """Unfreeze the model, where no other distiller needs it frozen, and record no more."""
        if not self.backbone.is_closed:
            self.backbone.close()
            _thaw(self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        state = _frozen.get(self.model)
        backbone = self.backbone.__deepcopy__(memo)
        return _restore(backbone, state)

    def __reduce__(self) -> tuple[Any, ...]:
        state = _frozen.get(self.model)
        learns = None if state is None else (frozenset(state.learns), frozenset(state.trains))
        return _unpickle, (self.backbone, learns)


def checked_source(
    source: object, objective: Objective, adapter: Adapter | str | Path | None
) -> SignalSource:
    """What stands in for a teacher, if it has what the recipe needs.

    Raises:
        SignalError: neither a model nor such a thing; an adapter, where no model runs.
    """
    if not isinstance(source, SignalSource):
        raise SignalError(
            f"a teacher is a model, a SignalCache, or None; got {type(source).__name__}"
        )
    if adapter is not None:
        raise SignalError(
            "teacher_adapter= is for a model; the signals of a cache were read when it was filled"
        )
    source.check(objective)
    return source


def _unpickle(backbone: Backbone, before: tuple[frozenset[str], frozenset[str]] | None) -> Teacher:
    state = _State(backbone.model)
    if before is not None:
        state.learns, state.trains = set(before[0]), set(before[1])
    return _restore(backbone, state)


def _restore(backbone: Backbone, state: _State | None) -> Teacher:
    """A teacher of a copied model, which is frozen already and knows what it was before."""
    made = Teacher.__new__(Teacher)
    made.backbone = backbone
    with _LOCK:
        known = _frozen.get(backbone.model)
        if known is None:
            known = _frozen[backbone.model] = _State(backbone.model)
            if state is not None:
                known.learns, known.trains = set(state.learns), set(state.trains)
        known.distillers += 1
    return made


def _freeze(model: nn.Module) -> None:
    with _LOCK:
        state = _frozen.get(model)
        if state is None:
            state = _frozen[model] = _State(model)
        state.distillers += 1
    model.eval().requires_grad_(requires_grad=False)


def _thaw(model: nn.Module) -> None:
    with _LOCK:
        state = _frozen.get(model)
        if state is None:
            return
        state.distillers -= 1
        if state.distillers <= 0:
            del _frozen[model]
            state.put_back(model)


def _trains(model: nn.Module) -> bool:
    """Whether any module is in training mode: one that was added later, too."""
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is not None:
            if module.training:
                return True
            left.extend(module._modules.values())  # noqa: SLF001 (modules() costs five times as much)
    return False


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _only_device(model: nn.Module) -> torch.device | None:
    """The device that all parameters are on; None: there are several, or no parameters."""
    devices = {parameter.device for parameter in model.parameters()}
    return devices.pop() if len(devices) == 1 else None


def _is_placed(model: nn.Module) -> bool:
    """Whether somebody decided where its parts are: accelerate's dispatch, or a quantiser."""
    if getattr(model, "hf_device_map", None) or any(getattr(model, n, None) for n in _QUANTISED):
        return True
    return any(hasattr(module, "_hf_hook") for module in model.modules())
