"""Two real processes compute exactly what one does on the joined batch."""

from __future__ import annotations

import pytest
import torch

from distillkit.losses._tiled._triton import support
from tests.distributed import attend_blockwise, gather_pairs, train_ddp, unequal_ranks
from tests.distributed.two_processes import run_in_two_processes
from tests.support import tiny


def test_attention_alone_trains_under_ddp_as_in_one_process(tmp_path):
    first, second = run_in_two_processes("train_ddp", tmp_path)
    distiller = train_ddp.distiller_of()
    before = {name: value.clone() for name, value in distiller.student.state_dict().items()}
    alone = train_ddp.train(distiller, distiller.student, slice(0, 4))

    moved = [name for name in alone if not torch.equal(alone[name], before[name])]
    assert {"words.weight", "patches.weight", "text.blocks.1.qkv.weight"} <= set(moved)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_gathered_examples_give_the_loss_and_gradient_of_the_joined_batch(tmp_path):
    loss, gradient = gather_pairs.gradient(slice(None))
    for one_loss, one_gradient in run_in_two_processes("gather_pairs", tmp_path):
        torch.testing.assert_close(one_loss, loss)
        torch.testing.assert_close(one_gradient, gradient)


def test_a_blockwise_attention_loss_trains_under_ddp_as_the_dense_one_alone(tmp_path):
    alone = attend_blockwise.gradients(attend_blockwise.projections(), slice(None), "dense")
    for found in run_in_two_processes("attend_blockwise", tmp_path):
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(
    not (support.IS_INSTALLED and support.IS_INTERPRETED),
    reason="the kernels need triton, and TRITON_INTERPRET=1 where there is no GPU",
)
def test_an_attention_loss_in_kernels_trains_under_ddp_as_the_dense_one_alone(tmp_path):
    alone = attend_blockwise.gradients(attend_blockwise.projections(), slice(None), "dense")
    for found in run_in_two_processes("attend_in_kernels", tmp_path):
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_unequal_ranks_add_up_to_the_whole_batch(tmp_path):
    distiller = unequal_ranks.distiller_of()
    distiller(tiny.batch(5)).loss.backward()
    whole = unequal_ranks.gradients(distiller)
    for found in run_in_two_processes("unequal_ranks", tmp_path):
        for wrapped in ("distiller", "student"):
            assert found[wrapped].keys() == whole.keys()
            for name, value in whole.items():
                torch.testing.assert_close(
                    found[wrapped][name], value, rtol=1e-5, atol=1e-6, msg=f"{wrapped}: {name}"
                )
