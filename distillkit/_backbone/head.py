"""The output projection of a model: where it is, and what its numbers become before the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._attention import widen
from .._capture.wrappers import layers_of, unwrapped
from ..errors import SignalError, did_you_mean

PARAMETERS = frozenset({"head.weight", "head.bias", "head.softcap"})
"""The signals of a model itself, which have no axis of examples."""

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "logit_softcap")
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale")
_WITHOUT_LOGITS = frozenset({"head", "hidden", "attention", "attention_mass"})
_ROWS = 8  # tokens whose logits are compared with the projection


@dataclass(frozen=True)
class Head:
    """The output projection of one model, once it is known what follows it.

    Attributes:
        module: a plain linear layer, onto the classes.
        softcap: c, where the logits are ``c * tanh(projection / c)``; None: they are the
            projection.
    """

    module: nn.Linear
    softcap: float | None = None

    def signals(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """The signals of the projection itself, by name."""
        weight, bias, softcap = self.module.weight, self.module.bias, self.softcap
        yield "head.weight", lambda: weight
        if bias is not None:
            yield "head.bias", lambda: bias
        if softcap is not None:
            yield "head.softcap", lambda: torch.tensor(softcap, dtype=torch.float64)


def asks_for_head(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether one of these signals is of the output projection."""
    return any(name.startswith("head.") for name in names)


def find_head(model: nn.Module, named: str | None) -> nn.Module | None:
    """The output projection of a model; None: it has none that is known.

    Args:
        model: any module, wrapped or not.
        named: its dotted name, where the adapter says it; None: transformers'
            ``get_output_embeddings()`` does.

    Raises:
        SignalError: no module of that name.
    """
    if named is not None:
        inner = unwrapped(model)
        modules: dict[str, nn.Module] = dict(inner.named_modules(remove_duplicate=False))
        if named not in modules:
            raise SignalError(
                f"head = {named!r}: {type(inner).__name__} has no module of that name; "
                f"{did_you_mean(named, modules)}"
            )
        return modules[named]
    for layer in layers_of(model):
        method = getattr(layer, "get_output_embeddings", None)
        try:
            found = method() if callable(method) else None
        except (AttributeError, NotImplementedError):  # a class of transformers without a head
            found = None
        if isinstance(found, nn.Module):
            return found
    return None


def check_linear(module: nn.Module, model: nn.Module) -> nn.Linear:
    """The head as a linear layer whose weight and bias say all that it computes.

    Raises:
        SignalError: another module: adapters of PEFT on it, quantised weights, sharded ones.
    """
    cls, of = type(module).__name__, type(unwrapped(model)).__name__
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise SignalError(
            f"the output projection of {of} is a {cls}, of which the weight alone does not say "
            "what it computes; head.weight is of a plain nn.Linear. Merge or leave out adapters of "
            'the head, or compare logits: on = "logits.response"'
        )
    weight = module.weight
    if not weight.is_floating_point() or weight.ndim != 2 or weight.is_meta:
        raise SignalError(
            f"the output projection of {of} has a weight {weight.dtype} {tuple(weight.shape)} "
            f"on {weight.device}, of a quantised or offloaded layer; head.weight is floating "
            "point (v, d), and there"
        )
    if hasattr(weight, "full_tensor"):
        raise SignalError(
            f"the output projection of {of} is sharded here, and head.weight is whole: shard the "
            'model without its head, or compare logits: on = "logits.response"'
        )
    return module


def checked_head(linear: nn.Linear, model: nn.Module, hidden: Tensor, logits: Tensor) -> Head:
    """The head, once its projection has proved to be the logits, at some tokens.

    Args:
        linear: the projection.
        model: whose it is, of which the configuration may name a soft cap.
        hidden: what went into it, ``(..., d)``.
        logits: what the model made of it, ``(..., v)``.

    Raises:
        SignalError: the logits are another function of the projection; what is known of it.
    """
    of, config = type(unwrapped(model)).__name__, getattr(unwrapped(model), "config", None)
    if hidden.shape[:-1] != logits.shape[:-1] or logits.shape[-1] != linear.weight.shape[0]:
        raise SignalError(
            f"the logits of {of} are {tuple(logits.shape)}, but its output projection "
            f"{tuple(linear.weight.shape)} was given {tuple(hidden.shape)}: head.input is of other "
            'tokens or classes; compare logits: on = "logits.response"'
        )
    with torch.no_grad():
        x, found = (one.flatten(0, -2)[:_ROWS] for one in (hidden, logits))
        made = widen(F.linear(x.to(linear.weight.dtype), linear.weight, linear.bias))
        found = widen(found)
        if _equal(made, found, linear.weight.dtype):
            return Head(linear)
        for cap in _numbers(config, _SOFTCAPS).values():
            if _equal(cap * torch.tanh(made / cap), found, linear.weight.dtype):
                return Head(linear, cap)
    known = ", ".join(f"{name} = {number}" for name, number in _numbers(config, _SCALES).items())
    raise SignalError(
        f"the logits of {of} are not the projection of head.input by head.weight and head.bias"
        + (f"; its configuration says {known}" if known else "")
        + ". A loss on these signals would compare another distribution; compare logits: "
        'on = "logits.response"'
    )


def is_plain(model: nn.Module) -> bool:
    """Whether no number of the configuration says that something follows the projection."""
    config = getattr(unwrapped(model), "config", None)
    return not _numbers(config, (*_SOFTCAPS, *_SCALES))


def _numbers(config: Any, names: Sequence[str]) -> dict[str, float]:
    """The numbers that a configuration, or its part about text, has under these names."""
    parts = [config, getattr(config, "text_config", None)]
    return {
        name: float(value)
        for part in parts
        for name in names
        if isinstance(value := getattr(part, name, None), (int, float)) and value
    }


def _equal(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether both are one function, up to the rounding of the dtype they were computed in."""
    tolerance = 64 * torch.finfo(dtype).eps
    size = float(other.abs().amax()) if other.numel() else 0.0
    return bool(torch.allclose(one, other, rtol=tolerance, atol=tolerance * max(size, 1e-30)))


def can_do_without_logits(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether a forward whose signals are these needs no output projection.

    Examples:
        >>> can_do_without_logits(["head.input", "head.weight", "attention.joint"])
        True
        >>> can_do_without_logits(["head.input", "head.weight", "logits.prompt"])
        False
    """
    return asks_for_head(names) and all(name.partition(".")[0] in _WITHOUT_LOGITS for name in names)
