"""Capture inside real training: gradients, checkpointing, precision, compilation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import distillkit as dk
from distillkit import errors
from distillkit._capture.record import Record
from distillkit._capture.scope import Scope
from tests.support import tiny, zoo
from tests.support.versions import capture_in_compiled_code

KINDS = {"fused": tiny.FusedAttention, "eager": tiny.EagerAttention}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def encoder(kind):
    torch.manual_seed(0)
    return tiny.Encoder(KINDS[kind], depth=3)


def tokens():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return torch.randn(2, 5, tiny.WIDTH, generator=generator) * 2, mask


def twin(model):
    """The same weights in a model that no capture has seen."""
    other = tiny.Encoder(type(model.blocks[0]), depth=len(model.blocks))
    other.load_state_dict(model.state_dict())
    return other.to(next(model.parameters()).dtype)


def true_maps(model, x, mask):
    """The probabilities of every block, by hand."""
    found = []
    for block in model.blocks:
        q, k, _ = block.heads(x)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        found.append(scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1))
        x = x + block(x, mask)
    return found, x


def objective(maps, output):
    weights = (torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view(p.shape) for p in maps)
    return sum((p * w).sum() for p, w in zip(maps, weights, strict=True)) + output.square().mean()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def true_gradients(model, x, mask, *, task=True):
    model = twin(model)
    maps, output = true_maps(model, x, mask)
    objective(maps, output if task else torch.zeros(1)).backward()
    return gradients(model)


def assert_same(given, expected, rtol=1e-4, atol=1e-5):
    assert set(given) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            given[name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def maps_of(record):
    return [record[name].probabilities() for name in record.names]


class Checkpointed(nn.Module):
    """An encoder whose blocks are computed again in the backward."""

    def __init__(self, encoder_, **options):
        super().__init__()
        self.blocks = encoder_.blocks
        self.options = options

    def forward(self, x, mask):
        for block in self.blocks:
            x = x + checkpoint(block, x, mask, **self.options)
        return x


@kinds
class TestGradient:
    @pytest.mark.parametrize("backward", ["inside", "after"])
    def test_it_is_what_it_would_be_by_hand(self, kind, backward):
        model, (x, mask) = encoder(kind), tokens()
        expected = true_gradients(model, x, mask)
        with dk.capture(model, "blocks.*") as record:
            output = model(x, mask)
            loss = objective(maps_of(record), output)
            if backward == "inside":
                loss.backward()
        if backward == "after":
            loss.backward()
        assert_same(gradients(model), expected)

    def test_of_captured_tensors_alone(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        expected = true_gradients(model, x, mask, task=False)
        with dk.capture(model, "blocks.*") as record:
            model(x, mask)
        objective(maps_of(record), torch.zeros(1)).backward()
        assert_same(gradients(model), expected)

    def test_a_second_step_starts_afresh(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        with dk.capture(model, "blocks.*") as record:
            for _ in range(3):
                expected = true_gradients(model, x, mask)
                model.zero_grad()
                output = model(x, mask)
                objective(maps_of(record), output).backward()
                assert_same(gradients(model), expected)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.05 * parameter.grad

    def test_twice_differentiable(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        with dk.capture(model, "blocks.0") as record:
            model(x, mask)
        probabilities = record["blocks.0"].probabilities()
        (first,) = torch.autograd.grad(
            probabilities.square().sum(), model.blocks[0].qkv.weight, create_graph=True
        )
        first.square().sum().backward()
        assert model.blocks[0].qkv.weight.grad.abs().sum() > 0

    def test_detach_leaves_the_task_alone(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        with dk.capture(model, "blocks.*", detach=True) as record:
            output = model(x, mask)
        assert not any(p.requires_grad for p in maps_of(record))
        output.square().mean().backward()
        assert gradients(model)


@kinds
@pytest.mark.parametrize("backward", ["inside", "after"])
class TestCheckpointing:
    def test_without_reentry_it_is_exact_and_counted_once(self, kind, backward):
        plain, (x, mask) = encoder(kind), tokens()
        expected = true_gradients(plain, x, mask)
        model = Checkpointed(plain, use_reentrant=False)
        with dk.capture(model, "blocks.*") as record:
            output = model(x, mask)
            loss = objective(maps_of(record), output)
            if backward == "inside":
                loss.backward()
                assert all(len(record.calls(name)) == 1 for name in record.names)
        if backward == "after":
            loss.backward()
        assert all(len(record.calls(name)) == 1 for name in record.names)
        assert_same(gradients(model), expected)

    def test_of_captured_tensors_alone(self, kind, backward):
        plain, (x, mask) = encoder(kind), tokens()
        expected = true_gradients(plain, x, mask, task=False)
        model = Checkpointed(plain, use_reentrant=False)
        with dk.capture(model, "blocks.*") as record:
            model(x, mask)
            loss = objective(maps_of(record), torch.zeros(1))
            if backward == "inside":
                loss.backward()
        if backward == "after":
            loss.backward()
        assert_same(gradients(model), expected)

    def test_without_early_stop(self, kind, backward):
        plain, (x, mask) = encoder(kind), tokens()
        expected = true_gradients(plain, x, mask)
        model = Checkpointed(plain, use_reentrant=False)
        with dk.capture(model, "blocks.*") as record:
            with set_checkpoint_early_stop(False):  # the argument early_stop is younger
                output = model(x, mask)
            loss = objective(maps_of(record), output)
            if backward == "inside":
                loss.backward()
        if backward == "after":
            loss.backward()
        assert_same(gradients(model), expected)

    def test_with_reentry_it_is_refused(self, kind, backward):
        model, (x, mask) = Checkpointed(encoder(kind), use_reentrant=True), tokens()
        with pytest.raises(errors.CaptureError, match="use_reentrant=False"):
            with dk.capture(model, "blocks.*") as record:
                model(x.requires_grad_(), mask)
                objective(maps_of(record), torch.zeros(1)).backward()
        assert not torch.overrides._get_current_function_mode_stack()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@kinds
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_teacher_without_gradient_may_checkpoint_as_it_likes(kind):
    model, (x, mask) = Checkpointed(encoder(kind), use_reentrant=True), tokens()
    with torch.no_grad(), dk.capture(model, "blocks.*") as record:
        model(x, mask)
    true, _ = true_maps(model, x, mask)
    for ours, own in zip(maps_of(record), true, strict=True):
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("family", ["clip", "vilt", "llava", "blip_itm", "bert", "gpt2", "swin"])
def test_checkpointing_of_transformers(family):
    found = []
    for checkpointed in (False, True):
        model, batch = zoo.build(family)
        if checkpointed:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        with dk.capture(model) as record:
            model(**batch)
            counts = {name: len(record.calls(name)) for name in record.names}
            loss = sum(
                a.probabilities().square().sum() for n in record.names for a in record.calls(n)
            )
            loss.backward()
            assert counts == {name: len(record.calls(name)) for name in record.names}
        assert sum(counts.values()) == zoo.FAMILIES[family].attentions
        found.append(gradients(model))
    plain, again = found
    largest = max(g.abs().max() for g in plain.values())
    assert set(plain) <= set(again)
    for name, gradient in plain.items():
        assert (again[name] - gradient).abs().max() <= 1e-5 * largest, name


@kinds
class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_under_autocast_probabilities_are_float32_of_what_the_model_used(self, kind, dtype):
        model, (x, mask) = encoder(kind), tokens()
        with torch.autocast("cpu", dtype=dtype):
            plain = model(x, mask)
            with dk.capture(model, "blocks.*") as record:
                output = model(x, mask)
            maps = maps_of(record)
        assert torch.equal(output, plain)
        again = maps_of(record)  # outside of autocast
        for p, same in zip(maps, again, strict=True):
            assert p.dtype == torch.float32
            torch.testing.assert_close(p, same, rtol=0, atol=0)
            torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:3]), rtol=0, atol=1e-5)
        assert record["blocks.0"].query.dtype == dtype
        true, _ = true_maps(model, x, mask)
        torch.testing.assert_close(maps[0], true[0], rtol=0, atol=5e-2)

    def test_under_autocast_the_gradient_is_near_that_of_float32(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        expected = true_gradients(model, x, mask, task=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with dk.capture(model, "blocks.*") as record:
                model(x, mask)
            loss = objective(maps_of(record), torch.zeros(1))
        loss.backward()
        given = gradients(model)
        assert set(given) == set(expected)
        largest = max(g.abs().max() for g in expected.values())
        for name, gradient in expected.items():
            assert (given[name] - gradient).abs().max() <= 0.05 * largest, name


# compilation


class Counter:
    """A backend that runs eagerly and counts the graphs that it was given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_maps(record, model, x, mask):
    true, _ = true_maps(twin(model), x, mask)
    assert record.names == tuple(f"blocks.{i}" for i in range(len(true)))
    for ours, own in zip(maps_of(record), true, strict=True):
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-5)


