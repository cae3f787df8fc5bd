"""The aligner kit: right aligners pass, and every planted fault is caught by the check for it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import distillkit as dk
from distillkit import errors, testing
from distillkit._plugins.registry import provided
from distillkit.testing.aligner_checks import CHECKS

TEXT = dk.TokenAxis("text")


def widths():
    return torch.randn(3, 5, 3), torch.randn(3, 5, 4)


def vectors():
    return torch.randn(3, 3), torch.randn(3, 4)


def classes():
    return torch.randn(3, 5), torch.randn(3, 8)


def attention(b, q, k):
    return dk.Attention(torch.randn(b, 2, q, 4), torch.randn(b, 2, k, 4))


def pieces():
    words = torch.tensor([[[0.0, 4], [5, 9], [10, 14]]]).expand(2, -1, -1)
    parts = torch.tensor([[[0.0, 2], [2, 4], [5, 9], [10, 14]]]).expand(2, -1, -1)
    word, part = (dk.TokenAxis("text", extents=one) for one in (words, parts))
    return attention(2, 3, 3), attention(2, 4, 4), (word, word), (part, part)


def cls_of_one_side():
    real = torch.ones(2, 4, dtype=torch.bool)
    patches = dk.TokenAxis("image", special=(0,), valid=real)
    return (
        attention(2, 3, 4), attention(2, 3, 3),
        (TEXT, patches), (TEXT, dk.TokenAxis("image")),
    )  # fmt: skip


def cls_of_hidden_states():
    real = torch.ones(2, 4, dtype=torch.bool)
    patches = dk.TokenAxis("image", special=(0,), valid=real)
    return torch.randn(2, 4, 3), torch.randn(2, 3, 3), (patches,), (dk.TokenAxis("image"),)


def heads():
    return attention(2, 3, 4), dk.Attention(torch.randn(2, 3, 3, 5), torch.randn(2, 3, 4, 5))


def unequally_many_tokens():
    valid = torch.tensor([[True, True, True, True], [True, True, False, True]])
    axes = (
        (dk.TokenAxis("image", valid=valid),),
        (dk.TokenAxis("image", valid=torch.ones(2, 6, dtype=torch.bool)),),
    )
    return torch.randn(2, 4, 3), torch.randn(2, 6, 3), *axes


def more_of_the_student():
    student, teacher, *axes = unequally_many_tokens()
    return teacher, student, *reversed(axes)


OWN = [
    testing.AlignerCase("head_map", heads),
    testing.AlignerCase("head_map", heads, options={"student_heads": 2, "teacher_heads": 3}),
    testing.AlignerCase("match_tokens", unequally_many_tokens),
    testing.AlignerCase("match_tokens", more_of_the_student, options={"cost": "cosine"}),
    testing.AlignerCase("projector", widths),
    testing.AlignerCase("projector", vectors),
    testing.AlignerCase("projector", widths, options={"student_width": 3, "teacher_width": 4}),
    testing.AlignerCase("projector", widths, options={"kind": "orthogonal", "bias": True}),
    testing.AlignerCase("truncate", classes),
    testing.AlignerCase("mask", classes),
    testing.AlignerCase("overlap", pieces),
    testing.AlignerCase("drop_special", cls_of_one_side),
    testing.AlignerCase("drop_special", cls_of_hidden_states),
]


@testing.parametrize_with_aligner_checks(OWN)
def test_the_core_s_own(case, check):
    check(case)


def test_all_of_the_core_s_own_are_tried():
    named = {n for n, owners in provided(dk.AlignerSpec).items() if "distillkit" in owners}
    assert named == {case.name for case in OWN}


class Widener(nn.Module):
    """A right aligner: a learned map of the student's width, of which the faults are changes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, student, teacher):
        for side in (student, teacher):
            if not isinstance(side, torch.Tensor) or side.ndim < 2:
                raise errors.ShapeError(f"widener takes tensors (..., d); got {side}")
        if (student.shape[-1], teacher.shape[-1]) != (3, 4):
            raise errors.ShapeError(f"widener maps 3 to 4; got {student.shape}, {teacher.shape}")
        return self.map(student.to(self.linear.weight.dtype)).to(student.dtype), teacher

    def map(self, student):
        return self.linear(student)


