"""What every loss owes: each check a plain function of a loss and one call of it.

A check returns nothing, or raises :class:`CheckFailedError` with one line that says what it saw.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from .._attention import Attention
from ..losses import masked_mean
from .strategies import Arguments, parsed
from .subject import CheckFailedError, Loss, gradients, require, require_close, worst
from .transforms import (
    every_row_counts,
    first_is_nan,
    misfits,
    reorder,
    reordered,
    strided,
    transposed,
    with_padding,
)


def shape(loss: Loss, given: Arguments) -> None:
    """One tensor: the leading axes, then the axes that the signature returns.

    With ``heads="mean"`` a loss of ``Attention``s returns one head.
    """
    value = loss(given)
    sizes = {**given.sizes, "h": 1} if loss.averages_heads(given) else given.sizes
    core = tuple(sizes[axis] for axis in parsed(loss.spec.signature)[1])
    expected = (*given.leading, *core)
    found = tuple(value.shape)
    require(found == expected, f"returned shape {found}, declared {expected}")
    require(value.dtype == torch.float64, f"float64 inputs gave {value.dtype}")


def positions_independent(loss: Loss, given: Arguments) -> None:
    """A position alone gives the same value; NaN in one reaches no other, nor its gradient."""
    whole = loss(given)
    for i in range(given.leading[0]):
        alone = loss(given.take(slice(i, i + 1)))
        require_close(alone, whole[i : i + 1], f"position {i} alone")
    one, student, teacher = given.with_leaves()
    other, dirty_student, dirty_teacher = given.map_floating(first_is_nan).with_leaves()
    require_close(loss(other)[1:], loss(one)[1:], "beside a position of NaN")
    clean = gradients(loss(one)[1:], [*student, *teacher])
    dirty = gradients(loss(other)[1:], [*dirty_student, *dirty_teacher])
    for mine, others in zip(dirty, clean, strict=True):
        require_close(mine[1:], others[1:], "gradient beside a position of NaN")


def split_invariance(loss: Loss, given: Arguments) -> None:
    """The parts of a batch, divided by the whole batch's count, add up to its masked mean."""
    copy, student, _ = given.with_leaves()
    value = loss(copy)
    keep = torch.arange(value.numel()).reshape(value.shape) % 3 != 1
    whole = masked_mean(value, keep)
    parts = torch.zeros((), dtype=torch.float64)
    for i in range(given.leading[0]):
        part = slice(i, i + 1)
        parts = parts + masked_mean(loss(copy.take(part)), keep[part], normalizer=keep.sum())
    require_close(parts, whole, "sum over the parts of a batch")
    pairs = zip(gradients(parts, student), gradients(whole, student), strict=True)
    for of_parts, of_whole in pairs:
        require_close(of_parts, of_whole, "gradient of the parts of a batch")


def finite_gradient(loss: Loss, given: Arguments) -> None:
    """Value and gradient are finite everywhere: at equality, zeros, ties, one-hot and extremes."""
    calls = {"": given, **_at_zero(loss, given)}
    if given.can_be_identical(loss.spec):
        calls |= _at_equality(loss, given.identical())
    for name, call in calls.items():
        copy, student, teacher = call.with_leaves()
        value = loss(copy)
        require(value.isfinite().all(), f"value {worst(value)}{name}")
        parameters = loss.parameters_for(copy)
        found = gradients(value, [*student, *teacher, *parameters.values()])
        sides = ["the student"] * len(student) + ["the teacher"] * len(teacher)
        sides += [f"the parameter {one!r}" for one in parameters]
        for side, gradient in zip(sides, found, strict=True):
            require(gradient.isfinite().all(), f"gradient to {side} not finite{name}")


def _at_zero(loss: Loss, given: Arguments) -> dict[str, Arguments]:
    """The call with one side, and with both, at 0: a vector without length or direction."""
    if loss.spec.example is not None or loss.of_attentions:
        return {}  # what else may stand there, 0 may be no value of
    student = tuple(torch.zeros_like(x) for x in given.student if isinstance(x, Tensor))
    teacher = tuple(torch.zeros_like(x) for x in given.teacher if isinstance(x, Tensor))
    return {
        " where the student is 0": replace(given, student=student),
        " where both sides are 0": replace(given, student=student, teacher=teacher),
    }


