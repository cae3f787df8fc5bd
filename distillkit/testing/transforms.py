"""Other calls made from one call of a loss: reordered, padded, laid out anew, made not to fit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .._attention import Attention
from .strategies import Arguments, floating, parsed
from .subject import Loss


def every_row_counts(given: Arguments) -> Arguments:
    """The call with nothing masked in its ``Attention``s."""

    def bare(x: Tensor | Attention) -> Tensor | Attention:
        return Attention(x.query, x.key, scale=x.scale) if isinstance(x, Attention) else x

    student, teacher = (tuple(map(bare, side)) for side in (given.student, given.teacher))
    return replace(given, student=student, teacher=teacher)


def reorder(given: Arguments, cores: list[list[str]], axis: str) -> Arguments:
    """The call with one axis of the signature in reverse order, in every input that has it."""
    half = len(given.student)
    student, teacher = (
        tuple(reordered(x, core, axis) for x, core in zip(side, part, strict=True))  # type: ignore[arg-type]
        for side, part in ((given.student, cores[:half]), (given.teacher, cores[half:]))
    )
    return replace(given, student=student, teacher=teacher)


def reordered(x: Tensor, core: list[str], axis: str) -> Tensor:
    """One tensor with an axis in reverse order, wherever its core has it."""
    dims = [i - len(core) for i, name in enumerate(core) if name == axis]
    return x.flip(dims) if dims else x


def first_is_nan(x: Tensor) -> Tensor:
    """NaN in the first position."""
    return torch.cat([torch.full_like(x[:1], torch.nan), x[1:]])


def with_padding(attention: Attention, rubbish: float) -> Attention:
    """One more row and one more key, which do not count."""

    def appended(x: Tensor, dim: int, fill: float) -> Tensor:
        return torch.cat([x, torch.full_like(x.narrow(dim, 0, 1), fill)], dim)

    assert attention.mask is not None
    assert attention.rows is not None
    mask = attention.mask.expand(attention.mask.shape[0], 1, *attention.shape[2:])
    # the row sees every key: that it does not count, `rows` alone says
    mask = appended(appended(mask, 2, fill=True), 3, fill=False)
    query, key = (appended(x, 2, rubbish) for x in (attention.query, attention.key))
    rows = appended(attention.rows, 2, fill=False)
    return Attention(query, key, scale=attention.scale, mask=mask, rows=rows)


def strided(x: Tensor) -> Tensor:
    """Every second number of a larger tensor."""
    return torch.stack([x, x], -1).flatten(-2)[..., ::2] if x.ndim else x


def transposed(x: Tensor) -> Tensor:
    """Laid out column by column."""
    return x.mT.contiguous().mT if x.ndim > 1 else x


def misfits(loss: Loss, given: Arguments) -> list[tuple[str, Arguments]]:
    """Calls that must fail, each with a word on what does not fit."""
    first = given.take(slice(0, 1))
    found = [("a teacher of one example", replace(given, teacher=first.teacher))]
    found += [("a student of one example", replace(given, student=first.student))]
    if loss.of_attentions:
        return found + _misfit_attentions(given, averaged=loss.averages_heads(given))
    whole = given.map_floating(lambda x: x.long())
    found.append(("integers", replace(given, student=whole.student, teacher=whole.teacher)))
    bare = given.map_floating(torch.sum)
    found.append(
        ("tensors without axes", replace(given, student=bare.student, teacher=bare.teacher))
    )
    if loss.spec.example is not None:
        return found
    cores, _ = parsed(loss.spec.signature)
    half = len(given.student)
    for axis in sorted(set(cores[0]) & set(cores[half])):
        for size in (1, given.sizes[axis] + 1):
            teacher = tuple(
                _resized(x, core, axis, size)
                for x, core in zip(floating(given.teacher), cores[half:], strict=True)
            )
            what = f"a teacher whose {axis!r} is {size}"
            found.append((what, replace(given, teacher=teacher)))
    return found


def _resized(x: Tensor, core: list[str], axis: str, size: int) -> Tensor:
    for dim in (i - len(core) for i, name in enumerate(core) if name == axis):
        x = torch.cat([x, x.narrow(dim, 0, 1)], dim).narrow(dim, 0, size)
    return x


def _misfit_attentions(given: Arguments, *, averaged: bool) -> list[tuple[str, Arguments]]:
    (student,), (teacher,) = given.student, given.teacher
    assert isinstance(teacher, Attention)
    query, key = teacher.query, teacher.key
    others = {
        "one head": Attention(query[:, :1], key[:, :1]),
        "one row": Attention(query[:, :, :1], key),
        "one key": Attention(query, key[:, :, :1]),
    }
    if averaged:  # the average of one head is an average
        del others["one head"]
    return [
        (f"a teacher of {what}", replace(given, student=(student,), teacher=(x,)))
        for what, x in others.items()
    ]
