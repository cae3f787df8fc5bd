"""Attention as people write it: recorded right, or named as what could not be read."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillkit as dk
from distillkit import errors
from tests.support import strange, wild
from tests.support.strange import BATCH, DEPTH, HEADS, TOKENS, WIDTH
from tests.support.versions import capture_in_compiled_code

TOLERANCE = 1e-5
cases = pytest.mark.parametrize("name", list(strange.CASES))


def made(name):
    torch.manual_seed(1)
    model = strange.CASES[name].make()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.rpartition(".")[0].endswith(("qkv", ".q", ".k")):
                parameter.mul_(3)
    return model, strange.inputs()


def captured(model, inputs, *patterns):
    """The output and every record, in order; the seed makes dropout repeat."""
    torch.manual_seed(5)
    with dk.capture(model, *patterns) as record:
        output = model(*inputs)
    return output, [attention for name in record.names for attention in record.calls(name)]


def joined(maps):
    """Maps of single heads or examples, one after another, as one."""
    if len(maps) > 1 and maps[0].shape[0] < BATCH:
        return torch.cat(maps)
    return torch.cat(maps, 1)


def assert_right(records, truths, *, folded=False, hidden_value=False):
    """The records are the truths, one by one, or one split into heads or examples.

    ``folded``: the model's axes do not say which of them are examples and which heads;
    ``hidden_value``: no single product shows the value.
    """
    ours = [attention.probabilities() for attention in records]
    assert all(p.ndim == 4 for p in ours)
    valid = [valid_rows(attention) for attention in records]
    assert hidden_value or all(attention.value is not None for attention in records)
    mixed = [
        p @ a.value.repeat_interleave(p.shape[1] // a.value.shape[1], 1)
        for p, a in zip(ours, records, strict=True)
        if a.value is not None
    ]
    expected = [truth.probabilities for truth in truths]
    outputs = [truth.probabilities @ truth.value for truth in truths]
    if len(ours) != len(expected):
        assert len(expected) == 1, f"{len(ours)} records, {len(expected)} attentions"
        ours, mixed = [joined(ours)], [joined(mixed)] if mixed else []
        valid = [torch.ones(ours[0].shape[:3], dtype=torch.bool)]
    mixed = mixed or outputs
    for p, rows, truth, out, true_out in zip(ours, valid, expected, mixed, outputs, strict=True):
        if folded:
            p, out = in_order_of(truth, p, out)
            rows = torch.ones(p.shape[:3], dtype=torch.bool)
        assert p.shape == truth.shape
        torch.testing.assert_close(p[rows], truth[rows], rtol=0, atol=TOLERANCE)
        assert rows.any()
        torch.testing.assert_close(out[rows], true_out[rows], rtol=1e-5, atol=TOLERANCE)


def valid_rows(attention):
    """The rows that see a key; all of them where weights below zero leave no such thing."""
    found, error = attempt(attention.valid_rows)
    return torch.ones(attention.shape[:3], dtype=torch.bool) if error else found


def facts(name):
    case = strange.CASES[name]
    return {"folded": case.folded, "hidden_value": case.hidden_value}


def in_order_of(truth, p, *others):
    """The maps of each example and head in the order of the truth's, and the others with them."""
    wanted, given = truth.detach().flatten(0, 1), p.detach().flatten(0, 1)
    assert given.shape == wanted.shape
    order = (wanted[:, None] - given[None]).abs().amax((-1, -2)).argmin(1)
    assert len(set(order.tolist())) == len(order)
    return [x.flatten(0, 1)[order].unflatten(0, truth.shape[:2]) for x in (p, *others)]


def attempt(function, *args, **kwargs):
    """What the function returned, or the capture error that it raised."""
    try:
        with warnings.catch_warnings():
            # with no pattern, what could not be read is named in a warning
            warnings.simplefilter("error", errors.CaptureWarning)
            return function(*args, **kwargs), None
    except (errors.CaptureError, errors.CaptureWarning) as error:
        return None, error


def right_or_named(name, model, inputs, *patterns):
    """The output and records; None where the module is honestly named as unread."""
    found, error = attempt(captured, model, inputs, *patterns)
    if error is not None:
        if not strange.CASES[name].may_be_named:
            raise error
        assert "attention" in str(error), "the error does not name the module"
    return found


