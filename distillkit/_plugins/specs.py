"""What a plugin hands over: frozen descriptions that import nothing of what they name.

A reference is a string, ``"package.module:attribute"``, resolved on first use; in a script it may
be the object itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

Reference = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class LossSpec:
    """A loss by name.

    Attributes:
        name: what recipes call it.
        function: reference to ``function(student, teacher, *, ...)``.
        signature: the axes it consumes and returns, in numpy's gufunc notation:
            ``"(v),(v)->()"``; ``"attention"`` for a loss of two ``Attention``s.
        tags: properties that the conformance kit checks, such as ``"nonnegative"``.
        bound: the largest value at the default options, where there is one; checked too.
        example: reference to ``example(draw) -> Arguments``, of ``distillkit.testing``, where the
            signature does not say what the arguments are (labels, indices).
        summary: one line for the listing.
        reference: key of its source in the library's bibliography, or a BibTeX entry.
    """

    kind: ClassVar[str] = "loss"
    hook: ClassVar[str] = "distillkit_losses"

    name: str
    function: Reference
    _: KW_ONLY
    signature: str
    tags: tuple[str, ...] = ()
    bound: float | None = None
    example: Reference | None = None
    summary: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An adapter by name, for every model whose class, or an ancestor of it, matches.

    Attributes:
        name: what ``student_adapter=`` calls it.
        matches: pattern over the dotted name of the model's class, ``"acme.models.*"``.
        factory: reference to ``factory(model) -> Adapter``.
        summary: one line for the listing.
    """

    kind: ClassVar[str] = "adapter"
    hook: ClassVar[str] = "distillkit_adapters"

    name: str
    _: KW_ONLY
    matches: str
    factory: Reference
    summary: str = ""


@dataclass(frozen=True, slots=True)
class AlignerSpec:
    """An aligner by name: it reconciles what student and teacher expose.

    Attributes:
        name: what a term's ``align`` calls it.
        factory: reference to ``factory(**options)``, which returns a callable
            ``(student, teacher) -> (student, teacher)``; an ``nn.Module`` when it is trained.
        summary: one line for the listing.
    """

    kind: ClassVar[str] = "aligner"
    hook: ClassVar[str] = "distillkit_aligners"

    name: str
    _: KW_ONLY
    factory: Reference
    summary: str = ""


@dataclass(frozen=True, slots=True)
class RecipeSpec:
    """A recipe by name.

    Attributes:
        name: what ``load_recipe`` calls it.
        resource: the TOML file inside a package, ``"package:recipes/x.toml"``.
        summary: one line for the listing.
    """

    kind: ClassVar[str] = "recipe"
    hook: ClassVar[str] = "distillkit_recipes"

    name: str
    _: KW_ONLY
    resource: str
    summary: str = ""


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """An operation that computes attention, by name: how capture learns a fused kernel.

    Attributes:
        name: what the listing calls it.
        target: reference to the function that models call, ``"mylib:fused_attention"``.
        read: reference to ``read(*args, **kwargs) -> Attention``, given the target's own call.
        summary: one line for the listing.
    """

    kind: ClassVar[str] = "operation"
    hook: ClassVar[str] = "distillkit_operations"

    name: str
    _: KW_ONLY
    target: Reference
    read: Reference
    summary: str = ""


Spec = LossSpec | AdapterSpec | AlignerSpec | RecipeSpec | OperationSpec


def resolve(reference: Reference) -> Any:
    """The object that a reference names, imported now.

    Examples:
        >>> resolve("math:sqrt")(9.0)
        3.0
    """
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found
