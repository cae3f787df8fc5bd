"""What a loss promises by its tags, its bound, or the arguments that it takes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .._attention import Attention
from .._objective.options import checked_options
from ..errors import OptionError, RecipeError
from .strategies import Arguments, floating, parsed
from .subject import CheckFailedError, Loss, gradients, require, require_close, worst
from .transforms import every_row_counts, reorder

EPS = torch.finfo(torch.float64).eps

_ROUNDINGS = {torch.float64: 8, torch.float32: 64}
"""How many eps a value may be below 0; in float32 there is room for constant factors."""


def nonnegative(loss: Loss, given: Arguments) -> None:
    """No value is below 0, but for rounding, in float32 and near equality too."""
    calls = [("", given)]
    if given.can_be_identical(loss.spec):
        near = [_nearly_identical(one) for one in (given, *_large(loss, given))]
        calls += [(" where student nearly equals teacher", one) for one in near]
    for name, one in calls:
        for dtype in (torch.float64, torch.float32):
            value = loss(one.map_floating(lambda x, d=dtype: x.to(d))).detach()  # type: ignore[misc]
            size = max(1.0, float(value.nan_to_num().abs().max()))
            rounding = _ROUNDINGS[dtype] * torch.finfo(dtype).eps * size * magnified(loss, given)
            least = f"value {float(value.min()):.6g}{name}"
            require((value >= -rounding).all(), f"{least}, in {_short(dtype)}")


def zero_at_identity(loss: Loss, given: Arguments) -> None:
    """Between 0 and 8 eps where student equals teacher, in every dtype that is computed in.

    At an option above 1, such as a temperature, 8 eps times its square.
    """
    _zero_at_identity(loss, given, 8)


def exactly_zero_at_identity(loss: Loss, given: Arguments) -> None:
    """Exactly 0 where student equals teacher."""
    _zero_at_identity(loss, given, 0)


def symmetric(loss: Loss, given: Arguments) -> None:
    """Exchanging student and teacher changes nothing."""
    require_close(loss(given.swapped()), loss(given), "student and teacher exchanged")


def bounded(loss: Loss, given: Arguments) -> None:
    """No value is above the spec's ``bound``, but for rounding."""
    bound, largest = loss.spec.bound, loss(given).detach().max()
    assert bound is not None
    require(largest <= bound * (1 + 8 * EPS), f"value {float(largest):.6g}, bound {bound:.6g}")


def shift_invariant(loss: Loss, given: Arguments) -> None:
    """Adding a constant to every logit of one side changes nothing."""
    expected = loss(given)
    for shift in (7.0, -300.0):
        student = tuple(x + shift for x in given.student if isinstance(x, Tensor))
        found = loss(replace(given, student=student))
        require_close(found, expected, f"the student's logits plus {shift}", atol=1e-9)
        teacher = tuple(x + shift for x in given.teacher if isinstance(x, Tensor))
        found = loss(replace(given, teacher=teacher))
        require_close(found, expected, f"the teacher's logits plus {shift}", atol=1e-9)


def scale_invariant(loss: Loss, given: Arguments) -> None:
    """The size of the student's vectors changes nothing, however small or large."""
    for factor in (1e-30, 1e30):
        student = tuple(x * factor for x in given.student if isinstance(x, Tensor))
        found = loss(replace(given, student=student))
        require_close(found, loss(given), f"the student times {factor}", atol=1e-9)


def permutation_invariant(loss: Loss, given: Arguments) -> None:
    """Reordering a consumed axis, in every input that has it, changes nothing."""
    cores, result = parsed(loss.spec.signature)
    for axis in sorted({axis for core in cores for axis in core} - set(result)):
        require_close(loss(reorder(given, cores, axis)), loss(given), f"reordered axis {axis!r}")


def smooth(loss: Loss, given: Arguments) -> None:
    """No kink where student equals teacher: on either side the slope is the gradient's."""
    at, student, _ = every_row_counts(given).identical().with_leaves()
    value = loss(at)
    slopes = gradients(value, student)
    for step in (1e-7, -1e-7):
        # towards the teacher of the drawn call: a direction without symmetries
        moves = [step * x.detach() for x in floating(every_row_counts(given).teacher)]
        moves = [
            m if m.shape == x.shape else step * x.detach()
            for m, x in zip(moves, student, strict=True)
        ]
        changed = dict(zip(map(id, student), moves, strict=True))
        there = loss(at.map(lambda x, c=changed: x + c[id(x)] if id(x) in c else x))  # type: ignore[misc]
        expected = sum((g * m).sum() for g, m in zip(slopes, moves, strict=True))
        error = float((there - value).detach().sum() - expected)
        require(abs(error) <= 0.01 * abs(step), f"slope off by {abs(error / step):.2g} at a kink")