class Chosen(Widener):
    """A right aligner that leaves out the last token of both sides and says so."""

    def forward(self, student, teacher):
        one, other = super().forward(student, teacher)
        return one[:, :-1], other[:, :-1]

    def align_tokens(self, student_tokens, teacher_tokens):
        return tuple(
            tuple(dk.TokenAxis(a.modality, valid=a.valid[:, :-1]) for a in side)
            for side in (student_tokens, teacher_tokens)
        )


def with_tokens():
    axis = dk.TokenAxis("text", valid=torch.ones(3, 5, dtype=torch.bool))
    return *widths(), (axis,), (axis,)


def failed(factory, example=widths):
    spec = dk.AlignerSpec("mine", factory=factory)
    return {r.name: r.seen for r in testing.check_aligner(spec, example) if not r.passed}


@pytest.mark.parametrize(("factory", "example"), [(Widener, widths), (Widener, vectors), (Chosen, with_tokens)])  # fmt: skip
def test_right_ones_pass(factory, example):
    assert failed(factory, example) == {}


class Alone(Widener):
    def forward(self, student, teacher):
        return super().forward(student, teacher)[0]


class Unequal(Widener):
    def forward(self, student, teacher):
        return super().forward(student, teacher)[0][..., :2], teacher


class InPlace(Widener):
    def forward(self, student, teacher):
        one, other = super().forward(student, teacher)
        return one, other.mul_(2)


class Detached(Widener):
    def map(self, student):
        return self.linear(student.detach())


class Unused(Widener):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class OneDtype(Widener):
    def forward(self, student, teacher):
        return super().forward(student, teacher)[0].to(self.linear.weight.dtype), teacher


class Loose(Widener):
    def __init__(self):
        super().__init__()
        self.offset = torch.ones(4)

    def map(self, student):
        return self.linear(student) + self.offset.to(student)


class SharedInCopies(Widener):
    def __deepcopy__(self, memo):
        return self


class Unpicklable(Widener):
    def __init__(self):
        super().__init__()
        self.after = lambda x: x


class Forgetful(Widener):
    def __init__(self):
        super().__init__()
        self.register_buffer("drawn", torch.randn(4), persistent=False)

    def map(self, student):
        return self.linear(student) + self.drawn


class NeedsExamples(Widener):
    def map(self, student):
        return self.linear(student / student.abs().amax())


class Mixes(Widener):
    def map(self, student):
        return self.linear(student - student.mean(0))


class SilentlyFewer(Widener):
    def forward(self, student, teacher):
        one, other = super().forward(student, teacher)
        return one[:, 1:], other[:, 1:]


class SaysOtherwise(Chosen):
    def align_tokens(self, student_tokens, teacher_tokens):
        return student_tokens, teacher_tokens[:0]


class OverTokens(Widener):
    def map(self, student):
        return self.linear(student - student.mean(-2, keepdim=True))


class Raw(Widener):
    def forward(self, student, teacher):
        return self.map(student.to(self.linear.weight.dtype)).to(student.dtype), teacher


class Anything(nn.Module):
    def forward(self, student, teacher):
        return student, teacher


FAULTS = [
    (Alone, widths, "returns_both_sides", "returns a Tensor"),
    (Unequal, widths, "sides_fit", r"student \(3, 5, 2\), teacher \(3, 5, 4\)"),
    (InPlace, widths, "leaves_its_inputs", "changes the teacher's signal"),
    (Detached, widths, "gradient_reaches_the_student", "no gradient reaches the student"),
    (Unused, widths, "gradient_reaches_its_parameters", "reaches scale"),
    (OneDtype, widths, "takes_other_dtypes", "bfloat16"),
    (Loose, widths, "moves_whole", "offset would stay"),
    (SharedInCopies, widths, "copies", "once a copy of it has learned"),
    (Unpicklable, widths, "copies", "does not pickle"),
    (Forgetful, widths, "keeps_its_state", "another one with its state makes"),
    (NeedsExamples, widths, "takes_an_empty_batch", "amax"),
    (Mixes, widths, "keeps_examples_apart", "example 0 of the student"),
    (SilentlyFewer, with_tokens, "says_which_tokens_it_leaves", "give it a method align_tokens"),
    (SaysOtherwise, with_tokens, "says_which_tokens_it_leaves", "align_tokens says|nothing says"),
    (OverTokens, widths, "ignores_padding", "reaches the student"),
    (Raw, widths, "refuses_what_does_not_fit", "raw TypeError"),
    (Anything, lambda: widths()[:1] * 2, "refuses_what_does_not_fit", "it takes anything"),
]


