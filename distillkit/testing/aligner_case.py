"""An aligner under test, and an example of what it aligns."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._backbone.signals import TokenAxes
from .._objective.align.making import (
    aligner_of,
    asked_tokens,
    axes_after,
    make_aligner,
    told_tokens,
)
from .._plugins.specs import AlignerSpec

Example = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Sides:
    """One layer of a signal of both sides, and what is known of its tokens."""

    student: Any
    teacher: Any
    student_tokens: TokenAxes = ()
    teacher_tokens: TokenAxes = ()

    @property
    def axes(self) -> tuple[TokenAxes, TokenAxes]:
        """The known facts about the tokens of both."""
        return self.student_tokens, self.teacher_tokens

    @property
    def examples(self) -> int:
        """How many examples they are of."""
        return int(self.student.shape[0])

    def map(self, function: Callable[[Any], Any]) -> Sides:
        """Both signals through a function."""
        return replace(self, student=function(self.student), teacher=function(self.teacher))

    def take(self, index: slice) -> Sides:
        """Some examples, with what is known of them."""
        axes = [
            tuple(None if axis is None else axis.take(index) for axis in side) for side in self.axes
        ]
        taken = self.map(lambda x: x.take(index) if isinstance(x, Attention) else x[index])
        return replace(taken, student_tokens=axes[0], teacher_tokens=axes[1])


class AlignerCase:
    """An aligner and an example that it makes comparable by itself.

    Args:
        aligner: a spec, which need not be registered, or a registered name.
        example: ``example() -> (student, teacher)``, two tensors or two attentions of at least two
            examples, as a term has them; or ``(student, teacher, student_tokens,
            teacher_tokens)`` with a ``TokenAxis`` for each token axis, where the aligner reads
            them or the signals have tokens.
        options: of the term's ``align``.
    """

    def __init__(
        self,
        aligner: AlignerSpec | str,
        example: Example,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.aligner, self.example, self.options = aligner, example, dict(options or {})

    @property
    def name(self) -> str:
        """Its name in test reports."""
        return self.aligner if isinstance(self.aligner, str) else self.aligner.name

    @property
    def has_name(self) -> bool:
        """Whether its factory can be found by a name, as a pickle wants it."""
        factory = self.aligner if isinstance(self.aligner, str) else self.aligner.factory
        try:
            pickle.dumps(factory)
        except (pickle.PicklingError, AttributeError):  # of a function, or of code that is run
            return False
        return True

    def sides(self) -> Sides:
        """The example, the same every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Sides(*self.example())

    def made(self, seed: int = 0) -> nn.Module:
        """The aligner, built for the example, in eval mode; a seed for what it draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(self.aligner, str):
                made = make_aligner({"name": self.aligner, **self.options})
            else:
                made = aligner_of(self.aligner, self.options)
            build: Callable[[Any, Any], None] | None = getattr(made, "build", None)
            if build is not None:
                sides = self.sides()
                build(sides.student, sides.teacher)
        return made.eval()


def returned_by(aligner: nn.Module, sides: Sides) -> Any:
    """What an aligner returns, called as a term calls it."""
    known = told_tokens(asked_tokens(aligner), sides.axes)
    return aligner(sides.student, sides.teacher, **known)


def aligned(aligner: nn.Module, sides: Sides) -> Sides:
    """What an aligner makes of both sides, and of what is known of their tokens."""
    student, teacher = returned_by(aligner, sides)
    return Sides(student, teacher, *axes_after(aligner, sides.axes))


def numbers(signal: Any) -> Tensor:
    """A signal as a tensor: itself, or an attention's probabilities."""
    found: Tensor = signal.probabilities() if isinstance(signal, Attention) else signal
    return found


def sizes(signal: Any) -> tuple[int, ...]:
    """The sizes that both sides must share: all of a tensor's; of an attention's, not the heads."""
    if isinstance(signal, Attention):
        b, _, q, k = signal.shape
        return b, q, k
    return tuple(signal.shape)


def weighted_sum(*signals: Any) -> Tensor:
    """A number that depends on every finite entry, each in its own way."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(())
    for x in map(numbers, signals):
        weights = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x)
        total = total.to(x) + torch.where(x.isfinite(), x * weights, 0).sum()
    return total


def learning(signal: Any) -> tuple[Any, Tensor]:
    """The same signal, and the leaf of it that a gradient should reach."""
    if isinstance(signal, Tensor):
        leaf = signal.detach().clone().requires_grad_()
        return leaf, leaf
    if signal.is_replayed:
        leaf = torch.where(signal.keep(), signal.scores(), 0).detach().requires_grad_()
        return Attention.from_scores(leaf, mask=signal.keep(), rows=signal.rows), leaf
    leaf = signal.query.detach().clone().requires_grad_()
    made = Attention(
        leaf, signal.key.detach(), signal.value, scale=signal.scale,
        mask=signal.mask, bias=signal.bias, rows=signal.rows, causal=signal.causal,
    )  # fmt: skip
    return made, leaf


def loose_tensors(made: nn.Module) -> Iterator[str]:
    """The tensors that a module, or the object or function inside of it, holds as a plain field."""
    for module in made.modules():
        inner = vars(module).get("function", module)
        held = dict(vars(inner)) if hasattr(inner, "__dict__") else {}
        code = getattr(inner, "__code__", None)
        if code is not None and inner.__closure__:
            cells = [cell.cell_contents for cell in inner.__closure__]
            held |= dict(zip(code.co_freevars, cells, strict=True))
        for name, value in held.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield name