def temperature_squared(loss: Loss, given: Arguments) -> None:
    """Logits times T at temperature T give T squared times the loss: gradients keep their size."""
    option = loss.options.get("temperature")
    if option is None:
        raise CheckFailedError("the loss takes no number `temperature`")
    chosen = given.passed.get("temperature", option.default)
    base = 1.0 if chosen is None else float(chosen)
    allowed = (4.0 * base, 0.5 * base, *option.inside)
    for other in (one for one in allowed if option.bounds.hold(one)):
        factor = other / base
        found = loss(_hotter(given, factor), temperature=other)
        expected = factor**2 * loss(given, temperature=base)
        require_close(found, expected, f"logits times {factor:g} and temperature {other:g}")


def mass_covering(loss: Loss, given: Arguments) -> None:
    """+inf where the student lacks what the teacher uses; finite the other way round.

    Where the student nearly lacks it, by logits that are far below the others, the value still
    grows and has a gradient, in float32 too.
    """
    _one_sided(loss, given, infinite="student")
    if not loss.of_attentions:
        _still_teaches(loss, given)


def mode_seeking(loss: Loss, given: Arguments) -> None:
    """+inf where the student uses what the teacher lacks; finite the other way round."""
    _one_sided(loss, given, infinite="teacher")


def minus_infinity(loss: Loss, given: Arguments) -> None:
    """Logits of -inf, on either side or on both, for some classes or all: never NaN.

    Where both sides lack the same classes the gradient is finite, and none reaches those.
    """
    first = _first(given)
    for banned in (_some(first), torch.ones_like(first, dtype=torch.bool)):
        call, student, teacher = _banned(given, banned, "both").with_leaves()
        value = loss(call)
        require(
            value.isfinite().all(), f"value {float(value.detach().sum())} with -inf on both sides"
        )
        for gradient in gradients(value, [*student, *teacher]):
            require(gradient.isfinite().all(), "gradient not finite with -inf on both sides")
            require(not gradient[banned].any(), "a gradient reaches a logit of -inf")
    for side in ("student", "teacher"):
        value = loss(_banned(given, _some(first), side))
        require(not value.isnan().any(), f"NaN with -inf in the {side} alone")


def where(loss: Loss, given: Arguments) -> None:
    """Classes that ``where`` bans are as if they were not there, whatever they hold.

    Nothing of them reaches the value, they get no gradient, and a row without classes is finite.
    """
    copy, student, teacher = given.with_leaves()
    value = loss(copy)
    expected = gradients(value, [*student, *teacher])
    shape = _first(given).shape
    for rubbish in (0.0, 1e4, torch.nan, torch.inf, -torch.inf):
        grown, *sides = _widened(given, rubbish).with_leaves()
        leaves = [x for side in sides for x in side]
        kept = torch.arange(shape[-1] + 2) < shape[-1]
        found = loss(grown, where=kept)
        require_close(found, value, f"with banned classes of {rubbish}")
        for gradient, right in zip(gradients(found, leaves), expected, strict=True):
            require_close(gradient[..., kept], right, f"gradient with banned classes of {rubbish}")
            require(not gradient[..., ~kept].any(), "a gradient reaches a banned class")
    call, student, teacher = given.with_leaves()
    nothing = loss(call, where=torch.zeros(shape, dtype=torch.bool))
    require(nothing.isfinite().all(), "a row without classes is not finite")
    for gradient in gradients(nothing, [*student, *teacher]):
        require(not gradient.any(), "a row without classes has a gradient")


def functional(loss: Loss, given: Arguments) -> None:
    """``torch.func.vmap`` and ``torch.func.grad`` give what a loop and autograd give."""
    names = [name for name, x in given.keywords.items() if isinstance(x, Tensor)]
    tensors = [*given.student, *given.teacher, *(given.keywords[name] for name in names)]
    half, inputs = len(given.student), len(given.student) + len(given.teacher)

    def call(*values: Tensor) -> Tensor:
        keywords = {**given.keywords, **dict(zip(names, values[inputs:], strict=True))}
        return loss(
            replace(given, student=values[:half], teacher=values[half:inputs], keywords=keywords)
        )

    try:
        mapped = torch.func.vmap(call)(*tensors)
        slope = torch.func.grad(lambda x: call(x, *tensors[1:]).sum())(tensors[0])
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise CheckFailedError(f"torch.func: {type(error).__name__}: {line}") from None
    require_close(mapped, loss(given), "vmap over the first axis")
    copy, student, _ = given.with_leaves()
    require_close(slope, gradients(loss(copy), student[:1])[0], "torch.func.grad")


