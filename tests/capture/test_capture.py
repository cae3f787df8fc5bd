"""Capture: what is recorded, what it equals, and what is left on the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import distillkit as dk
from distillkit import errors
from distillkit._capture.names import pattern_regex
from tests.support import tiny


def inputs():
    return {name: tiny.batch()[name] for name in tiny.INPUTS}


def left_on(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


class Written(nn.Module):
    """softmax(q k^T) in one spelling; keeps its own probabilities to compare with."""

    def __init__(self, spelling):
        super().__init__()
        self.spelling = spelling
        self.qkv = nn.Linear(8, 24)

    def forward(self, x, keep):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        self.weights = self.spelling(q, k, keep)
        return (self.weights @ v).transpose(1, 2).reshape(b, n, 8)


def lowest(keep):
    return torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)


def divided_and_filled(q, k, keep):
    return (q @ k.transpose(-1, -2) / 2.0).masked_fill(~keep, -torch.inf).softmax(-1)


def scaled_query_and_added(q, k, keep):
    return F.softmax(torch.matmul(q * 0.5, k.transpose(2, 3)) + lowest(keep), dim=-1)


def in_place(q, k, keep):
    scores = torch.matmul(q, k.mT)
    scores *= 0.5
    scores += lowest(keep)
    return torch.softmax(scores, -1)


def position_bias(q, k, keep):
    distance = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None]
    return (lowest(keep) + 0.5 * (q @ k.mT) - distance.abs().float()).softmax(-1)


def scaled_after_the_bias(q, k, keep):
    distance = (torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None]).abs().float()
    return ((q @ k.mT + distance) * 0.5 + lowest(keep)).softmax(-1)


def soft_capped(q, k, keep):
    scores = 5.0 * torch.tanh(q @ k.mT * 0.5 / 5.0)
    return torch.where(keep, scores, -torch.inf).softmax(3)


def with_dropout(q, k, keep):
    return F.dropout((0.5 * (q @ k.mT)).masked_fill(~keep, -1e30).softmax(dim=-1), 0.0, True)


SPELLINGS = [
    divided_and_filled,
    scaled_query_and_added,
    in_place,
    position_bias,
    scaled_after_the_bias,
    soft_capped,
    with_dropout,
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda f: f.__name__)
def test_probabilities_equal_the_models_own(spelling):
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": Written(spelling)})
    model.forward = lambda x, keep: model["attention"](x, keep)
    x, keep = torch.randn(2, 5, 8) * 3, torch.ones(2, 1, 1, 5, dtype=torch.bool)
    keep[0, ..., 3:] = False
    plain = model(x, keep)
    with dk.capture(model, "attention") as record:
        watched = model(x, keep)
    assert torch.equal(plain, watched)
    attention = record["attention"]
    torch.testing.assert_close(
        attention.probabilities(), model["attention"].weights, rtol=1e-5, atol=1e-6
    )
    own = torch.autograd.grad(
        model["attention"].weights.square().sum(), model["attention"].qkv.weight, retain_graph=True
    )
    ours = torch.autograd.grad(
        attention.probabilities().square().sum(), model["attention"].qkv.weight
    )
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["none", "boolean", "additive", "causal"])
def test_fused_attention_is_read_from_its_arguments(mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    keep = torch.rand(2, 1, 5, 5) > 0.3
    keep[..., 0] = True
    given = {
        "none": {},
        "boolean": {"attn_mask": keep},
        "additive": {"attn_mask": torch.randn(2, 1, 5, 5).masked_fill(~keep, -torch.inf)},
        "causal": {"is_causal": True},
    }[mask]
    model = nn.Module()
    model.forward = lambda: F.scaled_dot_product_attention(
        q, k, v, scale=0.3, enable_gqa=True, **given
    )
    with dk.capture(model) as record:
        output = model()
    (attention,) = record.calls("")
    ours = attention.probabilities() @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(ours, output, rtol=1e-5, atol=1e-6)


def test_names_and_patterns():
    model = tiny.Dual()
    with dk.capture(model, "text.blocks.*", "**.1") as record:
        model(**inputs())
    assert record.names == ("text.blocks.0", "text.blocks.1", "image.blocks.1")
    with dk.capture(model) as record:
        model(**inputs())
    assert record.names == ("text.blocks.0", "text.blocks.1", "image.blocks.0", "image.blocks.1")


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a.*.b", "a.1.b", True), ("a.*.b", "a.1.2.b", False), ("a.**.b", "a.b", True),
        ("a.**.b", "a.1.2.b", True), ("a.**", "a.1.c", True), ("**.b", "b", True),
        ("a.*", "a.1.2", False), ("layer_*", "layer_3", True), ("a.b", "axb", False),
    ],
)  # fmt: skip
def test_pattern_segments(pattern, name, matches):
    assert bool(pattern_regex(pattern).fullmatch(name)) == matches


def test_wrappers_are_no_part_of_a_name():
    model = torch.compile(tiny.Dual(), backend="eager")
    with dk.capture(model, "text.blocks.1") as record:
        model._orig_mod(**inputs())
    assert record.names == ("text.blocks.1",)


def test_a_record_holds_the_last_forward():
    model = tiny.Dual()
    with dk.capture(model, "text.blocks.1") as record:
        model(**inputs())
        first = record["text.blocks.1"]
        model(**inputs())
        assert record["text.blocks.1"] is not first
        assert len(record.calls("text.blocks.1")) == 1


def test_several_calls_in_one_forward_are_kept_in_order():
    model = tiny.Encoder(depth=1)
    block = model.blocks[0]
    model.forward = lambda x, mask: block(2 * block(x, mask), mask)
    x, mask = torch.randn(2, 3, tiny.WIDTH), torch.ones(2, 3, dtype=torch.bool)
    with dk.capture(model, "blocks.*") as record:
        model(x, mask)
    first, second = record.calls("blocks.0")
    assert torch.equal(first.query, block.heads(x)[0])
    assert not torch.equal(second.query, first.query)
    assert torch.equal(record.layers("blocks.*#1")[0].query, second.query)
    with pytest.raises(errors.CaptureError, match=r"2 attentions.*record\.calls\('blocks\.0'\)"):
        record["blocks.0"]


def test_an_operation_belongs_to_the_innermost_chosen_module_once():
    model = tiny.Dual()
    with pytest.raises(errors.CaptureError, match="'text'.*recorded no attention"):
        with dk.capture(model, "text", "text.blocks.*", "image") as record:
            model(**inputs())
            assert len(record.calls("text.blocks.0")) == 1
            assert len(record.calls("image")) == 2
    assert not left_on(model)  # the outer one computes nothing of its own


def test_nested_captures_both_record():
    model = tiny.Dual()
    with dk.capture(model, "text.blocks.*") as outer, dk.capture(model, "**.0") as inner:
        model(**inputs())
    assert torch.equal(outer["text.blocks.0"].query, inner["text.blocks.0"].query)
    assert len(outer.calls("text.blocks.0")) == len(inner.calls("text.blocks.0")) == 1
    assert not left_on(model)


def test_detach_cuts_the_graph():
    model = tiny.Dual()
    with dk.capture(model, "text.blocks.*", detach=True) as record:
        model(**inputs())
    assert not record["text.blocks.0"].requires_grad
    with dk.capture(model, "text.blocks.*") as record:
        model(**inputs())
    assert record["text.blocks.0"].requires_grad


def test_outputs_and_returned_values():
    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def visual_embed(self, x):
            return self.inner(x), "patch order"

        def forward(self, x):
            return self.visual_embed(x)[0]

    model = nn.Sequential(Embeds(), nn.Linear(3, 2))
    x = torch.randn(4, 3)
    with dk.capture(model, outputs=["1"], returns=["0.visual_embed"]) as record:
        twin = copy.deepcopy(model)
        y = model(x)
        assert record.returned("0.visual_embed")[1] == "patch order"
        seen = record.returned("0.visual_embed")[0]
        twin[0].inner.weight.data.zero_()
        assert not torch.equal(twin(x), y)
        assert record.returned("0.visual_embed")[0] is seen
    assert torch.equal(record.output("1"), y)
    assert "visual_embed" not in vars(model[0])
    both = {"outputs": ["1"], "returns": ["0.visual_embed"]}
    with dk.capture(model, **both) as outer:
        with dk.capture(model, **both) as inner:
            model(x)
        assert inner.returned("0.visual_embed")[1] == "patch order"
        model(x)
        assert outer.returned("0.visual_embed")[1] == "patch order"
    assert "visual_embed" not in vars(model[0])


class TestNothingIsLeft:
    def test_after_a_normal_run(self):
        model = tiny.Dual()
        state = list(model.state_dict())
        with dk.capture(model, "text.blocks.*"):
            model(**inputs())
            assert list(model.state_dict()) == state
        assert not left_on(model)

    def test_after_a_wrong_name(self):
        model = tiny.Dual()
        with pytest.raises(errors.CaptureError), dk.capture(model, "text.blocks.*", "nothing"):
            pass
        assert not left_on(model)

    def test_after_an_exception_in_the_model(self):
        model = tiny.Dual()
        model.text.blocks[1].out.forward = lambda _: 1 / 0
        with pytest.raises(ZeroDivisionError), dk.capture(model, "text.blocks.*"):
            model(**inputs())
        assert not left_on(model)
        assert not torch.overrides._get_current_function_mode_stack()

    def test_the_mode_is_off_outside_the_chosen_modules(self):
        model = tiny.Dual()
        seen = []
        model.head.register_forward_hook(
            lambda *_: seen.append(len(torch.overrides._get_current_function_mode_stack()))
        )
        model.text.blocks[0].out.register_forward_hook(
            lambda *_: seen.append(len(torch.overrides._get_current_function_mode_stack()))
        )
        with dk.capture(model, "text.blocks.*"):
            model(**inputs())
        assert seen == [1, 0]


class TestSilenceIsAnError:
    def test_a_pattern_that_matches_nothing(self):
        with pytest.raises(
            errors.CaptureError, match=r"'blocks\.1' matches no module of Dual; did you mean"
        ):
            with dk.capture(tiny.Dual(), "blocks.1"):
                pass

    def test_a_chosen_module_that_recorded_nothing(self):
        model = tiny.Dual()
        with pytest.raises(
            errors.CaptureError,
            match=r"module 'head' \(Linear\) was chosen but recorded no attention",
        ):
            with dk.capture(model, "text.blocks.*", "head"):
                model(**inputs())

    def test_a_model_that_did_not_run(self):
        with pytest.raises(errors.CaptureError, match="did not run inside the `with` block"):
            with dk.capture(tiny.Dual(), "text.blocks.*"):
                pass

    def test_a_name_that_was_not_chosen(self):
        model = tiny.Dual()
        with dk.capture(model, "text.blocks.*") as record:
            model(**inputs())
        with pytest.raises(errors.UnknownNameError, match="did you mean 'text.blocks.1'"):
            record["text.block.1"]

    def test_an_error_in_the_body_is_not_hidden_by_the_check(self):
        with pytest.raises(KeyError):
            with dk.capture(tiny.Dual(), "text.blocks.*"):
                raise KeyError


def test_checkpointing_is_not_counted_twice():
    model = tiny.Encoder(depth=1)
    block = model.blocks[0]
    model.forward = lambda x, mask: checkpoint(block, x, mask, use_reentrant=False)
    x = torch.randn(2, 3, tiny.WIDTH, requires_grad=True)
    with dk.capture(model, "blocks.*") as record:
        output = model(x, torch.ones(2, 3, dtype=torch.bool))
        attention = record["blocks.0"]
        (output.sum() + attention.probabilities().square().sum()).backward()
        assert len(record.calls("blocks.0")) == 1
    assert block.qkv.weight.grad.abs().sum() > 0


def test_a_plugin_teaches_capture_a_kernel_of_its_own():
    def fused(x, temperature):
        return (x @ x.mT / temperature).softmax(-1) @ x

    def read(x, temperature):
        return dk.Attention(x, x, x, scale=1 / temperature)

    # a function of one's own is seen by a mode only if it asks, as torch's functionals do
    def target(x, temperature):
        if (
            torch.overrides.has_torch_function((x,))
            or torch.overrides._is_torch_function_mode_enabled()
        ):
            return torch.overrides.handle_torch_function(target, (x,), x, temperature)
        return fused(x, temperature)

    dk.register(dk.OperationSpec("test_kernel", target=target, read=read))
    model = nn.Module()
    model.forward = lambda x: target(x, 3.0)
    x = torch.randn(2, 2, 5, 4)
    with dk.capture(model) as record:
        output = model(x)
    torch.testing.assert_close(record[""].probabilities() @ x, output)
