"""BibTeX of what was used."""

from __future__ import annotations

from .._plugins.catalogue import bibliography
from .._plugins.registry import lookup, provided
from .._plugins.specs import LossSpec
from ..errors import unknown_name


def citation(*names: str) -> str:
    """BibTeX of the sources of losses, each once.

    Args:
        names: registered losses, or keys of the bibliography such as a recipe's ``reference``.

    Raises:
        UnknownNameError: neither a loss nor a key.

    Examples:
        >>> print(citation("kl_divergence", "soft_cross_entropy"))
        @misc{hinton-etal-2015-distilling,
          author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
          title  = {Distilling the Knowledge in a Neural Network},
          year   = {2015},
          url    = {https://arxiv.org/abs/1503.02531},
        }
    """
    return "\n\n".join(dict.fromkeys(_entry(name) for name in names))


def _entry(name: str) -> str:
    entries, known = bibliography(), provided(LossSpec)
    if name in entries:
        return entries[name]
    if name.rpartition(":")[2] not in known:
        raise unknown_name("loss or reference", name, [*known, *entries])
    reference = lookup(LossSpec, name).reference
    # a plugin's loss brings its own entry
    return entries.get(reference, reference)