@cases
class TestStrange:
    def test_chosen_by_name_it_is_read_right_or_named(self, name):
        model, inputs = made(name)
        torch.manual_seed(5)
        plain = model(*inputs)
        found = right_or_named(name, model, inputs, "attention")
        if found is None:
            return
        output, records = found
        assert torch.equal(output, plain)
        assert_right(records, model.attention.truth(*inputs), **facts(name))

    def test_without_a_pattern_the_records_are_the_same(self, name):
        model, inputs = made(name)
        found = right_or_named(name, model, inputs)
        if found is None:
            return
        assert_right(found[1], model.attention.truth(*inputs), **facts(name))

    def test_without_gradient(self, name):
        model, inputs = made(name)
        with torch.no_grad():
            found = right_or_named(name, model, inputs, "attention")
            if found is None:
                return
            assert_right(found[1], model.attention.truth(*inputs), **facts(name))
            assert not found[1][0].requires_grad

    def test_the_gradient_is_that_of_the_truth(self, name):
        model, inputs = made(name)
        found = right_or_named(name, model, inputs, "attention")
        if found is None:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        truths = model.attention.truth(*inputs)
        expected = [truth.probabilities for truth in truths]
        ours = [attention.probabilities() for attention in found[1]]
        if len(ours) != len(expected):
            ours = [joined(ours)]
        if strange.CASES[name].folded:
            ours = [in_order_of(true, p)[0] for true, p in zip(expected, ours, strict=True)]

        def gradient(maps):
            loss = sum((p * torch.sin(torch.arange(p.numel()).view(p.shape))).sum() for p in maps)
            return torch.autograd.grad(loss, parameters, allow_unused=True)

        for given, true in zip(gradient(ours), gradient(expected), strict=True):
            given, true = (torch.zeros(()) if g is None else g for g in (given, true))
            torch.testing.assert_close(given + 0 * true, true + 0 * given, rtol=1e-3, atol=1e-4)

    def test_the_table_says_what_is_true(self, name):
        model, (x, keep) = made(name)
        table = dk.find_attention(model, x=x, keep=keep)
        rows = [row for row in table if row.name.startswith("attention")]
        assert rows, "a module that holds an attention is not listed"
        for row in rows:
            assert row.verified in ("verified", "not verified", "not read")
            if row.verified == "verified":
                assert row.error <= TOLERANCE
        case = strange.CASES[name]
        if not (case.may_be_named or case.dropout or case.hidden_value):
            assert "verified" in {row.verified for row in rows}
        if case.may_be_named and not any(row.verified == "verified" for row in rows):
            assert any(row.note for row in rows), "nothing says why, or what to do"


@pytest.mark.parametrize(
    "name",
    [
        "mask_filled", "mask_filled_in_place", "mask_filled_with_keywords_in_any_order",
        "mask_by_where", "mask_by_where_of_what_is_dropped",
        "mask_by_where_with_keywords_in_any_order", "mask_by_the_method_where",
        "mask_by_the_method_where_with_keywords",
    ],
)  # fmt: skip
def test_a_mask_is_a_field_and_not_replayed(name):
    model, (x, keep) = made(name)
    _, (attention,) = captured(model, (x, keep), "attention")
    assert not attention.is_replayed
    assert attention.bias is None
    assert torch.equal(attention.mask, keep[:, None, None])


def test_scores_on_both_sides_of_a_where_are_no_mask():
    def lowered_by_one(m, q, k, v, keep):
        scores = q @ k.mT / 2
        return torch.where(keep, scores, scores - 1).softmax(-1) @ v

    torch.manual_seed(1)
    model = strange.Model(strange.Spelled(lowered_by_one, strange.padded))
    _, (attention,) = captured(model, strange.inputs(), "attention")
    assert attention.is_replayed


@pytest.mark.parametrize("name", list(strange.NONE))
class TestNoAttention:
    def build(self, name):
        torch.manual_seed(1)
        return strange.Beside(strange.NONE[name].make()), strange.inputs()

    def test_nothing_of_it_is_recorded(self, name):
        model, inputs = self.build(name)
        model(*inputs)
        found, error = attempt(lambda: self.names(model, inputs))
        if error is not None and strange.NONE[name].looks_like_it:
            assert "other" in str(error)  # an honest answer to "every attention"
        else:
            assert error is None, error
            assert found == ("real",)

    def names(self, model, inputs):
        with dk.capture(model) as record:
            model(*inputs)
        return record.names

    def test_choosing_it_is_an_error_that_names_it(self, name):
        model, inputs = self.build(name)
        with pytest.raises(errors.CaptureError, match="'other'"):
            with dk.capture(model, "real", "other"):
                model(*inputs)

    def test_the_table_names_it_where_it_looks_like_one(self, name):
        model, (x, keep) = self.build(name)
        rows = {row.name: row for row in dk.find_attention(model, x=x, keep=keep)}
        assert rows["real"].verified == "verified"
        if strange.NONE[name].looks_like_it:
            assert rows["other"].verified in ("not read", "not verified")
            assert rows["other"].note
        else:
            assert all(row.verified != "verified" for n, row in rows.items() if n != "real")
            assert set(rows) == {"real"}

    def test_the_results_stay_the_same(self, name):
        model, inputs = self.build(name)
        plain = model(*inputs)
        with dk.capture(model, "real"):
            assert torch.equal(model(*inputs), plain)


def disguised(name):
    return wild.Disguised(wild.UNREAD[name])


def in_the_open(name):
    return strange.Spelled(lambda module, *given: wild.UNREAD[name](*given), strange.products)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", [in_the_open, disguised])