def _at_equality(loss: Loss, same: Arguments) -> dict[str, Arguments]:
    """The call of equal sides, and again at every value of each option that it leaves alone."""
    calls = {" where student equals teacher": same}
    if same.options:
        return calls
    for name, option in loss.options.items():
        for value in (*option.inside, *option.edges):
            call = loss.accepted(replace(same, options={name: value}))
            calls[f" where student equals teacher, at {name} = {value}"] = call
    return calls


def nan_reaches_value(loss: Loss, given: Arguments) -> None:
    """A student of NaN gives a value of NaN: a model that diverged is seen, not averaged away."""
    bare = every_row_counts(given)
    for i, x in enumerate(bare.student):
        student = list(bare.student)
        student[i] = first_is_nan(x) if isinstance(x, Tensor) else _nan_queries(x)
        value = loss(replace(bare, student=tuple(student)))[0].detach()
        require(value.isnan().any(), f"value {float(value.flatten()[0]):.6g} of a student of NaN")


def gradcheck(loss: Loss, given: Arguments) -> None:
    """The gradient to every input is the slope of the value, away from kinks, in float64."""
    _gradcheck(loss, given)


def gradient_reaches_student(loss: Loss, given: Arguments) -> None:
    """Every input of the student, in every position, and every parameter gets a gradient.

    Where a loss is flat, its gradient is rightly 0: such a position is asked again with the
    student's numbers elsewhere, since one that is cut off has no gradient anywhere.
    """
    parameters = loss.parameters_for(given)
    factors = _elsewhere(loss)
    reached: list[Tensor] = []
    for factor in factors:
        inputs, learned = _gradients_of(loss, _times(given, factor), list(parameters.values()))
        own = [x.flatten(len(given.leading)).any(-1) for x in inputs]
        reached = [one | more for one, more in zip(reached, own, strict=True)] if reached else own
        for name, gradient in zip(parameters, learned, strict=True):
            require(gradient.any(), f"no gradient reaches the parameter {name!r}")
        if all(one.all() for one in reached):
            return
    raise CheckFailedError("no gradient reaches the student")


def _elsewhere(loss: Loss) -> tuple[float, ...]:
    """By what a student's numbers may be multiplied; what an example makes may allow nothing."""
    if loss.spec.example is None:
        return (1.0, 4.0, 16.0, -4.0, 0.25)
    of_logits = {"logits", "shift_invariant"} & set(loss.spec.tags)
    return (1.0, 4.0, 16.0) if of_logits else (1.0,)


def _times(given: Arguments, factor: float) -> Arguments:
    """The call with the student's tensors multiplied by a factor."""
    student = tuple(x * factor if isinstance(x, Tensor) else x for x in given.student)
    return given if factor == 1 else replace(given, student=student)


