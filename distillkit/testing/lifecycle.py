"""Check that a distiller of one's own pair survives what loops do with it."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._capture.watcher import Hooks
from .._objective.distiller import Distilled, Distiller
from .._objective.teacher import flags_before, flags_of
from .._torch_private import hooks_after, hooks_before, is_compiled, is_function_mode_on
from ..errors import CaptureError, OptionError
from .ranks import in_two_processes
from .results import CheckResult
from .running import asserted, results_of
from .verdicts import NotApplicable, UnmetError

DistillerFactory = Callable[[], tuple[Distiller, Mapping[str, Any]]]
_CLOSE = 1e-5  # of the loss, and of the largest gradient


class DistillerCase:
    """A distiller and a training batch, made anew by a factory.

    Args:
        factory: ``factory() -> (distiller, batch)``; every call makes other models.
    """

    def __init__(self, factory: DistillerFactory) -> None:
        self.factory = factory

    @property
    def name(self) -> str:
        """Its name in test reports."""
        return getattr(self.factory, "__name__", type(self.factory).__name__)

    def make(self) -> tuple[Distiller, dict[str, Any]]:
        """A distiller in eval mode, so that two calls agree, and its batch."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            distiller, batch = self.factory()
        return distiller.eval(), dict(batch)


def check_distiller(factory: DistillerFactory, *, ranks: int = 1) -> list[CheckResult]:
    """Run a distiller through its life: copies, interrupts, threads, modes, accumulation, close.

    Args:
        factory: see :class:`DistillerCase`.
        ranks: 2 also compares two processes under DDP with one, for which the factory must be a
            function that another process can import.

    Returns:
        One result for each check; ``seen`` says what was found, or what was wrong.

    Examples:
        >>> import torch, distillkit as dk
        >>> def made():
        ...     student, teacher = (
        ...         torch.nn.ModuleDict({"head": torch.nn.Linear(3, 2)}) for _ in "st"
        ...     )
        ...     for model in (student, teacher):
        ...         model.forward = lambda x, model=model: {"logits": model["head"](x)}
        ...     adapter = dk.DeclarativeAdapter(streams={}, logits="logits")
        ...     terms = [{"loss": "kl_divergence", "on": "logits"}]
        ...     recipe = dk.Recipe(name="soft", terms=terms)
        ...     adapters = {"student_adapter": adapter, "teacher_adapter": adapter}
        ...     return dk.Distiller(student, teacher, recipe, **adapters), {"x": torch.randn(4, 3)}
        >>> results = {result.name: result for result in check_distiller(made)}
        >>> results["parts_add_up"].passed, results["an_interrupt_is_unwound"].passed
        (True, True)
    """
    if ranks not in (1, 2):
        raise OptionError(f"ranks is 1 or 2; got {ranks}")
    case = DistillerCase(factory)
    checks = LIFE if ranks == 1 else {**LIFE, two_ranks_agree.__name__: two_ranks_agree}
    return results_of(case, checks)


def parametrize_with_distiller_checks(factories: Iterable[DistillerFactory]) -> Any:
    """A decorator: the test runs once for each factory and check, ``def test(case, check)``.

    Args:
        factories: see :class:`DistillerCase`; their names appear in the tests' names.
    """
    import pytest

    cases = [DistillerCase(factory) for factory in factories]
    return pytest.mark.parametrize(
        ("case", "check"),
        [
            pytest.param(case, functools.partial(asserted, check), id=f"{case.name}-{name}")
            for case in cases
            for name, check in LIFE.items()
        ],
    )


def a_call_teaches_the_student(case: DistillerCase) -> str:
    """The loss is finite, and its gradient reaches the student and not the teacher."""
    distiller, batch = case.make()
    result = distiller.train()(batch)
    if not bool(torch.isfinite(result.loss)):
        raise UnmetError(f"the loss is {result.loss.item()}")
    result.loss.backward()  # type: ignore[no-untyped-call]
    taught = [n for n, p in distiller.student.named_parameters() if _is_some(p.grad)]
    if not taught:
        raise UnmetError("no parameter of the student gets a gradient")
    for name, teacher in distiller.teachers.items():
        reached = [n for n, p in teacher.named_parameters() if p.grad is not None]
        if reached:
            raise UnmetError(f"the {name}'s {reached[0]!r} gets a gradient")
    return f"{len(taught)} parameters of the student"


def a_second_call_agrees(case: DistillerCase) -> str:
    """In eval mode, the same batch gives the same loss."""
    distiller, batch = case.make()
    return _same(distiller(batch), distiller(batch), "a second call")


def a_copy_watches_its_own_models(case: DistillerCase) -> str:
    """Deep copies, before and after a step, train a student of their own."""
    distiller, batch = case.make()
    early = _of_model("copy", distiller, copy.deepcopy)
    before = distiller(batch)
    _take_step(distiller, batch)
    late = copy.deepcopy(distiller)
    for twin, of, what in (
        (early, before, "a copy before a step"),
        (late, distiller(batch), "a copy after a step"),
    ):
        distiller.zero_grad()
        twin.zero_grad()
        _same(of, twin(batch), what)
        twin(batch).loss.backward()
        if not any(_is_some(p.grad) for p in twin.student.parameters()):
            raise UnmetError(f"{what} does not teach its own student")
        if any(_is_some(p.grad) for p in distiller.student.parameters()):
            raise UnmetError(f"{what} teaches the student of the original")
    return "before and after a step"