@pytest.mark.parametrize("name", list(wild.UNREAD))
class TestUnread:
    """An attention that cannot be read is named, also where its module looks like none."""

    def build(self, name, make):
        torch.manual_seed(1)
        return strange.Beside(make(name)), strange.inputs()

    def test_chosen_by_name_it_is_an_error(self, name, make):
        model, inputs = self.build(name, make)
        with (
            pytest.raises(errors.CaptureError, match="'other'"),
            dk.capture(model, "real", "other"),
        ):
            model(*inputs)

    def test_without_a_pattern_it_is_a_warning_and_the_others_are_read(self, name, make):
        model, inputs = self.build(name, make)
        with pytest.warns(errors.CaptureWarning, match="other"), dk.capture(model) as record:
            model(*inputs)
        assert record.names == ("real",)
        assert_right([record["real"]], model.real.truth(*inputs))

    def test_without_gradient_too(self, name, make):
        model, inputs = self.build(name, make)
        with torch.no_grad(), pytest.warns(errors.CaptureWarning, match="other"):
            with dk.capture(model):
                model(*inputs)

    def test_the_table_says_why(self, name, make):
        model, (x, keep) = self.build(name, make)
        rows = table_of(model, x=x, keep=keep)
        assert rows["real"].verified == "verified"
        assert rows["other"].verified == "not read"
        assert rows["other"].note

    def test_the_results_stay_the_same(self, name, make):
        model, inputs = self.build(name, make)
        torch.manual_seed(5)
        plain = model(*inputs)
        torch.manual_seed(5)
        with dk.capture(model, "real"):
            assert torch.equal(model(*inputs), plain)


def test_pairs_taken_one_by_one_are_named_where_the_module_looks_like_attention():
    torch.manual_seed(1)
    spelled = strange.Spelled(
        lambda module, *given: wild.position_by_position(*given), strange.products
    )
    model, inputs = strange.Beside(spelled), strange.inputs()
    with pytest.warns(errors.CaptureWarning, match="other"), dk.capture(model) as record:
        model(*inputs)
    assert record.names == ("real",)


@pytest.mark.parametrize("module", [wild.Experts, wild.Interpolation, wild.Gram])
def test_products_of_three_that_are_no_attention_are_not_named(module):
    torch.manual_seed(1)
    model = strange.Beside(module())
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.CaptureWarning)
        with dk.capture(model) as record:
            model(*strange.inputs())
    assert record.names == ("real",)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
class TestVmap:
    """Tensors inside of torch.vmap end with it."""

    def test_around_the_model(self):
        model, (x, keep) = made("fused")
        with pytest.raises(errors.CaptureError, match=r"'attention'.*torch\.vmap"):
            with dk.capture(model, "attention"):
                torch.vmap(lambda x, keep: model(x[None], keep[None]))(x, keep)

    def test_around_the_model_without_a_pattern(self):
        model, (x, keep) = made("scores_divided")
        with pytest.raises(errors.CaptureError, match=r"'attention'.*torch\.vmap"):
            with dk.capture(model):
                torch.vmap(lambda x, keep: model(x[None], keep[None]))(x, keep)

    def test_an_output_inside_of_it(self):
        model, (x, keep) = made("scores_divided")
        with pytest.warns(errors.CaptureWarning, match=r"attention.*torch\.vmap"):
            with dk.capture(model, outputs=["head"]) as record:
                torch.vmap(lambda x, keep: model(x[None], keep[None]))(x, keep)
        with pytest.raises(errors.CaptureError, match=r"output of 'head'.*torch\.vmap"):
            record.output("head")

    def test_around_per_example_gradients(self):
        model, (x, keep) = made("scores_divided")
        parameters = dict(model.named_parameters())

        def loss(parameters, x, keep):
            return torch.func.functional_call(model, parameters, (x[None], keep[None])).sum()

        with pytest.raises(errors.CaptureError, match=r"'attention'.*transform"):
            with dk.capture(model, "attention"):
                torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, keep)


class TestRecordedOnce:
    """One operation is one record, whatever is computed beside it or around it."""

    @pytest.mark.parametrize("beside", ["softmax", "product", "fused"])
    def test_a_map_computed_again_to_be_looked_at(self, beside):
        def spelled(m, q, k, v, keep):
            scores = q @ k.mT / 2
            m.looked_at = scores.softmax(-1)
            if beside == "softmax":
                return scores.softmax(-1) @ v
            if beside == "product":
                return (k @ q.mT / 2).softmax(-2).mT @ v
            return F.scaled_dot_product_attention(q, k, v)

        torch.manual_seed(1)
        model = strange.Model(strange.Spelled(spelled, strange.products))
        inputs = strange.inputs()
        _, records = captured(model, inputs, "attention")
        assert_right(records, model.attention.truth(*inputs))

    def test_an_attention_inside_of_an_attention(self):
        torch.manual_seed(1)
        outer = nn.ModuleDict({"attention": strange.Spelled(strange.fused, strange.padded)})
        outer.forward = lambda x, keep: outer["attention"](x, keep)
        model, inputs = strange.Model(outer), strange.inputs()
        with dk.capture(model) as record:
            model(*inputs)
        assert record.names == ("attention.attention",)
        with dk.capture(model, "attention") as record:
            model(*inputs)
        assert len(record.calls("attention")) == 1
        with pytest.raises(
            errors.CaptureError, match="recorded once.*'attention.attention'; choose one"
        ):
            with dk.capture(model, "**.attention"):
                model(*inputs)

    def test_scores_handed_on_from_layer_to_layer(self):
        torch.manual_seed(1)
        model, (x, _) = wild.ScoresHandedOn(), strange.inputs()
        with dk.capture(model) as record:
            model(x)
        assert record.names == ("layers.0", "layers.1")
        seen = zip(record.values(), model.heads, model.scores, strict=True)
        for attention, (q, _, v), scores in seen:
            torch.testing.assert_close(attention.probabilities(), scores.softmax(-1))
            assert torch.equal(attention.query, q)
            assert torch.equal(attention.value, v)


