"""The check of fused kernels: right readers pass, wrong ones are told apart by name."""

from __future__ import annotations

import functools
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


LENGTHS = (5, 2, 3)


def varlen(q, k, v, lengths, *, stats=False):
    """A kernel of sequences packed one after another, ``(tokens, h, d)``, as flash attention's."""
    parts = [x.split(lengths) for x in (q, k, v)]
    outputs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in one)).transpose(0, 1)
        for one in zip(*parts, strict=True)
    ]
    out = torch.cat(outputs)
    return (out, out.detach().sum(-1)) if stats else out


def read_varlen(q, k, v, lengths, *, stats=False):
    padded = [
        torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2)
        for x in (q, k, v)
    ]
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return dk.Attention(*padded, mask=real[:, None, None], rows=real)


def read_varlen_wrongly(q, k, v, lengths, *, stats=False):
    return dk.Attention(*(x[None].transpose(1, 2) for x in (q, k, v)))  # attends across sequences


@pytest.mark.parametrize("stats", [False, True], ids=["tensor", "tuple"])
@pytest.mark.parametrize("heads", [2, 10], ids=["few heads", "as many heads as tokens"])
def test_packed_sequences_and_tuples_pass_with_a_right_reader(stats, heads):
    q, k, v = torch.randn(3, sum(LENGTHS), heads, 4, requires_grad=True)

    def call():
        return varlen(q, k, v, LENGTHS, stats=stats)

    right = dict.fromkeys(["seen_once", "same_result", "values", "gradient"], True)
    assert verdicts(varlen, read_varlen, call) == right
    assert verdicts(varlen, read_varlen_wrongly, call) == {**right, "values": False}


def test_packed_sequences_as_one_with_a_mask_between_them_pass():
    def read_as_one(q, k, v, lengths):
        owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        return dk.Attention(
            *(x[None].transpose(1, 2) for x in (q, k, v)), mask=owner[:, None] == owner
        )

    q, k, v = torch.randn(3, sum(LENGTHS), 2, 4, requires_grad=True)
    assert all(verdicts(varlen, read_as_one, lambda: varlen(q, k, v, LENGTHS)).values())


def test_rows_that_the_kernel_does_not_have_are_caught():
    def read_with_other_rows(q, k, v, lengths):
        attention = read_varlen(q, k, v, lengths)
        return attention.with_rows(attention.rows[:, 0].flip(1))

    q, k, v = torch.randn(3, sum(LENGTHS), 2, 4, requires_grad=True)
    assert not verdicts(varlen, read_with_other_rows, lambda: varlen(q, k, v, LENGTHS))["values"]


def test_a_call_that_returns_no_tensor_says_so(qkv):
    spec = dk.OperationSpec("test", target=fused, read=read)
    results = {r.name: r for r in check_operation(spec, lambda: fused(*qkv) is None)}
    assert "returned no tensor, but a bool" in results["same_result"].seen


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Kernel:
    def __call__(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    scale = 0.5

    def attend(self, q, k, v):
        return self(q, k, v)


kernel = Kernel()
partial = functools.partial(fused)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (Attend.apply, r"apply of a torch.autograd.Function .*Attend.apply\(q, k, v\)"),
        (f"{__name__}:Attend.apply", "apply of a torch.autograd.Function"),
        (partial, r"partial calls fused .*target=<partial>.func"),
        (kernel, r"an object of the class Kernel .*give it one, `def attend"),
        (kernel.attend, rf'bound to one object.*target="{__name__}:Kernel.attend"'),
        (Kernel, "Kernel is a class"),
        (torch.nn.Softmax(-1), "an object of the class Softmax"),
        (math.dist, "dist> is compiled code"),
    ],
    ids=["apply", "apply by name", "partial", "object", "method", "class", "module", "builtin"],
)
def test_a_target_that_nothing_can_see_is_refused_when_it_is_named(target, complaint):
    with pytest.raises(
        errors.SpecError, match=f"operation 'mine': target cannot be seen when .*{complaint}"
    ):
        dk.OperationSpec("mine", target=target, read=read)


@pytest.mark.parametrize("name", ["partial", "kernel", "Kernel"])
def test_a_target_by_its_name_is_refused_when_it_is_looked_up(name):
    spec = dk.OperationSpec("mine", target=f"{__name__}:{name}", read=read)
    with pytest.warns(errors.PluginLoadWarning, match="'mine' was left out: .*cannot be seen"):
        Scope(torch.nn.Identity(), [""], also=[spec]).close()


@pytest.mark.parametrize(
    "target",
    [F.scaled_dot_product_attention, torch.baddbmm, torch.Tensor.softmax, fused, operator],
    ids=["fused", "function", "method", "plain", "operator"],
)
def test_what_can_be_seen_is_taken(target):
    assert dk.OperationSpec("mine", target=target, read=read).target is target


def test_the_fixes_of_unseen_targets_work(qkv):
    """A plain function around ``apply``, a method by its class, and a partial's own function."""

    def attend(q, k, v):
        return Attend.apply(q, k, v)

    detached = qkv.detach()
    found = verdicts(attend, lambda q, k, v: dk.Attention(q, k, v), lambda: attend(*detached))
    assert found == dict.fromkeys(["seen_once", "same_result", "values"], True)
    right = dict.fromkeys(["seen_once", "same_result", "values", "gradient"], True)

    def reader(self, q, k, v):
        return read(q, k, v)

    assert verdicts(Kernel.attend, reader, lambda: kernel.attend(*qkv)) == right
    assert verdicts(f"{__name__}:Kernel.attend", reader, lambda: kernel.attend(*qkv)) == right
    assert verdicts(partial.func, read, lambda: partial(*qkv)) == right


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