def a_pickle_gives_the_same_loss(case: DistillerCase) -> str:
    """A pickle of the distiller gives its loss, and its models pickle by themselves."""
    distiller, batch = case.make()
    early = _of_model("pickle", distiller, pickle.dumps)
    expected = distiller(batch)
    _same(expected, pickle.loads(early)(batch), "its pickle from before the first call")
    for model in _models(distiller):
        try:
            _of_model("pickle", model, pickle.dumps)
        except NotApplicable as reason:  # some put hooks on themselves when they first run
            return f"before the first call; later, {reason}"
    late = pickle.loads(pickle.dumps(distiller))
    return _same(expected, late(batch), "its pickle")


def nothing_stays_on_the_models(case: DistillerCase) -> str:
    """Between calls there is no hook and no mode."""
    distiller, batch = case.make()
    distiller(batch)
    hooks = _hooks(distiller)  # a model may put on some of its own when it first runs
    distiller(batch)
    _check_clean(distiller, hooks, "a call")
    return f"{hooks} hooks, all of somebody else"


def an_interrupt_is_unwound(case: DistillerCase) -> str:
    """After an error or Ctrl-C inside either model, nothing is on and the next call is right."""
    distiller, batch = case.make()
    expected, hooks = distiller(batch), _hooks(distiller)
    models = _models(distiller)
    stops = 0
    for model in models:
        for module in model.modules():
            if not list(module.children()):  # inside of a module that is watched, and outside
                stops += _count_interrupts(distiller, batch, module, hooks)
    _same(expected, distiller(batch), "a call after interrupts")
    return f"{stops} interrupts in {len(models)} models"


def inference_mode_works(case: DistillerCase) -> str:
    """A loss under ``inference_mode``, first or later; its teacher's signals are a target."""
    distiller, batch = case.make()
    with torch.inference_mode():
        first = distiller(batch)
    result = distiller(batch)
    result.loss.backward()  # type: ignore[no-untyped-call]
    _same(first, result, "a call after one in inference mode")
    distiller, batch = case.make()
    expected = distiller(batch)
    with torch.inference_mode():
        inside = distiller(batch)
        known = distiller.run_teacher(batch) if distiller.teachers else None
    _same(expected, inside, "inference mode")
    if known is not None:
        result = distiller(batch, teacher_signals=known)
        result.loss.backward()  # type: ignore[no-untyped-call]
        _same(expected, result, "a target from inference mode")
    return "first, later, and as a target"


def parts_add_up(case: DistillerCase) -> str:
    """With their normalizer, unequal parts of the batch add up to the whole."""
    distiller, batch, parts = _make_in_parts(case)
    whole = distiller(batch)
    whole.loss.backward()  # type: ignore[no-untyped-call]
    wanted = _gradients(distiller)
    distiller.zero_grad()
    normalizer = distiller.normalizer(parts)
    total = torch.zeros(())
    for part in parts:
        loss = distiller(part, normalizer=normalizer).loss
        loss.backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    _close(whole.loss.detach(), total, "the sum over the parts")
    _close(wanted, _gradients(distiller), "the gradient of the parts")
    return "the first example, and the others"


def two_ranks_agree(case: DistillerCase) -> str:
    """Under DDP, two processes with unequal parts get the gradient of one with the whole."""
    _make_in_parts(case)
    first, second = in_two_processes(_make_in_parts, _gradients, case)
    _close(first.whole, second.whole, "what the factory makes in another process")
    _close(first.parts, second.parts, "the gradient of the other rank")
    _close(first.whole, first.parts, "the gradient of two ranks")
    return "the first example on one, the others on the other"


def two_threads_agree(case: DistillerCase) -> str:
    """Two threads that call one distiller get what one thread gets."""
    distiller, batch = case.make()
    expected, wrong = distiller(batch), []

    def repeat() -> None:
        for _ in range(4):
            try:
                _same(expected, distiller(batch), "a call beside another thread")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise UnmetError(f"{len(wrong)} of 8 calls went wrong, first: {wrong[0]}")
    return "8 calls in 2 threads"