@pytest.mark.parametrize(
    ("factory", "example", "check", "seen"), FAULTS, ids=lambda x: getattr(x, "__name__", None)
)
def test_a_planted_fault_is_caught(factory, example, check, seen):
    found = failed(factory, example)
    assert check in found, found
    assert re.search(seen, found[check]), found[check]


def test_every_check_has_a_fault_to_catch():
    assert {check for _, _, check, _ in FAULTS} == set(CHECKS)


class KeepsPaddedKeys:
    """An aligner of attention that forgets masks and rows."""

    def __call__(self, student, teacher):
        for side in (student, teacher):
            if not isinstance(side, dk.Attention):
                raise errors.ShapeError("takes attentions")
        scores = torch.where(student.scores().isfinite(), student.scores(), 0)
        return dk.Attention.from_scores(scores), teacher


def test_an_aligner_of_attention_that_forgets_the_mask_is_caught():
    def example():
        return attention(2, 3, 4), attention(2, 3, 4)

    class Drops:
        def __call__(self, student, teacher):
            return student.between([0, 1], [1, 2]), teacher.between([0, 1], [1, 2])

    assert "says_which_tokens_it_leaves" in failed(Drops, example)
    assert list(failed(KeepsPaddedKeys, example)) == ["ignores_padding"]


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (lambda student, teacher: (student, teacher), "missing a required argument: 'student'.*is call"),
        (lambda: 3, "its factory returned 3"),
    ],
)  # fmt: skip
def test_a_factory_that_makes_no_aligner_says_what_it_is_called_with(factory, complaint):
    dk.register(dk.AlignerSpec("test_wrong_factory", factory=factory))
    with pytest.raises(errors.RecipeError, match=f"aligner 'test_wrong_factory': {complaint}"):
        dk.Term("mse", on="h", align=["test_wrong_factory"])


def test_a_term_says_that_an_aligner_returns_both_sides():
    dk.register(dk.AlignerSpec("test_alone", factory=Alone))
    term = dk.Term("mse", on="h", align=["test_alone"])
    student, teacher = (dk.Signals({"h": x.requires_grad_()}) for x in widths())
    with pytest.raises(errors.RecipeError, match="'test_alone' returned a Tensor.*both sides"):
        term(student, teacher)


def test_a_mean_over_tokens_leaves_no_padding():
    """An aligner whose result has no token axis says so by ``()``; the term then counts examples."""

    class Mean:
        def __call__(self, student, teacher, *, student_tokens=(), teacher_tokens=()):
            return tuple(
                (x * a.valid[..., None]).sum(1) / a.valid.sum(1, keepdim=True)
                for x, (a,) in ((student, student_tokens), (teacher, teacher_tokens))
            )

        def align_tokens(self, student_tokens, teacher_tokens):
            return (), ()

    dk.register(dk.AlignerSpec("test_mean", factory=Mean))
    real = torch.tensor([[True, True, False], [True, False, False]])
    torch.manual_seed(0)
    one, other = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    sides = [dk.Signals({"h": x}, {"h": real}, axes={"h": (TEXT,)}) for x in (one, other)]
    value = dk.Term("mse", on="h", align=["test_mean"])(*sides)
    means = [torch.stack([x[0, :2].mean(0), x[1, 0]]) for x in (one, other)]
    torch.testing.assert_close(value, dk.losses.mse(*means).mean())