def option_bounds(loss: Loss, given: Arguments) -> None:
    """An option outside the bounds of its annotation, or NaN, is refused, and so is no default.

    By the loss itself, with a ``ValueError`` that names the option, or by the library, which
    holds the options of a recipe to their annotations.
    """
    for name, option in loss.options.items():
        if option.default is not None and option.bounds.stated:
            inside = option.bounds.hold(option.default)
            require(inside, f"the default {name} = {option.default} is outside of its own bounds")
        for value in option.outside:
            try:
                loss(given, **{name: value})
            except ValueError as error:
                named = name in str(error)
                require(named, f"{name} = {value}: the error does not name it: {error}")
            except Exception:  # then its caller has seen it, and a recipe will say more
                _refused_in_a_recipe(loss, given, name, value)
            else:
                _refused_in_a_recipe(loss, given, name, value)


def _refused_in_a_recipe(loss: Loss, given: Arguments, name: str, value: float) -> None:
    keywords = given.keywords
    inputs = {one: one for one, x in keywords.items() if isinstance(x, Tensor)}
    options = {one: x for one, x in keywords.items() if one not in inputs}
    try:
        checked_options(loss.spec.name, loss.function, {**options, name: value}, inputs)
    except OptionError:
        return
    except RecipeError as error:
        raise CheckFailedError(f"{name} = {value} is accepted, and no recipe: {error}") from None
    raise CheckFailedError(f"{name} = {value} is accepted, by a recipe too")


def _zero_at_identity(loss: Loss, given: Arguments, eps: int) -> None:
    for one in (given, *_large(loss, given), *_of_many_classes(loss, given)):
        for dtype in (torch.float64, torch.float32):
            same = one.identical().map_floating(lambda x, d=dtype: x.to(d))  # type: ignore[misc]
            value = loss(same).detach()
            most = eps * torch.finfo(dtype).eps * magnified(loss, given)
            require((value >= 0).all(), f"value {float(value.min()):.3g} at identity")
            require(
                (value <= most).all(),
                f"value {float(value.max()):.3g} at identity, in {_short(dtype)}",
            )


def _large(loss: Loss, given: Arguments) -> list[Arguments]:
    """The call ten thousand times as large: rounding shows there what it hides near 1.

    Not of logits, whose softmax is a constant then, nor of attentions, which make one.
    """
    of_softmax = {"logits", "shift_invariant"} & set(loss.spec.tags)
    if of_softmax or loss.of_attentions or loss.spec.example is not None:
        return []
    return [given.map_floating(lambda x: (x * 1e4).clamp(-6e4, 6e4))]


def _nearly_identical(given: Arguments) -> Arguments:
    """The call whose teacher is the student but for a ten thousandth of it."""
    generator = torch.Generator().manual_seed(0)

    def moved(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return x * (1 + 1e-4 * noise) if x.is_floating_point() else x

    same = given.identical()
    count = len(given.student)
    return replace(same, teacher=(*same.map(moved).teacher[:count], *same.teacher[count:]))


def magnified(loss: Loss, given: Arguments) -> float:
    """By how much options, such as weights and temperatures, may enlarge a value's rounding."""
    chosen = {name: option.default for name, option in loss.options.items()} | given.passed
    numbers = [x for x in map(chosen.get, loss.options) if isinstance(x, int | float)]
    return math.prod(max(1.0, abs(float(x))) ** 2 for x in numbers)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_many_classes(loss: Loss, given: Arguments) -> list[Arguments]:
    """The call with many rows of many entries: rounding shows there what it hides in two or three.

    Of losses that take nothing but two vectors, whose entries may be anything.
    """
    plain = loss.spec.signature in ("(v),(v)->()", "(d),(d)->()") and loss.spec.example is None
    if not plain or any(isinstance(x, Tensor) for x in given.keywords.values()):
        return []
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 33, generator=generator, dtype=torch.float64) * 3
    sizes = dict.fromkeys(given.sizes, 33)
    return [replace(given, student=(rows,), teacher=(rows,), leading=(64,), sizes=sizes)]


