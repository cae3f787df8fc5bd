"""What ``inspect`` writes of small models whose truth is known, and of models that have none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distillkit as dk
from distillkit import testing
from distillkit._inspect.inspection import inspect_model
from tests.support import layout_models
from tests.support.layout_models import RIGHT
from tests.support.layouts_told import told

UNSEEN = {
    "fusion, mixing": "[[tokens.joint]] grid = [rows, columns]",
    "decoder, mixing": "[[tokens.joint]] grid = [rows, columns]",
    "dual, mixing": "[[tokens.image]] grid = [rows, columns]",
    "dual, overlapping": "[[tokens.image]] grid = [rows, columns]",
    "cross, mixing": "[[tokens.image]] grid = [rows, columns]",
    "cross, overlapping": "[[tokens.image]] grid = [rows, columns]",
}


def made(name):
    torch.manual_seed(0)
    model, batch, adapter = RIGHT[name]()
    return model.eval(), batch, adapter


@pytest.mark.parametrize("name", RIGHT)
def test_the_file_says_the_truth_or_what_is_missing(name):
    model, batch, truth = made(name)
    inspection = inspect_model(model, batch)
    assert inspection.missing == ([UNSEEN[name]] if name in UNSEEN else [])
    if name in UNSEEN:
        return
    assert inspection.passed, str(inspection)
    ours = dk.DeclarativeAdapter(**inspection.file.tables)
    assert ours.streams == truth.streams
    said, right = told(ours, model, batch), told(truth, model, batch)
    assert {key: said[key] for key in right if key[1] == "image"} == {
        key: right[key] for key in right if key[1] == "image"
    }
    assert {key: said[key][0] for key in right if key[1] == "text"} == {
        key: right[key][0] for key in right if key[1] == "text"
    }
    assert {key: said[key] for key in right if key[1] == "valid"} == {
        key: right[key] for key in right if key[1] == "valid"
    }


class Transposed(layout_models.Local):
    """Patches column by column."""

    def forward(self, pictures):
        return self.cut(pictures).mT.flatten(2).mT


class Drawn(layout_models.Local):
    """Patches in another order each time."""

    def forward(self, pictures):
        x = super().forward(pictures)
        return x[:, torch.randperm(x.shape[1])]


def with_tower(tower, model="fusion"):
    torch.manual_seed(0)
    made = layout_models.MODELS[model]("local").eval()
    made.tower = tower
    return made, layout_models.batch(model)


def test_patches_in_another_order_are_no_grid():
    inspection = inspect_model(*with_tower(Transposed()))
    assert inspection.missing == ["[[tokens.joint]] grid = [rows, columns]"]
    assert "the patches come as 0, 4, 8, 12, 1, 5, ... of the picture's own order" in " ".join(
        str(inspection).replace("\n#  ", "").split()
    )
    assert not inspection.passed


def test_patches_in_an_order_that_is_drawn():
    inspection = inspect_model(*with_tower(Drawn()))
    assert inspection.missing == ["[[tokens.joint]] positions"]
    assert "write a class, whose `returns` names the method" in " ".join(
        str(inspection).replace("\n#  ", "").split()
    )


def test_a_mask_that_hides_nothing_is_no_mask():
    class Unmasked(layout_models.Dual):
        def forward(self, ids, mask, pictures):
            return super().forward(ids, torch.ones_like(mask), pictures)

    torch.manual_seed(0)
    inspection = inspect_model(Unmasked("local").eval(), layout_models.batch("dual"))
    assert '# mask = "mask"  # taking a token out of it hides no key here' in str(inspection)
    assert "mask" not in inspection.file.tables["tokens"]["text"][0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_lengths_instead_of_a_mask(side):
    class Counted(layout_models.Fusion):
        def forward(self, ids, lengths, pictures):
            place = torch.arange(ids.shape[1])
            place = place.flip(0) if side == "left" else place
            return super().forward(ids, place < lengths[:, None], pictures)

    torch.manual_seed(0)
    batch = layout_models.batch("fusion", left=side == "left")
    batch["lengths"] = batch.pop("mask").sum(1)
    inspection = inspect_model(Counted("local").eval(), batch)
    text = inspection.file.tables["tokens"]["joint"][0]
    assert text["lengths"] == "lengths"
    assert text.get("padding", "right") == side
    assert inspection.passed, str(inspection)


def test_arguments_by_kwargs_become_inputs():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layout_models.Fusion("local")

        def forward(self, ids, **others):
            return self.inner(ids, others["mask"], others["pictures"])

    torch.manual_seed(0)
    inspection = inspect_model(Wrapped().eval(), layout_models.batch("fusion"))
    assert inspection.passed, str(inspection)
    assert inspection.file.tables["inputs"] == {
        name: name for name in layout_models.batch("fusion")
    }


def test_the_model_is_left_as_it_was():
    model, batch, _ = made("fusion, attending")
    model.train()
    before, state = model.state_dict(), torch.random.get_rng_state()
    inspect_model(model, batch)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(x.grad is None for x in model.parameters())


def test_a_kit_that_fails_is_printed_and_not_passed(monkeypatch):
    """A file is right only if the kit says so, whatever was seen."""
    from distillkit._inspect import inspection as module

    model, batch, _ = made("dual, local")
    wrong = testing.CheckResult("a_check", passed=False, seen="something else")
    monkeypatch.setattr(module, "check_adapter", lambda factory: [wrong])
    inspection = inspect_model(model, batch)
    assert not inspection.passed
    assert "# failed  a_check: something else" in str(inspection)


def test_a_model_without_attention_is_an_error():
    with pytest.raises(dk.errors.DistillKitError, match="no attention was found"):
        inspect_model(nn.Linear(2, 2), {"input": torch.randn(2, 2)})