class TestSeveralCalls:
    def build(self):
        torch.manual_seed(1)
        attention = strange.Spelled(strange.mask_filled, strange.padded)
        model = nn.ModuleDict({"shared": attention})
        model.forward = lambda x, keep: attention(attention(x, keep) * 2, keep)
        return model, attention, strange.inputs()

    def test_a_shared_module_gives_its_calls_in_order(self):
        model, attention, (x, keep) = self.build()
        with dk.capture(model, "shared") as record:
            model(x, keep)
        first, second = record.calls("shared")
        assert_right([first], attention.truth(x, keep))
        assert_right([second], attention.truth(attention(x, keep) * 2, keep))

    def test_one_module_under_two_names_is_recorded_once(self):
        model, attention, inputs = self.build()
        model["twin"] = attention
        with dk.capture(model) as record:
            model(*inputs)
        assert sum(len(record.calls(name)) for name in record.names) == 2

    def test_the_table_counts_the_calls(self):
        model, _, (x, keep) = self.build()
        (row,) = dk.find_attention(model, x=x, keep=keep)
        assert (row.name, row.calls, row.verified) == ("shared", 2, "verified")

    def test_nested_chosen_modules_never_record_one_operation_twice(self):
        model, _ = made("ProductSoftmaxAndValueInThreeChildren")
        outer = nn.ModuleDict({"block": model})
        outer.forward = lambda x, keep: model(x, keep)
        with dk.capture(outer) as record:
            outer(*strange.inputs())
        assert sum(len(record.calls(name)) for name in record.names) == 1
        for chosen in (("block", "block.attention"), ("block", "**.attention", "**.mix")):
            with contextlib.suppress(errors.CaptureError):  # some of them compute none of their own
                with dk.capture(outer, *chosen) as record:
                    outer(*strange.inputs())
            calls = [attempt(record.calls, name)[0] or () for name in record.names]
            assert sum(map(len, calls)) == 1


def table_of(model, **batch):
    return {row.name: row for row in dk.find_attention(model, **batch)}


class TestTable:
    def test_it_says_how_each_attends(self):
        torch.manual_seed(1)
        model = nn.ModuleDict(
            {
                "plain": strange.Spelled(strange.scores_divided, strange.products),
                "padded": strange.Spelled(strange.fused, strange.padded),
                "filled": strange.Spelled(strange.mask_filled, strange.padded),
                "causal": strange.Spelled(strange.fused_causal, strange.causal),
                "biased": strange.Spelled(strange.fused_with_a_learned_bias, strange.biased),
                "cross": strange.CrossAttention(),
            }
        )
        model.forward = lambda x, keep: [module(x, keep) for module in model.values()]
        x, keep = strange.inputs()
        rows = table_of(model, x=x, keep=keep)
        assert list(rows) == ["plain", "padded", "filled", "causal", "biased", "cross"]
        assert [row.mask for row in rows.values()] == [
            "none", "boolean", "boolean", "none", "additive", "none",
        ]  # fmt: skip
        assert [row.causal for row in rows.values()] == [False, False, False, True, False, False]
        assert [row.kind for row in rows.values()] == ["self"] * 5 + ["cross"]
        row = rows["cross"]
        assert (row.heads, row.query_length, row.key_length, row.head_dim) == (
            HEADS,
            TOKENS,
            3,
            DEPTH,
        )
        assert {row.cls for row in rows.values()} == {"Spelled", "CrossAttention"}

    def test_it_prints_one_line_for_each(self):
        model, (x, keep) = made("fused")
        text = str(dk.find_attention(model, x=x, keep=keep))
        (line,) = [line for line in text.splitlines() if "attention" in line and "Spelled" in line]
        for word in ("self", "4", "5", "verified", "boolean"):
            assert word in line

    def test_a_model_without_attention_is_said_to_have_none(self):
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        x = torch.randn(2, 3, WIDTH)
        table, error = attempt(dk.find_attention, model, input=x)
        assert table is None or not list(table)
        assert "no attention" in str(error or table)

    def test_nothing_is_left_on_the_model(self):
        model, (x, keep) = made("fused")
        before = {name: dict(vars(m)) for name, m in model.named_modules()}
        dk.find_attention(model, x=x, keep=keep)
        assert_untouched(model, before)

    def test_training_mode_and_gradients_are_left_alone(self):
        model, (x, keep) = made("fused")
        model.train()
        dk.find_attention(model, x=x, keep=keep)
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())


# torch's own modules


def mha(**options):
    torch.manual_seed(1)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "proj_weight" in name:
                parameter.mul_(3)
    return module


def mha_maps(module, *args, **kwargs):
    """The module's own maps, per head."""
    kwargs = {**kwargs, "need_weights": True, "average_attn_weights": False}
    return module(*args, **kwargs)[1]


MHA_MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])},
    "causal": {"attn_mask": strange.later(), "is_causal": True},
    "boolean": {"attn_mask": torch.eye(5, dtype=torch.bool)},
    "additive": {"attn_mask": torch.randn(5, 5, generator=torch.Generator().manual_seed(0))},
    "per head": {
        "attn_mask": torch.randn(BATCH * HEADS, 5, 5, generator=torch.Generator().manual_seed(0))
    },
    "both": {
        "attn_mask": strange.later(),
        "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
    },
}


