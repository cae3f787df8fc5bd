"""The check of fused kernels: right readers pass, wrong ones are told apart by name."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import distillkit as dk
from distillkit import errors, testing
from distillkit._capture.scope import Scope
from distillkit.testing import check_operation

EXAMPLE = Path(__file__).parents[2] / "examples" / "fused_attention.py"


def fused(q, k, v):
    """A kernel of its own, whose insides would be captured by themselves."""
    return F.scaled_dot_product_attention(q, k, v, scale=0.5)


imported_by_name = fused


@torch.library.custom_op("distillkit_tests::fused", mutates_args=())
def operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=0.5)


operator.register_autograd(
    lambda ctx, gradient: (gradient, gradient, gradient),
    setup_context=lambda ctx, inputs, output: None,
)


def read(q, k, v):
    return dk.Attention(q, k, v, scale=0.5)


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 4, 5, 8, requires_grad=True)


def verdicts(target, reader, call):
    spec = dk.OperationSpec("test", target=target, read=reader)
    return {result.name: result.passed for result in check_operation(spec, call)}


def test_a_function_imported_by_name_is_seen_once(qkv):
    found = verdicts(fused, read, lambda: imported_by_name(*qkv))
    assert found == dict.fromkeys(["seen_once", "same_result", "values", "gradient"], True)
    assert fused.__code__.co_name == "fused"
    assert not fused.__code__.co_flags & 0x08  # no **kwargs: it is its own code again


@pytest.mark.parametrize(
    "call",
    [operator, torch.ops.distillkit_tests.fused, torch.ops.distillkit_tests.fused.default],
    ids=["object", "packet", "overload"],
)
@pytest.mark.parametrize("target", [operator, "torch.ops.distillkit_tests.fused"], ids=str)
def test_an_operator_is_seen_however_it_is_called(qkv, call, target):
    found = verdicts(target, read, lambda: call(*qkv))
    assert found == dict.fromkeys(["seen_once", "same_result", "values", "gradient"], True)


@pytest.mark.parametrize(
    ("fault", "reader", "caught_by"),
    [
        ("wrong scale", lambda q, k, v: dk.Attention(q, k, v), "values"),
        ("keys for queries", lambda q, k, v: dk.Attention(k, q, v, scale=0.5), "values"),
        ("no values", lambda q, k, v: dk.Attention(q, k, scale=0.5), "values"),
        ("cut off", lambda q, k, v: dk.Attention(q.detach(), k.detach(), v, scale=0.5), "gradient"),
        ("heads first", lambda q, k, v: read(*(x.transpose(0, 1) for x in (q, k, v))), "values"),
    ],
)
def test_a_wrong_reader_is_caught(qkv, fault, reader, caught_by):
    assert not verdicts(fused, reader, lambda: fused(*qkv))[caught_by], fault


def test_a_kernel_that_is_never_called_is_not_seen(qkv):
    found = verdicts(fused, read, lambda: qkv[0].exp())
    assert found == {"seen_once": False}


def test_a_call_that_runs_twice_is_told(qkv):
    assert not verdicts(fused, read, lambda: fused(*qkv) + fused(*qkv))["seen_once"]


def test_the_core_s_own_operations_pass(qkv):
    spec = dk.OperationSpec(
        "sdpa",
        target="torch.nn.functional:scaled_dot_product_attention",
        read="distillkit._capture.operations:read_scaled_dot_product_attention",
    )
    for options in ({}, {"is_causal": True}, {"scale": 1 / math.pi}):
        results = testing.check_operation(
            spec, lambda options=options: F.scaled_dot_product_attention(*qkv, **options)
        )
        assert all(result.passed for result in results), results


def test_nested_captures_each_see_a_plain_function(qkv):
    dk.register(dk.OperationSpec("test_fused", target=fused, read=read))
    model = torch.nn.Module()
    model.forward = lambda: imported_by_name(*qkv)
    plain = fused.__code__
    with dk.capture(model, "") as outer:
        with dk.capture(model, "") as inner:
            model()
        assert fused.__code__ is not plain
    assert fused.__code__ is plain
    assert torch.equal(outer[""].query, qkv[0])
    assert torch.equal(inner[""].query, qkv[0])


def test_the_example_passes_its_own_checks():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    assert done.stdout.count("passed") == 4
    assert "failed" not in done.stdout


def test_an_operation_that_is_not_there_is_one_warning(qkv):
    missing = dk.OperationSpec("test_missing", target="math:attend", read=read)
    model = torch.nn.Module()
    model.forward = lambda: F.scaled_dot_product_attention(*qkv)
    with pytest.warns(errors.PluginLoadWarning, match="'test_missing' was left out.*math.*attend"):
        scope = Scope(model, [""], also=[missing])
    scope.close()