def _hotter(given: Arguments, factor: float) -> Arguments:
    def hotter(x: Tensor | Attention) -> Tensor | Attention:
        if isinstance(x, Tensor):
            return x * factor
        return Attention(x.query, x.key, scale=x.scale * factor, mask=x.mask, rows=x.rows)

    student, teacher = (tuple(map(hotter, side)) for side in (given.student, given.teacher))
    return replace(given, student=student, teacher=teacher)


def _one_sided(loss: Loss, given: Arguments, infinite: str) -> None:
    for side in ("student", "teacher"):
        call, student, _ = _without_first(every_row_counts(given), side).with_leaves()
        value = loss(call)
        if side == infinite:
            seen = float(value.detach().flatten()[0])
            require((value == torch.inf).all(), f"value {seen:.6g} where the {side} lacks a class")
        else:
            require(value.isfinite().all(), f"not finite where the {side} alone lacks a class")
            finite = all(gradient.isfinite().all() for gradient in gradients(value, student))
            require(finite, f"gradient not finite where the {side} alone lacks a class")


def _still_teaches(loss: Loss, given: Arguments) -> None:
    first = _first(given)
    if first.shape[-1] < 3:  # besides a label, one class has no distribution
        return
    hottest = max([1.0, *(x for x in given.passed.values() if isinstance(x, float))])

    def with_first(x: Tensor, logit: Tensor) -> Tensor:
        return torch.cat([logit, x[..., 1:]], -1)

    for dtype in (torch.float64, torch.float32):
        values = []
        for gap in (60.0, 200.0):
            student = tuple(
                with_first(x, x.amin(-1, keepdim=True) - gap * hottest)
                for x in given.student
                if isinstance(x, Tensor)
            )
            teacher = tuple(
                with_first(x, x.amax(-1, keepdim=True))
                for x in given.teacher
                if isinstance(x, Tensor)
            )
            far = replace(given, student=student, teacher=teacher)
            call, leaves, _ = far.map_floating(lambda x, d=dtype: x.to(d)).with_leaves()  # type: ignore[misc]
            value = loss(call)
            values.append(value.detach())
            seen = f"where the student puts a class {gap * hottest:g} below, in {_short(dtype)}"
            own = [x.flatten(len(given.leading)).any(-1) for x in gradients(value, leaves)]
            require(all(one.all() for one in own), f"no gradient {seen}")
            require(value.isfinite().all(), f"value {worst(value)} {seen}")
        require((values[1] > values[0]).all(), f"the value does not grow any more {seen}")


def _without_first(given: Arguments, side: str) -> Arguments:
    """The call in which one side lacks the first class or key."""

    def lacking(x: Tensor | Attention) -> Tensor | Attention:
        if isinstance(x, Tensor):
            return torch.cat([torch.full_like(x[..., :1], -torch.inf), x[..., 1:]], -1)
        kept = torch.arange(x.shape[-1]).expand(x.shape[0], 1, 1, -1) > 0
        return Attention(x.query, x.key, scale=x.scale, mask=kept)

    if side == "student":
        return replace(given, student=tuple(map(lacking, given.student)))
    return replace(given, teacher=tuple(map(lacking, given.teacher)))


def _banned(given: Arguments, banned: Tensor, side: str) -> Arguments:
    sides = {"student": given.student, "teacher": given.teacher}
    for name, values in sides.items():
        if side in (name, "both"):
            made = (x.masked_fill(banned, -torch.inf) for x in values if isinstance(x, Tensor))
            sides[name] = tuple(made)
    return replace(given, student=sides["student"], teacher=sides["teacher"])


def _some(x: Tensor) -> Tensor:
    """Every third class and a whole row."""
    banned = (torch.arange(x.shape[-1]) % 3 == 1).expand(x.shape).clone()
    banned.reshape(-1, x.shape[-1])[-1] = True
    return banned


def _first(given: Arguments) -> Tensor:
    first = given.student[0]
    assert isinstance(first, Tensor)
    return first


def _widened(given: Arguments, rubbish: float) -> Arguments:
    """Two more classes in every input, appended, so that labels stay what they are."""
    student, teacher = (
        tuple(F.pad(x, (0, 2), value=rubbish) for x in side if isinstance(x, Tensor))
        for side in (given.student, given.teacher)
    )
    return replace(given, student=student, teacher=teacher)