@pytest.mark.parametrize("mask", list(MHA_MASKS))
@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradient", "eval, frozen"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(mask, mode, need_weights):
    module = mha()
    module.train(mode == "train")
    if "frozen" in mode:
        module.requires_grad_(False)
    model = nn.ModuleDict({"attention": module})
    x, _ = strange.inputs()
    options = {**MHA_MASKS[mask], "need_weights": need_weights}
    model.forward = lambda x: module(x, x, x, **options)
    with torch.set_grad_enabled("without" not in mode), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, plain_weights = model(x)
        with dk.capture(model) as record:
            output, weights = model(x)
        true = mha_maps(module, x, x, x, **MHA_MASKS[mask])
    assert record.names == ("attention",)
    attention = record["attention"]
    assert attention.shape == (BATCH, HEADS, 5, 5)
    torch.testing.assert_close(attention.probabilities(), true, rtol=0, atol=TOLERANCE)
    fast = mode.startswith("eval") and mode != "eval"
    torch.testing.assert_close(output, plain, rtol=0, atol=TOLERANCE if fast else 0)
    assert (weights is None) == (plain_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, plain_weights, rtol=0, atol=TOLERANCE if fast else 0)
    assert attention.requires_grad == (mode in ("train", "eval"))
    mixed = attention.probabilities() @ attention.value
    again = module.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 6, "vdim": 7},
        {"bias": False},
        {"dropout": 0.5},
    ],
    ids=lambda options: "+".join(options),
)
def test_multihead_attention_in_all_its_forms(options):
    module = mha(**options).eval()
    x, _ = strange.inputs()
    key, value = (torch.randn(BATCH, 6, options.get(d, WIDTH)) for d in ("kdim", "vdim"))
    with dk.capture(module) as record:
        output, _ = module(x, key, value)
    attention = record[""]
    true = mha_maps(module, x, key, value)
    torch.testing.assert_close(attention.probabilities(), true, rtol=0, atol=TOLERANCE)
    mixed = attention.probabilities() @ attention.value
    torch.testing.assert_close(
        module.out_proj(mixed.transpose(1, 2).flatten(2)), output, rtol=1e-5, atol=1e-5
    )


def test_multihead_attention_with_dropout_in_training_keeps_probabilities_before_it():
    module = mha(dropout=0.5).train()
    x, _ = strange.inputs()
    with dk.capture(module) as record:
        module(x, x, x)
    true = mha_maps(module.eval(), x, x, x)
    torch.testing.assert_close(record[""].probabilities(), true, rtol=0, atol=TOLERANCE)


def test_multihead_attention_without_batch_and_sequence_first():
    torch.manual_seed(1)
    module = nn.MultiheadAttention(WIDTH, HEADS)
    x, _ = strange.inputs()
    with dk.capture(module) as record:
        module(x[0], x[0], x[0])
    true = mha_maps(module, x[0], x[0], x[0])
    torch.testing.assert_close(record[""].probabilities()[0], true, rtol=0, atol=TOLERANCE)
    with dk.capture(module) as record:
        module(x.mT.mT.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))
    true = mha_maps(module, x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))
    torch.testing.assert_close(record[""].probabilities(), true, rtol=0, atol=TOLERANCE)


def encoder():
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("padding", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradient"])
def test_transformer_encoder(padding, mode):
    model = encoder().train(mode == "train")
    x, keep = strange.inputs()
    options = {"src_key_padding_mask": ~keep} if padding else {}
    with torch.set_grad_enabled("without" not in mode), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = model(x, **options)
        with dk.capture(model) as record:
            output = model(x, **options)
        after = model(x, **options)
    assert record.names == ("layers.0.self_attn", "layers.1.self_attn")
    seen = keep if padding else torch.ones_like(keep)
    torch.testing.assert_close(output[seen], plain[seen], rtol=0, atol=TOLERANCE)
    assert output.shape == plain.shape
    torch.testing.assert_close(after, plain, rtol=0, atol=0)
    hidden = x
    for layer, name in zip(model.layers, record.names, strict=True):
        true = mha_maps(layer.self_attn, hidden, hidden, hidden, key_padding_mask=~seen)
        ours = record[name].probabilities()
        rows = seen[:, None].expand(ours.shape[:3])
        torch.testing.assert_close(ours[rows], true[rows], rtol=0, atol=TOLERANCE)
        with torch.enable_grad():
            hidden = layer(hidden, src_key_padding_mask=(~seen).float() * -1e30)


def test_the_fast_path_is_back_after_a_capture():
    model = encoder().eval()
    x, _ = strange.inputs()
    before = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), dk.capture(model):
        model(x)
    assert torch.backends.mha.get_fastpath_enabled() == before
    calls = []
    handle = model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    handle.remove()
    with torch.no_grad():
        model(x)
    assert not calls
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_transformer_decoder_and_its_cross_attention():
    torch.manual_seed(1)
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerDecoder(layer, 2).eval()
    x, keep = strange.inputs()
    memory = torch.randn(BATCH, 7, WIDTH)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = model(x, memory, tgt_mask=strange.later(), tgt_key_padding_mask=~keep)
        with dk.capture(model) as record:
            output = model(x, memory, tgt_mask=strange.later(), tgt_key_padding_mask=~keep)
    torch.testing.assert_close(output, plain, rtol=0, atol=TOLERANCE)
    assert len(record.names) == 4
    own, cross = record["layers.0.self_attn"], record["layers.0.multihead_attn"]
    assert own.shape == (BATCH, HEADS, 5, 5)
    assert cross.shape == (BATCH, HEADS, 5, 7)
    assert not own.probabilities()[0, 0].triu(1).any()
    assert not own.probabilities()[1, :, :, 3:].any()