def moving_changes_nothing(case: DistillerCase) -> str:
    """Moved to the device where it is, and to its own precision, it gives the same loss."""
    distiller, batch = case.make()
    expected = distiller(batch)
    parameters = list(distiller.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    result = _same(expected, distiller.to(device)(batch), "a move")
    dtypes = {p.dtype for p in parameters if p.is_floating_point()}
    if len(dtypes) == 1:
        _same(expected, distiller.to(dtypes.pop())(batch), "a cast to its own dtype")
    return result


def closing_gives_the_models_back(case: DistillerCase) -> str:
    """After ``close`` a call is an error, nothing is left, and a frozen teacher is freed."""
    distiller, batch = case.make()
    teachers = distiller.teachers
    before = {name: flags_before(teacher) for name, teacher in teachers.items()}
    distiller(batch)
    hooks = _hooks(distiller)
    distiller.close()
    distiller.close()
    _check_clean(distiller, hooks, "close")
    if _watching(module for model in _models(distiller) for module in model.modules()):
        raise UnmetError("after close hooks of a capture are on the models")
    for name, flags in before.items():
        if flags is not None and flags_of(teachers[name]) != flags:
            raise UnmetError(
                f"after close the {name} is not as trainable, or not in the modes, as it was"
            )
    try:
        distiller(batch)
    except CaptureError:
        return "a call is an error"
    raise UnmetError("a call after close() is no error")


LIFE: Mapping[str, Callable[[DistillerCase], str]] = {
    check.__name__: check
    for check in (
        a_call_teaches_the_student,
        a_second_call_agrees,
        a_copy_watches_its_own_models,
        a_pickle_gives_the_same_loss,
        nothing_stays_on_the_models,
        an_interrupt_is_unwound,
        inference_mode_works,
        parts_add_up,
        two_threads_agree,
        moving_changes_nothing,
        closing_gives_the_models_back,
    )
}


def _make_in_parts(case: DistillerCase) -> tuple[Distiller, dict[str, Any], list[dict[str, Any]]]:
    """A distiller, its batch, and the first example and the others of it."""
    distiller, batch = case.make()
    examples = {len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim}
    if len(examples) != 1 or max(examples) < 3:
        raise NotApplicable("not every entry has one axis of three or more examples")
    parts = [
        {name: x[part] if isinstance(x, Tensor) and x.ndim else x for name, x in batch.items()}
        for part in (slice(0, 1), slice(1, None))
    ]
    return distiller, batch, parts


def _count_interrupts(
    distiller: Distiller, batch: Mapping[str, Any], module: nn.Module, hooks: int
) -> int:
    """How often a call could be stopped inside a module; each time nothing may be left."""
    kinds = (RuntimeError, KeyboardInterrupt)
    for kind in kinds:
        if not _stop_inside(distiller, batch, module, kind):
            return 0
        _check_clean(distiller, hooks, f"a {kind.__name__} in {type(module).__name__}")
    return len(kinds)


def _stop_inside(
    distiller: Distiller, batch: Mapping[str, Any], module: nn.Module, kind: type[BaseException]
) -> bool:
    """Whether a call reaches a module, where it is stopped by an exception."""
    reached = []

    def stop(*_: object) -> None:
        reached.append(kind)
        raise kind("stopped by a check")

    handle = module.register_forward_hook(stop)
    try:
        distiller(batch)
    except kind:
        return True
    finally:
        handle.remove()
    if reached:
        raise UnmetError(f"a {kind.__name__} inside a model is swallowed")
    return False


def _take_step(distiller: Distiller, batch: Mapping[str, Any]) -> None:
    """One step of plain gradient descent."""
    distiller(batch).loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in distiller.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-3)


def _of_model(what: str, model: nn.Module, function: Callable[[Any], Any]) -> Any:
    """Call a function of a model, which may refuse for reasons of its own."""
    try:
        return function(model)
    except Exception as error:
        if _watching(model.modules()):
            raise
        raise NotApplicable(f"there is no {what} of these models: {error}") from None


def _hooks(distiller: Distiller) -> int:
    """How many hooks of others are on both models; ours stay only where a compiler has them."""
    modules = [module for model in _models(distiller) for module in model.modules()]
    if _watching(modules) and not any(is_compiled(module) for module in modules):
        raise UnmetError("hooks of a capture are on the models")
    return sum(not _is_ours(hook) for module in modules for hook in _hooks_of(module))


def _models(distiller: Distiller) -> list[nn.Module]:
    return [distiller.student, *distiller.teachers.values()]


def _hooks_of(module: nn.Module) -> list[Any]:
    return [*hooks_after(module), *hooks_before(module)]


def _watching(modules: Iterable[nn.Module]) -> bool:
    """Whether a capture's hooks are on one of the modules."""
    return any(_is_ours(hook) for one in modules for hook in _hooks_of(one))


def _is_ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), Hooks)


def _check_clean(distiller: Distiller, hooks: int, after: str) -> None:
    if is_function_mode_on():
        raise UnmetError(f"after {after} a function mode of torch is on")
    if _hooks(distiller) != hooks:
        raise UnmetError(f"after {after} hooks are on the models")


def _same(one: Distilled, other: Distilled, what: str) -> str:
    _close(one.loss.detach(), other.loss.detach(), f"the loss of {what}")
    return f"loss {one.loss.item():.4f}"


def _close(one: Tensor, other: Tensor, what: str) -> None:
    off = (one.double() - other.double()).abs().max()
    scale = one.double().abs().max().clamp_min(1e-12)
    if not bool(off <= _CLOSE * scale):
        raise UnmetError(f"{what} is off by {float(off / scale):.1e}")


def _gradients(distiller: Distiller) -> Tensor:
    found = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
        for p in distiller.parameters()
    ]
    return torch.cat(found)


def _is_some(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())
