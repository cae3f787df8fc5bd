"""Inputs of losses as hypothesis strategies, built from a loss's own signature.

Every tensor is float64 unless a strategy says otherwise, and small: what fails shrinks to few
numbers that can be read.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .._attention import Attention
from .._plugins.specs import LossSpec, resolve
from ..errors import OptionError, unknown_name

PLAIN = ("plain",)
"""Multiples of 1/8 in [-4, 4]: exact in every dtype, with ties."""

GENERIC = ("generic",)
"""Normally distributed: no ties, nothing at a kink."""

EVERY = ("plain", "generic", "constant", "one_hot", "extreme", "tiny", "large")
"""Also: one number throughout; one entry of 1e4 among zeros; 0 and +-1e4; around 1e-6; around 1e4.
"""

ATTENTION = "(h,q,d),(h,k,d),(h,q,e),(h,k,e)->(h,q)"
"""What ``signature="attention"`` stands for: queries and keys of two ``Attention``s, over one
leading axis."""


_SIDES = ("student", "teacher")


@dataclass(frozen=True)
class Arguments:
    """One call of a loss: the student's inputs, the teacher's, and its keyword tensors.

    Attributes:
        student: tensors or :class:`Attention` objects, passed first.
        teacher: passed after them.
        keywords: keyword arguments; tensors among them have the same leading axes.
        leading: the axes that are positions.
        sizes: axis of the signature -> its size.
        options: options that were drawn, away from their defaults; ``keywords`` win.
    """

    student: tuple[Tensor | Attention, ...]
    teacher: tuple[Tensor | Attention, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    leading: tuple[int, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> dict[str, Any]:
        """Everything that is passed by keyword."""
        return {**self.options, **self.keywords}

    def map(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The same call with every tensor changed."""
        student, teacher = (
            tuple(_mapped(x, change) for x in side) for side in (self.student, self.teacher)
        )
        keywords = {
            name: change(x) if isinstance(x, Tensor) else x for name, x in self.keywords.items()
        }
        return replace(self, student=student, teacher=teacher, keywords=keywords)

    def map_floating(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The same call with every floating point tensor changed."""
        return self.map(lambda x: change(x) if x.is_floating_point() else x)

    def take(self, index: Any) -> Arguments:
        """Positions of the first leading axis."""
        kept = torch.empty(self.leading, device="meta")[index].shape
        return replace(self.map(lambda x: x[index]), leading=tuple(kept))

    def can_be_identical(self, spec: LossSpec) -> bool:
        """Whether the teacher may be given the student's inputs.

        An ``example`` may know of widths that differ, or give the teacher something else.
        """
        if spec.example is None:
            return True
        pairs = zip(self.student, self.teacher, strict=False)
        alike = all(one.shape == other.shape for one, other in pairs)
        return len(self.student) == len(self.teacher) and alike

    def identical(self) -> Arguments:
        """The student's inputs for the teacher, too; what else the teacher gave stays.

        Options of one side, ``student_x`` and ``teacher_x``, are the student's or their defaults.
        """
        copies = tuple(_mapped(x, torch.clone) for x in self.student)
        teacher = (*copies, *self.teacher[len(copies) :])
        return replace(self, teacher=teacher, options=_of_equal_sides(self.options))

    def swapped(self) -> Arguments:
        """Student and teacher exchanged."""
        count = len(self.student)
        others = self.teacher[count:]
        return replace(self, student=self.teacher[:count], teacher=(*self.student, *others))

    def with_leaves(self) -> tuple[Arguments, list[Tensor], list[Tensor]]:
        """A copy that asks for gradients, and the student's and the teacher's tensors in it."""
        copy = self.map_floating(lambda x: x.detach().clone().requires_grad_())
        return copy, floating(copy.student), floating(copy.teacher)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the call."""
        keywords = [x for x in self.keywords.values() if isinstance(x, Tensor)]
        return [t for x in (*self.student, *self.teacher) for t in _parts(x)] + keywords

    def __repr__(self) -> str:
        sides = {"student": self.student, "teacher": self.teacher}
        named = [
            f"{side}{'' if len(values) == 1 else i}={_short(x)}"
            for side, values in sides.items()
            for i, x in enumerate(values)
        ]
        return ", ".join([*named, *(f"{k}={_short(v)}" for k, v in self.passed.items())])


@dataclass(frozen=True)
class Draw:
    """The sizes and numbers that hypothesis chose for one example of a loss.

    ``LossSpec(example=function)`` names a ``function(draw) -> Arguments`` where the signature
    alone cannot say what the arguments are: labels, indices, an option without default.

    Attributes:
        leading: the axes that are positions; every tensor begins with them.
        sizes: axis of the signature -> its size.
        values: which kind of numbers tensors hold, such as ``"plain"`` or ``"extreme"``.
        generator: the source of all numbers.

    Examples:
        >>> draw = Draw((2,), {"v": 3}, "plain", torch.Generator().manual_seed(0))
        >>> draw.tensor("v").shape, draw.index(below="v")
        (torch.Size([2, 3]), tensor([2, 0]))
    """

    leading: tuple[int, ...]
    sizes: Mapping[str, int]
    values: str
    generator: torch.Generator

    def size(self, axis: str) -> int:
        """The size of an axis of the signature."""
        if axis not in self.sizes:
            raise unknown_name("axis of the signature", axis, self.sizes)
        return self.sizes[axis]

    def tensor(self, *axes: str) -> Tensor:
        """Floating point numbers, float64."""
        return numbers(self.values, self._shape(axes), self.generator)

    def index(self, *axes: str, below: str) -> Tensor:
        """Integers in [0, size of ``below``), such as labels."""
        return torch.randint(self.size(below), self._shape(axes), generator=self.generator)

    def mask(self, *axes: str) -> Tensor:
        """Booleans; rows may be empty."""
        share = torch.rand((), generator=self.generator) * 1.3
        return torch.rand(self._shape(axes), generator=self.generator) < share

    def attention(self, width: str = "d", *, keep: Tensor, rows: Tensor) -> Attention:
        """Queries over keys, ``(b, h, q, k)``."""
        query, key = self.tensor("h", "q", width), self.tensor("h", "k", width)
        return Attention(query, key, mask=keep, rows=rows)

    def _shape(self, axes: Sequence[str]) -> tuple[int, ...]:
        return (*self.leading, *map(self.size, axes))


def numbers(values: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A float64 tensor of one kind of numbers, one of ``EVERY``."""
    plain = torch.randint(-32, 33, shape, generator=generator) / 8.0
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    made = {
        "plain": lambda: plain,
        "generic": lambda: normal,
        "constant": lambda: torch.full(shape, round(float(plain.sum()) * 8) % 3 - 1.0),
        "one_hot": lambda: 1e4 * _one_of_each_row(shape, generator),
        "extreme": lambda: 1e4 * torch.randint(-1, 2, shape, generator=generator),
        "tiny": lambda: normal * 1e-6,
        "large": lambda: (normal * 1e4).clamp(-6e4, 6e4),
    }
    if values not in made:
        raise unknown_name("kind of numbers", values, made)
    return made[values]().double()


@st.composite
def arguments(
    draw: st.DrawFn,
    spec: LossSpec,
    *,
    values: Sequence[str] = PLAIN,
    side: tuple[int, int] = (1, 4),
    least: Mapping[str, int] | None = None,
    leading: Sequence[tuple[int, ...]] = ((), (1,), (2,), (3,), (2, 2)),
    options: Mapping[str, Sequence[Any]] | None = None,
) -> Arguments:
    """A call of a loss, built from its signature, or by its ``example``.

    Args:
        draw: hypothesis's.
        spec: the loss.
        values: kinds of numbers, simplest first.
        side: the smallest and largest size of an axis.
        least: axis -> the smallest size that the loss takes, where ``side`` begins below it.
        leading: shapes of the leading axes; losses of attentions take those of one axis.
        options: option -> values that are drawn beside its default.
    """
    inputs, _ = parsed(spec.signature)
    one_axis = [shape for shape in leading if len(shape) == 1]
    shapes = one_axis if spec.signature == "attention" else leading
    sides = {
        axis: tuple(max(size, (least or {}).get(axis, size)) for size in side)
        for axis in sorted({axis for core in inputs for axis in core})
    }
    made = Draw(
        draw(st.sampled_from(list(shapes))),
        {axis: draw(st.integers(*of_axis), label=axis) for axis, of_axis in sides.items()},
        draw(st.sampled_from(list(values))),
        torch.Generator().manual_seed(draw(st.integers(0, 2**16))),
    )
    given = made_from(spec, made)
    chosen = {}
    for name, values in (options or {}).items():
        place = draw(st.integers(0, len(values)), label=name)
        if place:  # at 0, the simplest, it stays at its default
            chosen[name] = values[place - 1]
    return replace(given, options=chosen)


def made_from(spec: LossSpec, made: Draw) -> Arguments:
    """The call of a loss that a draw makes, by its signature or its ``example``."""
    example = _from_signature(spec.signature) if spec.example is None else resolve(spec.example)
    given: Arguments = example(made)
    return replace(given, leading=made.leading, sizes=made.sizes)


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int] = (2, 3),
    *,
    values: Sequence[str] = PLAIN,
    dtypes: Sequence[torch.dtype] = (torch.float64,),
) -> Tensor:
    """Floating point tensors of a shape: logits, hidden states, feature maps.

    Args:
        draw: hypothesis's.
        shape: of the tensor.
        values: kinds of numbers: ``"plain"`` (eighths between -4 and 4), ``"generic"``,
            ``"constant"``, ``"one_hot"``, ``"extreme"``, ``"tiny"``, ``"large"``.
        dtypes: to choose from.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kind, dtype = draw(st.sampled_from(list(values))), draw(st.sampled_from(list(dtypes)))
    return numbers(kind, tuple(shape), generator).to(dtype)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What losses are called with."""


def hidden_states(shape: Sequence[int] = (2, 3, 4), **choices: Any) -> st.SearchStrategy[Tensor]:
    """Hidden states ``(b, n, d)``; duplicates where ``values`` contains ``"constant"``."""
    return tensors(shape, **choices)


@st.composite
def logits(
    draw: st.DrawFn, /, shape: Sequence[int] = (2, 3), *, banned: bool = True, **choices: Any
) -> Tensor:
    """Logits ``(..., v)``; with ``banned``, some classes, or all of a row, may be -inf."""
    made: Tensor = draw(tensors(shape, **choices))
    if not banned:
        return made
    return made.masked_fill(~draw(masks(shape)), -torch.inf)


@st.composite
def probabilities(draw: st.DrawFn, /, shape: Sequence[int] = (2, 3), **choices: Any) -> Tensor:
    """Rows that add up to 1; one-hot where ``values`` contains ``"one_hot"``."""
    made: Tensor = draw(tensors(shape, **choices))
    return made.softmax(-1)


@st.composite
def masks(draw: st.DrawFn, shape: Sequence[int] = (2, 3)) -> Tensor:
    """Boolean masks, True = keep; rows may be empty, or all of them."""
    seed, share = draw(st.integers(0, 2**16)), draw(st.sampled_from([1.1, 0.7, 0.3, 0.0]))
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) < share


@st.composite
def attentions(
    draw: st.DrawFn, *, side: tuple[int, int] = (1, 4), values: Sequence[str] = PLAIN
) -> Attention:
    """An :class:`Attention` with masks over its keys and its rows, some of them empty."""
    made: Arguments = draw(
        arguments(LossSpec("attention", len, signature="attention"), values=values, side=side)
    )
    (attention,) = made.student
    assert isinstance(attention, Attention)
    return attention


def parsed(signature: str) -> tuple[list[list[str]], list[str]]:
    """The axes of every input and of the output of a gufunc signature.

    Raises:
        OptionError: not a signature.

    Examples:
        >>> parsed("(n,d),(n,e)->(n,n)")
        ([['n', 'd'], ['n', 'e']], ['n', 'n'])
    """
    written = ATTENTION if signature == "attention" else signature
    inputs, arrow, output = written.replace(" ", "").partition("->")
    cores = [core.split(",") if core else [] for core in inputs[1:-1].split("),(")]
    result = output[1:-1].split(",") if output != "()" else []
    named = [axis for core in [*cores, result] for axis in core]
    letters = all(axis and not set(axis) - set(string.ascii_letters) for axis in named)
    if not arrow or not letters or not (inputs + output).count("(") == len(cores) + 1:
        raise OptionError(
            'a signature names the axes of inputs and output, "(n,d),(n,e)->(n,n)", or is '
            f'"attention"; got {signature!r}'
        )
    unknown = set(result) - {axis for core in cores for axis in core}
    if unknown:
        raise OptionError(f"{signature!r} returns axis {min(unknown)!r}, which no input has")
    if len(cores) < 2:
        raise OptionError(f"a loss takes a student and a teacher; {signature!r} has one input")
    return cores, result


def labelled(draw: Draw) -> Arguments:
    """The example of a loss ``(v),(v)->()`` that takes ``labels=``."""
    labels = draw.index(below="v")
    return Arguments((draw.tensor("v"),), (draw.tensor("v"),), {"labels": labels})


def stored_top_k(draw: Draw) -> Arguments:
    """The example of a loss of logits, stored log-probabilities and their indices."""
    log_p = draw.tensor("v").log_softmax(-1)
    values, indices = log_p.topk(min(draw.size("k"), draw.size("v")), -1)
    return Arguments((draw.tensor("v"),), (values, indices))


def related_tokens(draw: Draw) -> Arguments:
    """The example of a loss of queries, keys or values ``(b, h, n, d)`` and ``relation_heads``."""
    student, teacher = draw.tensor("h", "q", "d"), draw.tensor("h", "q", "e")
    return Arguments((student,), (teacher,), {"relation_heads": draw.size("h")})


def floating(values: Sequence[Tensor | Attention]) -> list[Tensor]:
    """The floating point tensors among a side's inputs."""
    return [part for x in values for part in _parts(x) if part.is_floating_point()]


def _of_equal_sides(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with ``teacher_x`` as ``student_x``; one that is alone keeps its default."""
    found = dict(options)
    for name in options:
        side, _, what = name.partition("_")
        if side not in _SIDES:
            continue
        if all(f"{one}_{what}" in options for one in _SIDES):
            found[name] = options[f"student_{what}"]
        else:
            del found[name]
    return found


def _from_signature(signature: str) -> Callable[[Draw], Arguments]:
    if signature == "attention":
        return _two_attentions
    cores, _ = parsed(signature)
    half = len(cores) // 2

    def example(draw: Draw) -> Arguments:
        made = tuple(draw.tensor(*core) for core in cores)
        return Arguments(made[:half], made[half:])

    return example


def _two_attentions(draw: Draw) -> Arguments:
    keep, rows = draw.mask("q", "k")[:, None], draw.mask("q")
    student, teacher = (draw.attention(width, keep=keep, rows=rows) for width in "de")
    return Arguments((student,), (teacher,))


def _one_of_each_row(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if not shape or not shape[-1]:
        return torch.zeros(shape)
    chosen = torch.randint(shape[-1], (*shape[:-1], 1), generator=generator)
    return torch.zeros(shape).scatter(-1, chosen, 1.0)


def _parts(x: Tensor | Attention) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    found = [x.query, x.key, x.value, x.mask, x.rows]
    return [part for part in found if part is not None]


def _mapped(x: Tensor | Attention, change: Callable[[Tensor], Tensor]) -> Tensor | Attention:
    if isinstance(x, Tensor):
        return change(x)
    value, mask, rows = (None if t is None else change(t) for t in (x.value, x.mask, x.rows))
    return Attention(change(x.query), change(x.key), value, scale=x.scale, mask=mask, rows=rows)


def _short(x: Any) -> str:
    if isinstance(x, Attention):
        named = {"query": x.query, "key": x.key, "mask": x.mask, "rows": x.rows}
        inside = (f"{name}={_short(part)}" for name, part in named.items() if part is not None)
        return f"Attention({', '.join(inside)})"
    if not isinstance(x, Tensor) or x.is_meta:
        return repr(x) if not isinstance(x, Tensor) else f"{tuple(x.shape)} {x.dtype}"
    shown = str(x.tolist() if x.dtype in (torch.bool, torch.int64) else _rounded(x.tolist()))
    return shown if len(shown) <= 120 else f"{tuple(x.shape)} [{shown.strip('[')[:60]}...]"


def _rounded(x: Any) -> Any:
    return [_rounded(one) for one in x] if isinstance(x, list) else float(f"{x:.5g}")
