"""Lightning trains students that were checkpointed, compiled, or given adapters."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning")

from tests.loops.lightning_trainings import (
    assert_close,
    by_hand,
    loader_of,
    module_of,
    trainer_of,
    without_dropout,
)
from tests.support.students import checkpoint_blocks, compiling

pytestmark = pytest.mark.filterwarnings("ignore")


def checkpointing(distiller):
    return checkpoint_blocks([distiller.student.text, distiller.student.image])


def adding_lora(distiller):
    pytest.importorskip("peft")
    from tests.loops.real_adapters import add_lora

    return add_lora(distiller)


def trained_weights(module):
    names = module.distiller.named_parameters()
    return {name.replace("_orig_mod.", ""): x.detach().clone() for name, x in names}


@pytest.mark.parametrize("change", [checkpointing, compiling, adding_lora])
def test_it_trains_a_changed_student_as_a_loop_by_hand(tmp_path, change):
    """Checkpointing and compilation change no number."""
    module, by = without_dropout(module_of()), without_dropout(module_of())
    took_effect = change(module.distiller)
    if change is adding_lora:
        change(by.distiller)
    by_hand(by.distiller, loader_of(), accumulated=2)
    trainer_of(tmp_path, accumulate_grad_batches=2).fit(module, loader_of())
    assert took_effect()
    assert_close(trained_weights(module), trained_weights(by))