def attempt(function):
    """What the function returned, or the error of a capture that was refused."""
    try:
        return function(), None
    except errors.CaptureError as error:
        return None, error


@kinds
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore")
@capture_in_compiled_code
class TestCompile:
    def test_registered_before_compiling_it_is_exact_in_one_graph(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        expected = true_gradients(model, x, mask)
        with dk.capture(model, "blocks.*") as record:
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            output = compiled(x, mask)
            assert_maps(record, model, x, mask)
            objective(maps_of(record), output).backward()
        assert_same(gradients(model), expected)

    def test_several_steps_compile_once(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        counter = Counter()
        with dk.capture(model, "blocks.*") as record:
            compiled = torch.compile(model, backend=counter)
            seen = []
            for step in range(4):
                model.zero_grad()
                with torch.no_grad():
                    model.blocks[0].qkv.weight.add_(0.1 * step)
                output = compiled(x, mask)
                assert_maps(record, model, x, mask)
                objective(maps_of(record), output).backward()
                seen.append(counter.graphs)
        assert seen[1:] == seen[1:2] * 3, f"it is compiled again at every step: {seen}"

    def test_several_recordings_compile_once(self, kind):
        """The code of a plain Python kernel is another while it shows itself: the same each time."""
        from torch.nn.attention.flex_attention import flex_attention  # now it is loaded

        assert callable(flex_attention)
        model, (x, mask) = encoder(kind), tokens()
        counter = Counter()
        scope, seen = Scope(torch.compile(model, backend=counter), ["blocks.*"]), []
        for _ in range(4):
            with scope.recording() as recorder:
                scope.model(x, mask)
            assert_maps(Record(recorder), model, x, mask)
            seen.append(counter.graphs)
        assert seen == seen[:1] * 4, f"it is compiled again in every recording: {seen}"

    def test_capture_then_a_plain_call_then_capture(self, kind):
        """Never nothing in silence: the second capture is right, or refused with the way out."""
        model, (x, mask) = encoder(kind), tokens()
        compiled = torch.compile(model, backend="aot_eager")
        with dk.capture(compiled, "blocks.*") as record:
            compiled(x, mask)
        assert_maps(record, model, x, mask)
        plain = compiled(x, mask)

        def again():
            with dk.capture(compiled, "blocks.*") as record:
                output = compiled(x, mask)
            return record, output

        found, error = attempt(again)
        if error is not None:
            assert "compile" in str(error)
            return
        record, output = found
        assert_maps(record, model, x, mask)
        torch.testing.assert_close(output, plain)

    def test_registered_after_compiling_it_is_right_or_refused(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        compiled = torch.compile(model, backend="aot_eager")
        compiled(x, mask)

        def late():
            with dk.capture(compiled, "blocks.*") as record:
                compiled(x, mask)
            return record

        record, error = attempt(late)
        if error is not None:
            assert "compile" in str(error)
            return
        assert_maps(record, model, x, mask)

    def test_a_compiled_block_inside_a_plain_model(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        model.blocks[1] = torch.compile(model.blocks[1], backend="aot_eager")
        record, error = attempt(lambda: self.run(model, x, mask))
        if error is not None:
            assert "compile" in str(error)
            return
        assert record.names == ("blocks.0", "blocks.1", "blocks.2")
        true, _ = true_maps(encoder(kind), x, mask)
        for ours, own in zip(maps_of(record), true, strict=True):
            torch.testing.assert_close(ours, own, rtol=0, atol=1e-5)

    def run(self, model, x, mask):
        with dk.capture(model, "blocks.*") as record:
            model(x, mask)
        return record

    def test_evaluation_between_training_steps(self, kind):
        model, (x, mask) = encoder(kind), tokens()
        compiled = torch.compile(model, backend="aot_eager")
        with dk.capture(compiled, "blocks.*") as record:
            for _ in range(2):
                model.train()
                output = compiled(x, mask)
                assert_maps(record, model, x, mask)
                model.zero_grad()
                objective(maps_of(record), output).backward()
                assert_same(gradients(model), true_gradients(model, x, mask))
                model.eval()
                with torch.no_grad():
                    compiled(x[:1], mask[:1])
                assert record["blocks.0"].shape[0] == 1


def distiller_of(student, teacher, **options):
    terms = [
        {"loss": "attention_kl", "on": f"attention.{direction}"}
        for direction in ("text_to_image", "image_to_text")
    ]
    return dk.Distiller(
        student, teacher, dk.Recipe(name="attention", terms=terms),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES), ignore=["labels"], **options,
    )  # fmt: skip


def pair(kind):
    torch.manual_seed(0)
    return tiny.Dual(KINDS[kind]), tiny.Fusion(KINDS[kind])


@kinds
class TestDistiller:
    def test_its_hooks_are_inert_outside_its_forward(self, kind):
        student, teacher = pair(kind)
        distiller = distiller_of(student, teacher)
        batch = tiny.batch(4)
        inputs = {name: batch[name] for name in tiny.INPUTS}
        first = distiller(batch).loss
        student(**inputs)
        teacher(**inputs)
        assert torch.equal(distiller(batch).loss, first)
        seen = []
        handle = student.text.blocks[0].out.register_forward_hook(
            lambda *_: seen.append(len(torch.overrides._get_current_function_mode_stack()))
        )
        student(**inputs)
        handle.remove()
        assert seen == [0]
        distiller.close()
        for model in (student, teacher):
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    @capture_in_compiled_code
    @pytest.mark.usefixtures("_fresh_compiler")
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("compiled", ["student", "both", "distiller"])
    def test_compiled_models_train_as_plain_ones(self, kind, compiled):
        steps = [tiny.batch(4, seed=seed) for seed in range(3)]

        def trained(compile_them):
            student, teacher = pair(kind)
            student_, teacher_ = student, teacher
            if compile_them and compiled in ("student", "both"):
                student_ = torch.compile(student, backend="aot_eager")
            if compile_them and compiled == "both":
                teacher_ = torch.compile(teacher, backend="aot_eager")
            distiller = distiller_of(student_, teacher_)
            run = torch.compile(distiller, backend="aot_eager") if (
                compile_them and compiled == "distiller"
            ) else distiller  # fmt: skip
            losses = []
            for batch in steps:
                student.zero_grad()
                loss = run(batch).loss
                loss.backward()
                losses.append(loss.detach())
                with torch.no_grad():
                    for parameter in student.parameters():
                        if parameter.grad is not None:
                            parameter -= 0.5 * parameter.grad
                    student_.eval()
                    student_(**{name: batch[name] for name in tiny.INPUTS})  # evaluation between
                    student_.train()
            return losses, gradients(student)

        plain_losses, plain = trained(compile_them=False)
        losses, given = trained(compile_them=True)
        torch.testing.assert_close(losses, plain_losses, rtol=1e-4, atol=1e-6)
        for name, gradient in plain.items():
            torch.testing.assert_close(given[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_thread_may_call_the_model_while_another_takes_its_hooks_off():
    model, (x, mask) = encoder("fused"), tokens()
    expected = model(x, mask)
    with dk.capture(model, "blocks.*"):
        model(x, mask)
        # what torch does first when it removes a hook, and last when it registers one; in between
        # it calls the hook without kwargs
        model._forward_pre_hooks_with_kwargs.clear()
        with ThreadPoolExecutor() as other_thread:
            output = other_thread.submit(model, x, mask).result()
    torch.testing.assert_close(output, expected)  # that thread may sum in another order