def _gradients_of(
    loss: Loss, given: Arguments, parameters: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the student's inputs and of parameters, of values that weigh unequally."""
    copy, student, _ = every_row_counts(given).with_leaves()
    value = loss(copy)
    # weights, so that nothing cancels in the sum
    weights = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    found = list(gradients(value, [*student, *parameters], weights))
    return found[: len(student)], found[len(student) :]


def padding(loss: Loss, given: Arguments) -> None:
    """Appended padding, whatever it holds, changes neither value nor gradient and gets none.

    For a loss of ``Attention``s: keys that the mask drops and rows that do not count, which have
    value 0. For others: positions that the mean's mask drops.
    """
    for rubbish in (0.0, 1e4, -3.0):
        _padded_positions(loss, given, rubbish)
    if loss.of_attentions:
        for rubbish in (0.0, 1e4, torch.nan, torch.inf):
            _padded_tokens(loss, given, rubbish)


def permutation(loss: Loss, given: Arguments) -> None:
    """Reordered examples, and reordered axes that are returned, reorder the value alone."""
    if given.leading:
        order = torch.arange(given.leading[0]).flip(0).roll(1)
        require_close(loss(given.take(order)), loss(given)[order], "reordered positions")
    cores, result = parsed(loss.spec.signature)
    if loss.of_attentions:
        _reordered_tokens(loss, given)
    elif loss.spec.example is None:
        for axis in sorted(set(result)):
            expected = reordered(loss(given), result, axis)
            found = loss(reorder(given, cores, axis))
            require_close(found, expected, f"reordered axis {axis!r}")


def same_twice(loss: Loss, given: Arguments) -> None:
    """The same result twice, also after another call: no hidden state, no random numbers."""
    before, random = loss(given), torch.get_rng_state()
    loss(given.map_floating(lambda x: 2 * x + 1))
    again = loss(given)
    require(torch.equal(before.nan_to_num(7), again.nan_to_num(7)), "a second call differs")
    require(torch.equal(torch.get_rng_state(), random), "random numbers were drawn")


def inputs_unchanged(loss: Loss, given: Arguments) -> None:
    """No input is written to, in the backward either."""
    copy = given.map(torch.clone)
    for call in (copy, copy.with_leaves()[0]):
        tensors = call.tensors()
        before = [(x.detach().clone(), x._version) for x in tensors]  # noqa: SLF001
        try:
            gradients(loss(call), [x for x in tensors if x.requires_grad])
        except RuntimeError as error:
            raise CheckFailedError(f"an input is written to: {error}") from None
        for x, (values, version) in zip(tensors, before, strict=True):
            same = torch.equal(x.detach().nan_to_num(7), values.nan_to_num(7))
            require(same and x._version == version, "an input is written to")  # noqa: SLF001


def memory_layout(loss: Loss, given: Arguments) -> None:
    """Strided, transposed and expanded inputs give the value of contiguous ones."""
    expected = loss(given)
    require_close(loss(given.map(strided)), expected, "strided inputs")
    require_close(loss(given.map(transposed)), expected, "transposed inputs")
    if given.leading:
        count = given.leading[0]
        first = given.take(slice(0, 1))
        widened = first.map(lambda x: x.expand(count, *x.shape[1:]))
        repeated = first.map(lambda x: x.repeat(count, *[1] * (x.ndim - 1)))
        require_close(loss(widened), loss(repeated), "expanded inputs")


def edge_sizes(loss: Loss, given: Arguments) -> None:
    """The smallest sizes and an empty batch have a finite value and gradient.

    The smallest size of an axis is 1, or 2 where the loss refuses 1 with a ``ValueError``.
    """
    shape(loss, given)
    finite_gradient(loss, given)


def device(loss: Loss, given: Arguments) -> None:
    """It computes where its inputs are: on the meta device, on an accelerator if there is one."""
    expected = loss(given)
    places = ["meta"]
    if torch.accelerator.is_available():
        places.append(str(torch.accelerator.current_accelerator()))
    for place in places:
        moved = given.map(lambda x, p=place: x.to(p))  # type: ignore[misc]
        try:
            value = loss(moved)
        except RuntimeError as error:  # an operation that the device lacks is one, too
            line = str(error).splitlines()[0]
            raise CheckFailedError(f"inputs on {place}: {line}") from None
        found = value.device.type
        require(found == torch.device(place).type, f"inputs on {place} gave a value on {found}")
        require(value.shape == expected.shape, f"another shape on {place}: {tuple(value.shape)}")


def bad_shapes(loss: Loss, given: Arguments) -> None:
    """Inputs that do not fit raise a ``ValueError`` with both shapes; none is broadcast.

    The library's ``ShapeError`` is a ``ValueError``. Integers are refused by a word on dtypes.
    """
    for what, call in misfits(loss, given):
        try:
            value = loss(call)
        except ValueError as error:
            wanted = _to_print(loss, what, call)
            require(
                all(re.search(pattern, str(error)) for pattern in wanted.values()),
                f"{what}: the error does not print {' and '.join(wanted)}: {error}",
            )
        except Exception as error:
            said = f"{what}: {type(error).__name__}, not a ShapeError or another ValueError"
            raise CheckFailedError(said) from None
        else:
            shapes = " and ".join(str(tuple(x.shape)) for x in (call.student[0], call.teacher[0]))
            raise CheckFailedError(
                f"{what}, {shapes}: no error, but a value of shape {tuple(value.shape)}"
            )


def _gradcheck(loss: Loss, given: Arguments) -> None:
    copy, student, teacher = given.with_leaves()
    leaves = iter([*student, *teacher])
    order = [next(leaves) for _ in (*student, *teacher)]

    def function(*values: Tensor) -> Tensor:
        chosen = dict(zip(map(id, order), values, strict=True))
        return loss(copy.map(lambda x: chosen.get(id(x), x)))

    try:
        torch.autograd.gradcheck(function, order)
    except RuntimeError as error:
        raise CheckFailedError(str(error).strip().splitlines()[0]) from None


def _nan_queries(x: Attention) -> Attention:
    return Attention(first_is_nan(x.query), x.key, scale=x.scale)


def _padded_positions(loss: Loss, given: Arguments, rubbish: float) -> None:
    def padded(x: Tensor) -> Tensor:
        extra = torch.full_like(x[:1], rubbish if x.is_floating_point() else 0)
        return torch.cat([x, extra])

    copy, student, teacher = given.with_leaves()
    value = loss(copy)
    grown = loss(copy.map(padded))
    keep = torch.arange(grown.shape[0]) < given.leading[0]
    keep = keep.reshape(-1, *[1] * (grown.ndim - 1))
    whole, padded_mean = masked_mean(value), masked_mean(grown, keep)
    require_close(padded_mean, whole, f"mean with a padded position of {rubbish}")
    leaves = [*student, *teacher]
    pairs = zip(gradients(padded_mean, leaves), gradients(whole, leaves), strict=True)
    for found, expected in pairs:
        require_close(found, expected, f"gradient with a padded position of {rubbish}")


def _padded_tokens(loss: Loss, given: Arguments, rubbish: float) -> None:
    copy, student, teacher = given.with_leaves()
    value = loss(copy)
    (one,), (other,) = copy.student, copy.teacher
    assert isinstance(one, Attention)
    assert isinstance(other, Attention)
    padded = (with_padding(x, rubbish) for x in (one, other))
    grown = loss(replace(copy, student=(next(padded),), teacher=(next(padded),)))
    count = value.shape[-1]
    name = f"a padded row and key of {rubbish}"
    require_close(grown[..., :count], value, f"value with {name}")
    require(not grown[..., count:].any(), f"a padded row of {rubbish} has a value")
    if one.rows is not None:
        dropped = ~one.rows.expand(value.shape)
        require(not value[dropped].any(), "a row that does not count has a value")
    leaves = [*student, *teacher]
    pairs = zip(gradients(grown, leaves), gradients(value, leaves), strict=True)
    for found, expected in pairs:
        require_close(found, expected, f"gradient with {name}")


def _reordered_tokens(loss: Loss, given: Arguments) -> None:
    def turned(x: Tensor | Attention) -> Attention:
        assert isinstance(x, Attention)
        assert x.mask is not None
        assert x.rows is not None
        return Attention(
            x.query.flip(1, 2), x.key.flip(1, 2), scale=x.scale, mask=x.mask.flip(2, 3),
            rows=x.rows.flip(2),
        )  # fmt: skip

    student, teacher = (tuple(map(turned, side)) for side in (given.student, given.teacher))
    found = loss(replace(given, student=student, teacher=teacher))
    require_close(found, loss(given).flip(1, 2), "reordered heads, rows and keys")


def _to_print(loss: Loss, what: str, call: Arguments) -> dict[str, str]:
    """What an error's message must contain, with a pattern for each."""
    if what == "integers":
        return {"the dtype": r"int64|torch\.long|\binteger|\bfloat"}
    if loss.spec.example is not None:  # it may compare what it made of its inputs
        return {"a shape": r"[(\[][\d, ]*[)\]]"}
    shapes = (tuple(x.shape) for x in (call.student[0], call.teacher[0]))
    return {str(shape): _printed(shape) for shape in shapes}


def _printed(shape: tuple[int, ...]) -> str:
    """A shape as a tuple, a list or a ``torch.Size``."""
    sizes = r",\s*".join(map(str, shape))
    return rf"[(\[]\s*{sizes},?\s*[)\]]"