@pytest.mark.filterwarnings("ignore")
def test_flex_attention():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.manual_seed(1)
    attention = strange.Spelled(
        lambda m, q, k, v, keep: flex_attention(
            q, k, v, score_mod=lambda score, b, h, i, j: score - (i - j).abs() * 0.5,
            block_mask=create_block_mask(lambda b, h, i, j: i >= j, None, None, TOKENS, TOKENS, device="cpu"),
        ),
        strange.causal,
    )  # fmt: skip
    model = strange.Model(attention).requires_grad_(False)
    x, keep = strange.inputs()
    plain = model(x, keep)
    found, error = attempt(captured, model, (x, keep), "attention")
    if error is not None:
        assert "attention" in str(error)
        assert "flex" in str(error)
        return
    output, records = found
    assert torch.equal(output, plain)
    q, k, v = attention.heads(x)
    distance = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs() * 0.5
    scores = strange.products(attention, q, k, keep) - distance
    true = scores.masked_fill(strange.later(), -torch.inf).softmax(-1)
    assert_right(records, [strange.Truth(true, v)])


# what opaque kernels leave to be said


@pytest.mark.parametrize("name", ["kernel_as_autograd_function", "kernel_as_custom_op"])
def test_an_opaque_kernel_is_named_with_the_way_out(name):
    model, (x, keep) = made(name)
    rows = table_of(model, x=x, keep=keep)
    row = rows["attention"]
    if row.verified == "verified":
        _, (attention,) = captured(model, (x, keep), "attention")
        assert attention.requires_grad
        return
    assert row.verified == "not read"
    with pytest.raises(errors.CaptureError, match="OperationSpec"):
        captured(model, (x, keep), "attention")


def test_a_kernel_beside_readable_attention_is_not_silently_missing():
    torch.manual_seed(1)
    model = strange.Beside(strange.Spelled(strange.kernel_as_custom_op, strange.products))
    x, keep = strange.inputs()
    rows = table_of(model, x=x, keep=keep)
    assert set(rows) == {"real", "other"}
    assert rows["other"].verified == "not read" or rows["other"].error <= TOLERANCE


# what happens to tensors afterwards


class Overwritten(strange.Projected):
    """Overwrites, after the attention, one of the tensors it was made from."""

    def __init__(self, which, *, fused):
        super().__init__()
        self.which, self.fused = which, fused

    def forward(self, x, keep):
        q, k, v = (y.clone() for y in self.heads(x))
        mask = torch.zeros(BATCH, 1, 1, TOKENS).masked_fill(~keep[:, None, None], -torch.inf)
        dropped = ~keep[:, None, None].expand(BATCH, 1, 1, TOKENS)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif self.which == "dropped":
            mixed = (q @ k.mT / 2).masked_fill(mask=dropped, value=-1e9).softmax(-1) @ v
        else:
            mixed = (q @ k.mT / 2 + mask).softmax(-1) @ v
        tensors = {"query": q, "key": k, "value": v, "mask": mask, "dropped": dropped}
        tensors[self.which].zero_()
        return self.joined(mixed)


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
@pytest.mark.parametrize("which", ["query", "key", "value", "mask", "dropped"])
def test_a_tensor_overwritten_later_corrupts_no_record_in_silence(which, fused):
    torch.manual_seed(1)
    model = strange.Model(Overwritten(which, fused=fused))
    x, keep = strange.inputs()

    def read():
        _, (attention,) = captured(model, (x, keep), "attention")
        return attention.probabilities(), attention.probabilities() @ attention.value

    with torch.no_grad():
        found, error = attempt(read)
        if error is not None:
            assert "attention" in str(error) or which in str(error)
            return
        probabilities, mixed = found
        (true,) = model.attention.truth(x, keep)
        torch.testing.assert_close(probabilities, true.probabilities, rtol=0, atol=1e-5)
        torch.testing.assert_close(mixed, true.probabilities @ true.value, rtol=1e-5, atol=1e-5)


def test_a_cache_of_keys_that_grows_in_place():
    """Decoding with a static cache: each step writes into the keys of the step before."""

    class Cached(strange.Projected):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(2, BATCH, HEADS, TOKENS, DEPTH))

        def forward(self, x, keep):
            outputs = []
            for step in range(TOKENS):
                q, k, v = self.heads(x[:, step : step + 1])
                self.cache[0][:, :, step : step + 1] = k
                self.cache[1][:, :, step : step + 1] = v
                mask = (torch.arange(TOKENS) <= step)[None, None, None]
                outputs.append(F.scaled_dot_product_attention(q, *self.cache, attn_mask=mask))
            return self.joined(torch.cat(outputs, 2))

    torch.manual_seed(1)
    model = strange.Model(Cached())
    x, keep = strange.inputs()
    with torch.no_grad():
        found, error = attempt(
            lambda: [a.probabilities() for a in captured(model, (x, keep), "attention")[1]]
        )
        if error is not None:
            assert "attention" in str(error)
            return
        q, k, _ = model.attention.heads(x)
        true = (q @ k.mT / 2).masked_fill(strange.later(), -torch.inf).softmax(-1)
        torch.testing.assert_close(torch.cat(found, 2), true, rtol=0, atol=1e-5)


