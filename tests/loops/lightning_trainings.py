"""Small modules, trainers and a loop by hand for the tests of DistillationModule."""

from __future__ import annotations

import functools
import math

import lightning
import torch
from distillkit_lightning import DistillationModule
from torch.utils.data import DataLoader

from tests.support.lightning_pairs import DUAL, FUSION, RECIPE, Dual, Fusion, examples, task_loss

SGD = functools.partial(torch.optim.SGD, lr=0.5)


def module_of(recipe=RECIPE, **options):
    torch.manual_seed(0)
    options = {"optimizer": SGD, "task_loss": task_loss, **options}
    return DistillationModule(
        Dual().eval(), Fusion(), recipe, student_adapter=DUAL, teacher_adapter=FUSION,
        ignore=["labels"], **options,
    )  # fmt: skip


def without_dropout(module):
    module.student.dropout.p = 0.0
    return module


def trainer_of(folder, **changes):
    options = {
        "max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "logger": False, **changes,
    }  # fmt: skip
    return lightning.Trainer(**options)


def loader_of(count=8, size=2, seed=0):
    return DataLoader(examples(count, seed=seed), batch_size=size)


def weights(module):
    return {name: x.clone() for name, x in module.distiller.state_dict().items()}


def assert_close(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance, msg=name)


class Recording(lightning.pytorch.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


def by_hand(distiller, loader, *, accumulated=1, epochs=1):
    """The loop that lightning must equal."""
    optimizer = SGD(distiller.parameters())
    batches = [*loader] * epochs
    steps = math.ceil(len(batches) / accumulated)
    results = []
    distiller.train()
    for i, batch in enumerate(batches):
        result = distiller(batch, progress=i // accumulated / steps)
        (result.loss / accumulated).backward()
        results.append(result)
        if (i + 1) % accumulated == 0:
            optimizer.step()
            optimizer.zero_grad()
    return results
