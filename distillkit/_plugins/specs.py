"""What a plugin hands over: frozen descriptions that import nothing of what they name.

A reference is a string, ``"package.module:attribute"``, resolved on first use; in a script it may
be the object itself.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, ClassVar, get_args

from ..errors import SpecError, did_you_mean
from .targets import why_unseen

Reference = str | Callable[..., Any]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+")  # as torch itself names a custom operator
_RESOURCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^/\\:][^\\:]*\.toml")


@dataclass(frozen=True, slots=True)
class LossSpec:
    """A loss by name.

    Attributes:
        name: what recipes call it.
        function: reference to ``function(student, teacher, *, ...)``.
        signature: the axes it consumes and returns, in numpy's gufunc notation:
            ``"(v),(v)->()"``; ``"attention"`` for a loss of two attentions.
        tags: properties that the conformance kit checks, such as ``"nonnegative"``, at every option
            within its bounds (``"symmetric"``: at the defaults); any iterable, kept as a tuple.
        bound: the largest value at the default options, where there is one; checked too. Any
            number, kept as a float.
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
    tags: Iterable[str] = ()
    bound: float | None = None
    example: Reference | None = None
    summary: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        _check_texts(self, "signature", "summary", "reference")
        if self.name == "task":
            raise SpecError('no loss may be called "task": recipes call the student\'s own loss so')
        _check_references(self)
        # frozen: what may be given in several forms is brought to one
        object.__setattr__(self, "tags", _names(self, "tags", "nonnegative"))
        object.__setattr__(self, "bound", _bound(self))


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An adapter by name, for every model whose class, or an ancestor of it, matches.

    Attributes:
        name: what ``student_adapter=`` calls it.
        matches: the dotted name of the model's class, ``"acme.models.Dual"``, or a pattern over it,
            ``"acme.models.*"``. Where several adapters fit, the most specific is taken.
        factory: reference to ``factory(model) -> Adapter``.
        resource: instead of it, an adapter file inside a package, ``"package:adapters/x.toml"``.
        summary: one line for the listing.
        offers: the signals that models of the family offer, for the listing of recipes; of a file
            they are known without. Any iterable, kept as a tuple.
    """

    kind: ClassVar[str] = "adapter"
    hook: ClassVar[str] = "distillkit_adapters"

    name: str
    _: KW_ONLY
    matches: str
    factory: Reference | None = None
    resource: str | None = None
    summary: str = ""
    offers: Iterable[str] = ()

    def __post_init__(self) -> None:
        _check_texts(self, "matches", "summary")
        if (self.factory is None) == (self.resource is None):
            raise SpecError(
                f"adapter {self.name!r} takes one of two: factory, a reference to factory(model), "
                'or resource, an adapter file inside a package, "package:adapters/x.toml"; got '
                f"{'neither' if self.factory is None else 'both'}"
            )
        _check_references(self)
        _check_resource(self)
        if not self.matches:
            raise SpecError(
                f"adapter {self.name!r}: matches is a pattern over the dotted name of the model's "
                'class, such as "acme.models.*"; got an empty string'
            )
        object.__setattr__(self, "offers", _names(self, "offers", "attention.joint"))


@dataclass(frozen=True, slots=True)
class AlignerSpec:
    """An aligner by name: it reconciles what student and teacher expose.

    Attributes:
        name: what a term's ``align`` calls it.
        factory: reference to ``factory(**options)``, which returns a callable
            ``(student, teacher) -> (student, teacher)``; an ``nn.Module`` when it is trained. One
            that has parameters ``student_tokens`` and ``teacher_tokens`` is told what is known of
            the tokens along each axis.
        summary: one line for the listing.
    """

    kind: ClassVar[str] = "aligner"
    hook: ClassVar[str] = "distillkit_aligners"

    name: str
    _: KW_ONLY
    factory: Reference
    summary: str = ""

    def __post_init__(self) -> None:
        _check_texts(self, "summary")
        _check_references(self)


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

    def __post_init__(self) -> None:
        _check_texts(self, "summary")
        if self.name.endswith(".toml"):
            raise SpecError(f"recipe {self.name!r}: a name that ends in .toml is read as a path")
        _check_resource(self)


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """An operation that computes attention, by name: how capture learns a fused kernel.

    Attributes:
        name: what the listing calls it.
        target: reference to the function that models call, ``"mylib:fused_attention"``: a plain
            Python function, a function of torch or a custom operator. Nothing else can be seen: no
            ``Function.apply``, ``functools.partial``, bound method or callable object.
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

    def __post_init__(self) -> None:
        _check_texts(self, "summary")
        _check_references(self)
        check_target(self, self.target)


@dataclass(frozen=True, slots=True)
class WeightingSpec:
    """A weighting by name: it settles the weights of an objective's terms while training.

    Attributes:
        name: what a recipe's ``weighting`` calls it.
        factory: reference to ``factory(terms, **options)``, given the names of the terms; it
            returns an object with ``reads``, ``start()`` and ``settle(step, state)``, or an
            ``nn.Module`` with parameters.
        summary: one line for the listing.
        reference: key of its source in the library's bibliography, or a BibTeX entry.
    """

    kind: ClassVar[str] = "weighting"
    hook: ClassVar[str] = "distillkit_weightings"

    name: str
    _: KW_ONLY
    factory: Reference
    summary: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        _check_texts(self, "summary", "reference")
        _check_references(self)


Spec = LossSpec | AdapterSpec | AlignerSpec | RecipeSpec | OperationSpec | WeightingSpec
SPEC_TYPES: tuple[type[Spec], ...] = get_args(Spec)