# nothing remains


def state_of(model):
    return {name: dict(vars(module)) for name, module in model.named_modules()}


def assert_untouched(model, before):
    hooks = (
        "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    )  # fmt: skip
    after = state_of(model)
    assert set(after) == set(before)
    for name, values in after.items():
        assert list(values) == list(before[name]), name
        assert all(values[key] is before[name][key] for key in values), name
        module = dict(model.named_modules())[name]
        assert not any(len(getattr(module, hook)) for hook in hooks), name
    assert not torch.overrides._get_current_function_mode_stack()


class TestNothingRemains:
    @pytest.fixture
    def model(self):
        torch.manual_seed(1)
        return strange.Beside(strange.Projected()).requires_grad_(True)

    @pytest.fixture
    def inputs(self):
        return strange.inputs()

    @pytest.fixture(autouse=True)
    def _untouched(self, model):
        model.other = strange.CrossAttention()
        before = state_of(model)
        yield
        assert_untouched(model, before)

    def test_after_a_capture(self, model, inputs):
        with dk.capture(model, outputs=["real"], returns=["other.heads"]) as record:
            model(*inputs)
        assert record.names == ("real", "other")

    def test_after_an_exception_in_the_model(self, model, inputs):
        for where in (model.real.out, model.other.q, model.real.qkv):
            handle = where.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError), dk.capture(model, "real"):
                model(*inputs)
            handle.remove()
            assert not torch.overrides._get_current_function_mode_stack()

    def test_after_an_exception_that_the_caller_survives(self, model, inputs):
        """A model that fails once inside the block and runs well the second time."""
        handle = model.other.q.register_forward_pre_hook(lambda *_: 1 / 0)
        with dk.capture(model, "real", "other") as record:
            with pytest.raises(ZeroDivisionError):
                model(*inputs)
            handle.remove()
            model(*inputs)
            assert len(record.calls("real")) == len(record.calls("other")) == 1

    def test_after_an_exception_in_the_body(self, model, inputs):
        with pytest.raises(KeyError), dk.capture(model):
            model(*inputs)
            raise KeyError

    def test_after_a_wrong_name(self, model):
        for wrong in ({"outputs": ["nothing"]}, {"returns": ["other.nothing"]}, {}):
            with pytest.raises(errors.DistillKitError):
                with dk.capture(model, "real", *([] if wrong else ["reel"]), **wrong):
                    pass

    def test_after_a_model_that_did_not_run(self, model):
        with pytest.raises(errors.CaptureError), dk.capture(model):
            pass

    def test_after_nested_captures(self, model, inputs):
        with dk.capture(model, "real") as outer:
            model(*inputs)
            first = outer["real"]
            with dk.capture(model, "real", "other") as inner:
                model(*inputs)
            assert inner["real"].shape == outer["real"].shape
            assert outer["real"] is not first
            model(*inputs)
            assert len(outer.calls("real")) == 1

    def test_after_captures_that_end_in_the_order_they_began(self, model, inputs):
        first, second = (
            dk.capture(model, "real"),
            dk.capture(model, "other", returns=["other.heads"]),
        )
        one, two = first.__enter__(), second.__enter__()
        model(*inputs)
        first.__exit__(None, None, None)
        model(*inputs)
        second.__exit__(None, None, None)
        assert one.names == ("real",)
        assert two["other"].shape == (BATCH, HEADS, TOKENS, 3)

    def test_a_deep_copy_is_a_model_of_its_own(self, model, inputs):
        import copy

        with dk.capture(model, "real", "other", returns=["other.heads"]) as record:
            twin = copy.deepcopy(model)
            model(*inputs)
            kept = record["real"]
            with torch.no_grad():
                for parameter in twin.parameters():
                    parameter.zero_()
            assert twin(*inputs) == 0
            assert record["real"] is kept
        assert twin(*inputs) == 0
        with dk.capture(twin) as record:
            twin(*inputs)
        assert record.names == ("real", "other")

    def test_a_deep_copy_made_inside_has_nothing_left_either(self, model, inputs):
        import copy

        with dk.capture(model, "real") as record:
            model(*inputs)
            twin = copy.deepcopy(model)
        del record
        used = []
        for name, module in twin.named_modules():
            used += [name for hooks in (module._forward_hooks, module._forward_pre_hooks) if hooks]
        output = twin(*inputs)
        assert torch.equal(output, model(*inputs))
        # the copy took the hooks along; they must do nothing
        assert not torch.overrides._get_current_function_mode_stack(), used

    def test_the_state_dict_is_the_same_inside(self, model, inputs):
        before = model.state_dict()
        with dk.capture(model):
            model(*inputs)
            inside = model.state_dict()
            model.load_state_dict(before)
        assert list(inside) == list(before)

    def test_pickling_inside(self, model, inputs):
        import io

        with dk.capture(model):
            model(*inputs)
            torch.save(model.state_dict(), io.BytesIO())

    def test_a_model_that_calls_itself(self, inputs):
        class Again(strange.Projected):
            def forward(self, x, keep, depth=1):
                q, k, v = self.heads(x)
                mixed = self.joined((q @ k.mT / 2).softmax(-1) @ v)
                return self(mixed, keep, depth - 1) if depth else mixed

        model = strange.Model(Again())
        before = state_of(model)
        with dk.capture(model, "attention") as record:
            model(*inputs)
        assert len(record.calls("attention")) == 2
        assert_untouched(model, before)

    def test_operations_outside_the_chosen_modules_are_not_recorded(self, model, inputs):
        q = torch.randn(2, 3, 4, 5)
        with dk.capture(model, "real") as record:
            (q @ q.mT).softmax(-1) @ q
            F.scaled_dot_product_attention(q, q, q)
            model(*inputs)
            F.scaled_dot_product_attention(q, q, q)
        assert len(record.calls("real")) == 1

    def test_two_threads(self, model, inputs):
        from concurrent.futures import ThreadPoolExecutor

        models = [strange.Beside(strange.CrossAttention()) for _ in range(2)]

        def work(one):
            counts = []
            for _ in range(20):
                with dk.capture(one) as record:
                    one(*inputs)
                counts.append(sum(len(record.calls(name)) for name in record.names))
            return counts

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(work, models)) == [[2] * 20] * 2

    def test_another_models_attention_inside_a_chosen_module_is_its_own(self, model, inputs):
        with dk.capture(model, "real") as one:
            model(*inputs)
            other = strange.Beside(strange.CrossAttention())
            with dk.capture(other, "real") as two:
                other(*inputs)
            assert two["real"].shape == one["real"].shape
        assert not torch.equal(one["real"].query, two["real"].query)


