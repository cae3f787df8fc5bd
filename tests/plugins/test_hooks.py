"""Every hook does what its page says; a test sees to it that each has a test and a heading."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch

import distillkit as dk
from distillkit import testing
from distillkit._plugins import hookspecs
from distillkit._plugins.specs import SPEC_TYPES

HOOKS = {name for name in dir(hookspecs) if name.startswith("distillkit_")}
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "plugins.md"


def test_hook_distillkit_losses(install):
    install("good")
    student = dk.Signals({"logits": torch.tensor([[1.0, 3.0]], requires_grad=True)})
    teacher = dk.Signals({"logits": torch.tensor([[0.0, 0.0]])})
    assert dk.Term("good_l1", on="logits")(student, teacher).item() == 2.0


def test_hook_distillkit_adapters(install):
    install("good")
    from fake_good.parts import Backbone

    for adapter in (dk.adapter_for(Backbone()), dk.adapter_for(Backbone(), "good-backbone")):
        assert adapter.streams == {"joint": "attention"}


def test_hook_distillkit_aligners(install):
    install("good")
    student = dk.Signals({"logits": torch.tensor([[1.0, 9.0]], requires_grad=True)})
    teacher = dk.Signals({"logits": torch.tensor([[3.0, 0.0]])})
    term = dk.Term("good_l1", on="logits", align=["good_halves"])
    assert term(student, teacher).item() == 2.0  # the second entries are dropped


def test_hook_distillkit_recipes(install):
    install("good")
    recipe = dk.load_recipe("good_recipe")
    assert (recipe.name, recipe.terms[0].align) == ("good", ("good_halves",))


def test_hook_distillkit_operations(install):
    install("good")
    from fake_good.parts import Backbone

    model, x = Backbone(), torch.randn(2, 5, 8)
    with dk.capture(model, "attention") as record:
        model(x)
    split = x.unflatten(-1, (2, -1)).transpose(1, 2)
    expected = (split @ split.mT / 2).softmax(-1)
    torch.testing.assert_close(record["attention"].probabilities(), expected)


def test_hook_distillkit_weightings(install):
    install("good")
    student = torch.nn.Linear(2, 2)
    terms = [dk.Term("good_l1", on=name) for name in ("logits", "more")]
    objective = dk.Objective(terms, weighting="good_halved")
    for _ in range(2):
        logits = student(torch.ones(1, 2))
        signals = dk.Signals({"logits": logits, "more": logits + 5})
        teacher = dk.Signals({"logits": logits.detach() + 1, "more": logits.detach()})
        weights = objective(signals, teacher, model=student).weights
        torch.optim.SGD(student.parameters(), lr=0.0).step()
        with torch.no_grad():
            student.weight.add_(0)
    assert weights == {"good_l1/logits": 1.0, "good_l1/more": 0.5}
    assert all(result.passed for result in testing.check_weighting("good_halved"))


def test_every_hook_is_a_kind_of_spec_and_has_a_test_and_a_heading_with_its_arguments():
    tests = {name.removeprefix("test_hook_") for name in globals() if name.startswith("test_hook_")}
    headings = set(re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    declared = {
        name + str(inspect.signature(getattr(hookspecs, name)).replace(return_annotation=""))
        for name in HOOKS
    }
    declared = {heading.replace(" -> ''", "") for heading in declared}
    assert tests == HOOKS == {spec_type.hook for spec_type in SPEC_TYPES}
    assert headings == declared
    assert all(getattr(hookspecs, name).__doc__ for name in HOOKS)