def references(spec: Spec) -> dict[str, Reference]:
    """Field -> reference, of every field that names something to import."""
    fields = ("function", "example", "factory", "target", "read")
    given = {field: getattr(spec, field) for field in fields if hasattr(spec, field)}
    optional = ("example", "factory") if isinstance(spec, AdapterSpec) else ("example",)
    return {f: one for f, one in given.items() if one is not None or f not in optional}


def resolve(reference: Reference) -> Any:
    """The object that a reference names, imported now.

    Raises:
        SpecError: there is no such module or attribute; what else fails while it is imported is
            raised as it is.

    Examples:
        >>> resolve("math:sqrt")(9.0)
        3.0
    """
    if not isinstance(reference, str):
        return reference
    if _OPERATOR.fullmatch(reference):
        reference = reference.replace("torch.", "torch:", 1)
    module, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, but something that it needs is not
        raise SpecError(f"{reference!r} names nothing: there is no module {error.name!r}") from None
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            hint = "" if module != "distillkit.losses" else " (is it in its family's __all__?)"
            raise SpecError(
                f"{reference!r} names nothing: {_shown(found)} has no attribute {part!r}{hint}; "
                f"{did_you_mean(part, _public(found))}"
            ) from None
    return found


def check_target(spec: OperationSpec, target: Any) -> None:
    """Refuse a target that nothing can see being called.

    Raises:
        SpecError: why not, and the fix.
    """
    why = why_unseen(target)
    if why is not None:
        raise SpecError(f"operation {spec.name!r}: target cannot be seen when it is called: {why}")


def resource_file(spec: AdapterSpec | RecipeSpec) -> Traversable:
    """The TOML file inside a package that a spec names; the package is imported now.

    Raises:
        SpecError: there is no such package, or no such file in it.
    """
    assert spec.resource is not None
    package, _, path = spec.resource.partition(":")
    named = f"{spec.kind} {spec.name!r} names the file {spec.resource!r}"
    try:
        folder = files(package)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise  # the package is there, but something that it needs is not
        raise SpecError(f"{named}, but there is no package {error.name!r}") from None
    except TypeError:  # a module, which holds no files
        raise SpecError(f"{named}, but {package!r} is a module and no package") from None
    found = folder.joinpath(path)
    if not found.is_file():
        there = [one.name for one in _folder_of(folder, path) if one.name.endswith(".toml")]
        raise SpecError(
            f"{named}, but the package has no such file (does the build backend put it into the "
            f"wheel?); of TOML files beside it, {did_you_mean(path.rpartition('/')[2], there)}"
        )
    return found


def _folder_of(package: Traversable, path: str) -> list[Traversable]:
    """What lies beside a file that is not there."""
    folder = package.joinpath(path.rpartition("/")[0]) if "/" in path else package
    return list(folder.iterdir()) if folder.is_dir() else []


def _public(found: Any) -> list[str]:
    return [name for name in dir(found) if not name.startswith("_")]


def _shown(found: Any) -> str:
    return f"module {found.__name__}" if hasattr(found, "__spec__") else repr(found)


def _check_texts(spec: Spec, *fields: str) -> None:
    """Refuse a name that nobody could write in a recipe, and texts that are none."""
    if not (isinstance(spec.name, str) and _NAME.fullmatch(spec.name)):
        raise SpecError(
            f"a {spec.kind} is named by letters, digits, '_', '-' and '.', without a colon, which "
            f"separates it from its plugin; got {spec.name!r}"
        )
    for field in fields:
        if not isinstance(getattr(spec, field), str):
            raise SpecError(
                f"{spec.kind} {spec.name!r}: {field} is a string; got {getattr(spec, field)!r}"
            )


def _check_resource(spec: AdapterSpec | RecipeSpec) -> None:
    given: Any = spec.resource
    if given is not None and not (isinstance(given, str) and _RESOURCE.fullmatch(given)):
        raise SpecError(
            f"{spec.kind} {spec.name!r}: resource is a TOML file inside a package, "
            f'"package:{spec.kind}s/x.toml"; got {given!r}'
        )


def _names(spec: LossSpec | AdapterSpec, field: str, example: str) -> tuple[str, ...]:
    given = getattr(spec, field)
    listed = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    names = tuple(given) if listed else ()
    if not listed or not all(isinstance(name, str) for name in names):
        raise SpecError(
            f"{spec.kind} {spec.name!r}: {field} are strings in a tuple or another iterable, such "
            f'as ("{example}",); got {(names if listed else given)!r}'
        )
    return names


def _bound(spec: LossSpec) -> float | None:
    if spec.bound is None:
        return None
    try:
        bound = math.nan if isinstance(spec.bound, str | bool) else float(spec.bound)
    except (TypeError, ValueError):
        bound = math.nan
    if not math.isfinite(bound):
        raise SpecError(
            f"loss {spec.name!r}: bound is the largest value of the loss, a finite number, or "
            f"None where there is none; got {spec.bound!r}"
        )
    return bound


def _check_references(spec: Spec) -> None:
    for field, given in references(spec).items():
        written = isinstance(given, str) and (
            _REFERENCE.fullmatch(given) or _OPERATOR.fullmatch(given)
        )
        if not written and (isinstance(given, str) or not callable(given)):
            raise SpecError(
                f'{spec.kind} {spec.name!r}: {field} is "package.module:attribute" or the object '
                f"itself; got {given!r}"
            )
