"""Transparent wrappers: modules that only call the one module that they hold."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Self

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .._torch_private import children_of, slot_of

_HOLDS: dict[type[nn.Module], str] = {
    DataParallel: "module",
    DistributedDataParallel: "module",
    AveragedModel: "module",
}
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def inner_of(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The module inside of a wrapper and its attribute's name; None: the module is no wrapper.

    A wrapper is one of torch's (DDP, compile, averaging, FSDP, checkpointing), PEFT's, or any
    module whose ``forward`` takes nothing but ``*args`` and ``**kwargs`` and that has one child.
    """
    found = _inner_of_known(module)
    return _only_child(module) if found is None else found


def _inner_of_known(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The module inside of a wrapper of torch or PEFT."""
    for wrapper, name in _HOLDS.items():
        if isinstance(module, wrapper):
            return name, getattr(module, name)
    slot = slot_of(module)
    inner = None if slot is None else children_of(module)[slot]
    if slot is not None and inner is not None:
        return slot, inner
    if _is_of_peft(module, "PeftModel"):
        return "base_model", module.base_model  # type: ignore[return-value]
    if _is_of_peft(module, "BaseTuner"):
        return _only_child(module)
    return None


def _only_child(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The one child of a module whose ``forward`` passes on whatever it is given."""
    children = children_of(module)
    if len(children) != 1 or "forward" in vars(module):
        return None
    if not _takes_anything(type(module).forward):
        return None
    (name, inner), *_ = children.items()
    if inner is None or isinstance(inner, (nn.ModuleList, nn.ModuleDict)):
        return None
    return name, inner


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and what it wraps, outermost first."""
    yield model
    found = inner_of(model)
    while found is not None:
        yield found[1]
        found = inner_of(found[1])


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside every wrapper."""
    *_, innermost = layers_of(model)
    return innermost


def plain_names(model: nn.Module) -> dict[str, str]:
    """Name in ``named_modules()`` -> the name without what wrappers insert.

    Inside the model only wrappers of torch and PEFT are left out: a module of the model's author
    that passes everything on has a name that he knows.
    """
    plain: dict[str, str] = {}
    inserted: set[str] = set()
    outermost = {id(one) for one in layers_of(model)}
    for name, module in model.named_modules():
        parent, _, own = name.rpartition(".")
        above = plain.get(parent, "")
        if name == "" or name in inserted:
            plain[name] = above
        else:
            plain[name] = f"{above}.{own}" if above else own
        found = inner_of(module) if id(module) in outermost else _inner_of_known(module)
        if found is not None:
            inserted.add(f"{name}.{found[0]}" if name else found[0])
    return plain


def accepted_arguments(model: nn.Module) -> Accepted:
    """The names of the arguments that a model accepts, looking through wrappers.

    Where a ``forward`` passes ``**kwargs`` on to the class that it overrides, the names that this
    one takes count too.
    """
    names: dict[str, None] = {}
    for module in layers_of(model):
        own, *overridden = _signatures(module)
        names.update(dict.fromkeys(_named(own)))
        if not _takes_any(own):
            return Accepted(tuple(names), takes_any=False)
        for parameters in overridden:
            names.update(dict.fromkeys(_named(parameters)))
            if not _takes_any(parameters):
                break
    return Accepted(tuple(names), takes_any=True)


def _named(parameters: list[inspect.Parameter]) -> list[str]:
    return [one.name for one in parameters if one.kind in _BY_NAME]


def _takes_any(parameters: list[inspect.Parameter]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


class Accepted(tuple[str, ...]):
    """The names that a model's ``forward`` takes.

    Attributes:
        takes_any: whether it takes any other name as well, ``**kwargs``.
    """

    takes_any: bool

    def __new__(cls, names: tuple[str, ...], *, takes_any: bool) -> Self:
        """A tuple of the names."""
        made = super().__new__(cls, names)
        made.takes_any = takes_any
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[tuple[str, ...]], dict[str, bool]]:
        """The arguments of a copy."""
        return (tuple(self),), {"takes_any": self.takes_any}


def _signatures(module: nn.Module) -> Iterator[list[inspect.Parameter]]:
    """The parameters of ``forward``, and of those that it overrides; without ``self``."""
    yield list(inspect.signature(module.forward).parameters.values())
    owners = [cls for cls in type(module).__mro__ if "forward" in vars(cls)]
    for cls in owners[1:]:
        if cls is not nn.Module:
            yield list(inspect.signature(vars(cls)["forward"]).parameters.values())[1:]


def _is_of_peft(module: nn.Module, name: str) -> bool:
    """Whether it is of a class of peft, without importing it."""
    return any(
        cls.__name__ == name and cls.__module__.partition(".")[0] == "peft"
        for cls in type(module).__mro__
    )


@functools.cache  # every module of a model is asked, and they are of few classes
def _takes_anything(forward: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    kinds = [parameter.kind for parameter in parameters]
    return kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]