class TestSilenceIsAnError:
    def test_hooks_that_replace_the_output_are_respected(self):
        model, inputs = made("fused")
        handle = model.attention.register_forward_hook(lambda *_: torch.ones(BATCH, TOKENS, WIDTH))
        plain = model(*inputs)
        with dk.capture(model, "attention"):
            assert torch.equal(model(*inputs), plain)
        handle.remove()

    def test_a_module_called_past_its_hooks_is_not_silently_missing(self):
        model, inputs = made("fused")
        model.forward = lambda x, keep: model.head(model.attention.forward(x, keep))
        found, error = attempt(captured, model, inputs, "attention")
        assert found is None or len(found[1]) == 1
        assert found is not None or "attention" in str(error)

    def test_the_last_forward_counts(self):
        model, (x, keep) = made("fused")
        with dk.capture(model, "attention") as record:
            model(x, keep)
            model(x[:1], keep[:1])
            assert record["attention"].shape[0] == 1

    def test_half_precision(self):
        model, (x, keep) = made("scores_divided")
        model = model.bfloat16()
        x = x.bfloat16()
        with dk.capture(model, "attention") as record:
            model(x, keep)
        (true,) = model.attention.truth(x, keep)
        assert record["attention"].probabilities().dtype == torch.float32
        torch.testing.assert_close(
            record["attention"].probabilities(), true.probabilities.float(), rtol=0, atol=2e-2
        )

    def test_double_precision(self):
        model, (x, keep) = made("scores_divided")
        model = model.double()
        with dk.capture(model, "attention") as record:
            model(x.double(), keep)
        (true,) = model.attention.truth(x.double(), keep)
        torch.testing.assert_close(
            record["attention"].probabilities(), true.probabilities, rtol=0, atol=1e-12
        )


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore")
@capture_in_compiled_code
class TestCompiled:
    """In one graph, as the model is without capture."""

    @pytest.mark.parametrize(
        "name",
        [
            "softmax_by_hand_with_a_sink", "exponential_of_log_softmax",
            "everything_by_broadcasting", "SlotAttention",
        ],
    )  # fmt: skip
    def test_what_is_written_by_hand_is_read(self, name):
        model, inputs = made(name)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with dk.capture(model, "attention") as record:
            compiled(*inputs)
        truths = model.attention.truth(*inputs)
        assert_right(list(record.calls("attention")), truths, **facts(name))

    @pytest.mark.parametrize(
        "name", ["distances_by_broadcasting", "best_keys_gathered", "differential_attention"]
    )
    def test_what_is_not_read_is_named(self, name):
        torch.manual_seed(1)
        model, inputs = strange.Beside(disguised(name)), strange.inputs()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with pytest.raises(errors.CaptureError, match="'other'.*cannot be read"):
            with dk.capture(model, "real", "other"):
                compiled(*inputs)

    @pytest.mark.parametrize("need_weights", [True, False])
    def test_multihead_attention(self, need_weights):
        module = mha()
        x, _ = strange.inputs()
        model = nn.ModuleDict({"attention": module})
        model.forward = lambda x: module(x, x, x, need_weights=need_weights)[0]
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with dk.capture(model) as record:
            compiled(x)
        true = mha_maps(module, x, x, x)
        torch.testing.assert_close(
            record["attention"].probabilities(), true, rtol=0, atol=TOLERANCE
        )
