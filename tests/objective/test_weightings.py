"""Weights that settle themselves: over steps and parts, in copies and checkpoints, and wrong."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import distillkit as dk
from distillkit import errors
from distillkit._objective.weighting import weights
from distillkit._objective.weighting.making import make_weights
from tests.support import weighted
from tests.support.weighted import ATTENTION, LOGITS, NAMES, TERMS, batch_of, close, train

NEEDS_TORCHJD = pytest.mark.skipif(
    importlib.util.find_spec("torchjd") is None,
    reason="TorchJD is not installed (distillkit[torchjd])",
)
EVERY = [
    *(pytest.param(given, id=name) for name, given in weighted.WEIGHTINGS.items()),
    *(
        pytest.param(given, id=name, marks=NEEDS_TORCHJD)
        for name, given in weighted.TORCHJD.items()
    ),
]


def test_static_weights_are_those_of_the_terms():
    static = train(weighted.distiller_of("static"), range(3))
    assert static[0][0] == {ATTENTION: 2.0, LOGITS: 1.0, "task": 0.5}
    assert weighted.distiller_of("static").objective.weighting is None


@pytest.mark.parametrize("weighting", EVERY)
def test_weights_move_and_the_loss_is_the_sum_of_what_they_weigh(weighting):
    distiller = weighted.distiller_of(weighting)
    found = train(distiller, range(7))
    assert len({tuple(weights.values()) for weights, _ in found}) > 2
    result = distiller(batch_of(0))
    total = sum(result.weights[name] * part.item() for name, part in result.parts.items())
    learned = dict(distiller.named_parameters()).get("objective.weighting.weighting.log_variances")
    if learned is not None:
        total += (torch.tensor([2.0, 1.0, 0.5]) @ learned).item()
    assert result.loss.item() == pytest.approx(total, rel=1e-6)


def cuts_of(step):
    """Another number of parts in every step."""
    return [[(0, 6)], [(0, 1), (1, 4), (4, 6)], [(0, 2), (2, 6)]][step % 3]


@pytest.mark.parametrize("weighting", [one for one in EVERY if "now" not in one.id])
class TestPartsOfAStep:
    def test_of_unequal_size_with_a_normalizer_are_the_whole(self, weighting):
        whole = train(weighted.distiller_of(weighting), range(5))
        close(train(weighted.distiller_of(weighting), range(5), cuts_of), whole)

    def test_of_equal_size_without_one_are_the_whole(self, weighting):
        terms = [{**term, "per": "example"} for term in TERMS[:2]] + TERMS[2:]
        one, other = (weighted.distiller_of(weighting, terms) for _ in "ab")
        whole = train(one, range(5), normalized=False)
        close(train(other, range(5), [(0, 3), (3, 6)], normalized=False), whole)

    def test_a_step_that_the_optimizer_leaves_out_counts_as_one_of_two_batches(self, weighting):
        """A gradient scaler skips steps whose gradients are not finite."""
        once, twice = (weighted.distiller_of(weighting) for _ in "ab")
        for distiller in (once, twice):
            optimizer = weighted.optimizer_of(distiller)
            for _ in range(2 if distiller is twice else 1):
                normalizer = distiller.normalizer([batch_of(0)])
                distiller(batch_of(0), normalizer=normalizer).loss.backward()
            for parameter in distiller.parameters():
                parameter.grad = None if parameter.grad is None else parameter.grad.sign()
            optimizer.step()
            optimizer.zero_grad()
        close(train(once, range(1, 4)), train(twice, range(1, 4)))


@pytest.mark.parametrize("weighting", EVERY)
class TestLife:
    def test_goes_on_bit_for_bit_where_it_was_saved(self, weighting):
        distiller = weighted.distiller_of(weighting)
        optimizer = weighted.optimizer_of(distiller)
        train(distiller, range(3), [(0, 2), (2, 6)], optimizer=optimizer)
        file = io.BytesIO()
        torch.save([distiller.state_dict(), optimizer.state_dict()], file)
        expected = train(distiller, range(3, 6), [(0, 2), (2, 6)], optimizer=optimizer)
        file.seek(0)
        state, moments = torch.load(file)
        assert all(isinstance(value, torch.Tensor) for value in state.values())  # for safetensors
        resumed = weighted.distiller_of(weighting)
        resumed.load_state_dict(state)
        again = weighted.optimizer_of(resumed)
        again.load_state_dict(moments)
        assert train(resumed, range(3, 6), [(0, 2), (2, 6)], optimizer=again) == expected

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_a_copy_goes_on_alone(self, weighting, copied):
        distiller = weighted.distiller_of(weighting)
        train(distiller, range(3))
        other = copied(distiller)
        before = distiller.state_dict()["student.words.weight"].clone()
        moved = train(other, range(3, 6))
        assert torch.equal(distiller.state_dict()["student.words.weight"], before)
        close(train(distiller, range(3, 6)), moved, 1e-12)

    def test_is_frozen_in_eval_mode_and_without_gradient(self, weighting):
        distiller, other = (weighted.distiller_of(weighting) for _ in "ab")
        for one in (distiller, other):
            optimizer = weighted.optimizer_of(one)
            train(one, range(3), optimizer=optimizer)
            if one is distiller:
                state = {n: value.clone() for n, value in one.state_dict().items()}
                with torch.no_grad():
                    weights = one(batch_of(7)).weights
                with torch.inference_mode():
                    assert one.eval()(batch_of(8)).weights == weights
                assert one(batch_of(9)).weights == weights
                for name, value in one.state_dict().items():
                    assert torch.equal(value, state[name]), name
                one.train()
            one.found = train(one, range(3, 5), optimizer=optimizer)
        assert distiller.found == other.found

    def test_moves_and_changes_its_dtype(self, weighting):
        distiller = weighted.distiller_of(weighting)
        train(distiller, range(3))
        expected = train(copy.deepcopy(distiller), [3])[0][0]
        for name, weight in train(distiller.to("cpu", torch.float64), [3])[0][0].items():
            assert weight == pytest.approx(expected[name], rel=1e-6)
        single = weighted.distiller_of(weighting)
        single.float().teacher.float()
        result = single({n: x.float() if n == "pixels" else x for n, x in batch_of(0).items()})
        assert result.loss.dtype == torch.float32

    def test_a_term_that_joins_later(self, weighting):
        late = {"start": 0.0, "stop": 2.0, "until": 0.25, "shape": "step"}
        terms = [{**TERMS[0], "weight": late}, *TERMS[1:]]
        if isinstance(weighting, dict) and "ratios" in weighting:
            weighting = {**weighting, "ratios": {ATTENTION: 0.5}}
        found = [weights for weights, _ in train(weighted.distiller_of(weighting, terms), range(5))]
        assert [weights[ATTENTION] for weights in found[:2]] == [0.0, 0.0]
        at_once = isinstance(weighting, dict) and "now" in weighting
        if not at_once:
            assert found[2][ATTENTION] == 2.0  # its own, until a step has shown it
        assert all(weights[ATTENTION] > 0 for weights in found[2:])
        parts = train(weighted.distiller_of(weighting, terms), range(5), [(0, 2), (2, 6)])
        if not at_once:
            close(parts, train(weighted.distiller_of(weighting, terms), range(5)))

    def test_under_checkpointing_and_autocast(self, weighting):
        plain, checked = weighted.distiller_of(weighting), weighted.distiller_of(weighting)
        forward = type(checked.student.text).forward

        def checkpointed(encoder, x, mask):
            return torch.utils.checkpoint.checkpoint(forward, encoder, x, mask, use_reentrant=False)

        for tower in (checked.student.text, checked.student.image):
            tower.forward = checkpointed.__get__(tower)
        close(train(plain, range(4)), train(checked, range(4)), 1e-9)
        with torch.autocast("cpu", torch.bfloat16):
            single = weighted.distiller_of(weighting)
            single.float().teacher.float()
            batch = {n: x.float() if n == "pixels" else x for n, x in batch_of(0).items()}
            weights = single(batch).weights.values()
        assert all(0 < weight < float("inf") for weight in weights)


@pytest.mark.parametrize("kernel", ["fused", "foreach"])
def test_steps_of_every_kernel_of_an_optimizer_are_seen(kernel):
    """Fused kernels write without torch counting it."""
    found = []
    for options in ({}, {kernel: True}):
        distiller = weighted.distiller_of({"name": "gradnorm", "lr": 0.1})
        optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3, **options)
        found.append(train(distiller, range(4), [(0, 2), (2, 6)], optimizer=optimizer))
    close(*found)
    assert found[0][0][0] != found[0][3][0]
    distiller = weighted.distiller_of("uncertainty")
    optimizer = torch.optim.AdamW(distiller.student.parameters(), lr=1e-3, **{kernel: True})
    with pytest.raises(errors.RecipeError, match="a weighting that learns"):
        train(distiller, range(4), optimizer=optimizer)


def test_threads_make_the_calls_of_one_step():
    alone, shared = (weighted.distiller_of("gradnorm") for _ in "ab")
    for distiller, threads in ((alone, 1), (shared, 4)):
        optimizer = weighted.optimizer_of(distiller)
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(distiller, map(batch_of, range(8))))
        sum(result.loss for result in results).backward()
        optimizer.step()
    close([(alone(batch_of(9)).weights, 0)], [(shared(batch_of(9)).weights, 0)])


class TestWhatTheyFollow:
    def test_ratios_are_those_of_the_gradients(self):
        distiller = weighted.distiller_of(weighted.WEIGHTINGS["gradient_ratio at"])
        distiller(batch_of(0))
        with torch.no_grad():
            next(iter(distiller.student.parameters())).add_(0)  # a step that changes nothing
        result = distiller(batch_of(0))
        chosen = [p for n, p in distiller.student.named_parameters() if ".blocks.0." in n]
        norms = {}
        for name in NAMES:
            alone = weighted.distiller_of(
                "static", [t for t, n in zip(TERMS, NAMES, strict=True) if n == name]
            )
            alone.student.load_state_dict(distiller.student.state_dict())
            loss = alone(batch_of(0)).loss
            mine = [p for n, p in alone.student.named_parameters() if ".blocks.0." in n]
            found = torch.autograd.grad(loss, mine, allow_unused=True)
            own = {ATTENTION: 2.0, LOGITS: 1.0, "task": 0.5}[name]
            norms[name] = (
                sum((x / own).square().sum() for x in found if x is not None).sqrt().item()
            )
        assert len(chosen) == 8
        assert result.weights["task"] == 0.5
        for name, ratio, own in ((ATTENTION, 0.5, 2.0), (LOGITS, 2.0, 1.0)):
            held = result.weights[name] / own * norms[name] / norms["task"]
            assert held == pytest.approx(ratio, rel=1e-6)

    def test_dynamic_average_by_its_formula(self):
        distiller = weighted.distiller_of(
            {"name": "dynamic_average", "steps": 1, "temperature": 0.5}
        )
        optimizer, losses, weights = weighted.optimizer_of(distiller), [], []
        for step in range(4):
            result = distiller(batch_of(step))
            result.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append([result.parts[name].double().item() for name in NAMES])
            weights.append([result.weights[name] for name in NAMES])
        priors = torch.tensor([2.0, 1.0, 0.5]).double()
        assert weights[:2] == [priors.tolist()] * 2
        ratio = torch.tensor(losses[2]) / torch.tensor(losses[1])
        expected = priors * 3 * torch.softmax(ratio / 0.5, 0)
        torch.testing.assert_close(torch.tensor(weights[3]).double(), expected, rtol=1e-6, atol=0)

    def test_gradnorm_by_autograd(self):
        """The slope of the paper's distance, with its target a constant."""
        from distillkit import StepStatistics
        from distillkit._objective.weighting.gradnorm import GradNorm

        made = GradNorm(NAMES, alpha=0.7, lr=0.05)
        state, factors = made.start(), torch.ones(3).double()
        first = None
        for seed in range(4):
            torch.manual_seed(seed)
            rows, losses = torch.randn(3, 5).double(), torch.rand(3).double() + 0.1
            first = losses if first is None else first
            free = factors.clone().requires_grad_()
            sizes = free * rows.norm(dim=1)
            rate = losses / first / (losses / first).mean()
            target = (sizes.mean() * rate**0.7).detach()
            ((sizes - target).abs().sum() / sizes.mean().detach()).backward()
            moved = (factors - 0.05 * free.grad).clamp_min(1e-3)
            step = StepStatistics(torch.arange(3), losses, torch.ones(3), factors, rows @ rows.T)
            factors, state = made.settle(step, state)
            torch.testing.assert_close(factors, moved * 3 / moved.sum())

    def test_uncertainty_settles_at_one_by_the_value(self):
        from distillkit._objective.weighting.uncertainty import Uncertainty

        made, values = Uncertainty(NAMES), torch.tensor([0.01, 1.0, 30.0])
        optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
        for _ in range(400):
            factors, additions = made(torch.arange(3))
            optimizer.zero_grad()
            (factors * values + additions).sum().backward()
            optimizer.step()
        torch.testing.assert_close(made(torch.arange(3))[0], 1 / values, rtol=1e-2, atol=0)

    @NEEDS_TORCHJD
    @pytest.mark.parametrize("name", ["UPGrad", "MGDA", "DualProj", "AlignedMTL"])
    def test_the_gradient_is_torchjds_aggregation(self, name):
        from torchjd import aggregation

        distiller = weighted.distiller_of({"name": "torchjd", "aggregator": name, "now": True})
        result = distiller(batch_of(0))
        result.loss.backward()
        parameters = list(distiller.student.parameters())
        found = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
        rows = []
        for term in TERMS:
            alone = weighted.distiller_of("static", [term])
            alone(batch_of(0)).loss.backward()
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                        for p in alone.student.parameters()
                    ]
                )
            )
        aggregated = getattr(aggregation, name)()(torch.stack(rows))
        unit = getattr(aggregation, name)().gramian_weighting(torch.eye(3).double()).mean()
        torch.testing.assert_close(found, aggregated / unit, rtol=1e-4, atol=1e-7)


class TestErrors:
    @pytest.mark.parametrize(
        ("weighting", "message"),
        [
            ("gradnrom", "no weighting is called 'gradnrom'; did you mean 'gradnorm'"),
            ({"name": "gradnorm", "alhpa": 1}, "no option is called 'alhpa'; did you mean 'alpha'"),
            ({"name": "gradnorm", "alpha": -1}, "alpha is a finite number"),
            ({"name": "gradnorm", "lr": 0}, "lr is a finite number"),
            ({"name": "dynamic_average", "at": "text"}, "reads losses alone: `at`"),
            ({"name": "uncertainty", "now": True}, "reads no gradients: it takes no option `now`"),
            ({"name": "gradnorm", "at": 3}, "`at` is a pattern"),
            ({"name": "gradnorm", "now": "yes"}, "`now` is true or false"),
            ({"alpha": 1}, "a weighting is a name or a table"),
            ({"name": "gradient_ratio"}, "missing a required .*argument: 'ratios'"),
            ({"name": "gradient_ratio", "ratios": {"taks": 1}}, "did you mean 'task'"),
            ({"name": "gradient_ratio", "ratios": {"task": 1}}, "not 'task' itself"),
            ({"name": "gradient_ratio", "ratios": {LOGITS: 0}}, "the ratio of .* above 0"),
            ({"name": "dynamic_average", "steps": 0}, "steps is a number of steps"),
            ({"name": "dynamic_average", "temperature": 0}, "temperature is a finite number"),
        ],
    )
    def test_of_a_recipe(self, weighting, message):
        terms = [dk.Term(**term) for term in TERMS]
        with pytest.raises(errors.DistillKitError, match=message):
            dk.Objective(terms, weighting=weighting)

    @pytest.mark.skipif(
        importlib.util.find_spec("torchjd") is not None, reason="TorchJD is installed"
    )
    def test_torchjd_that_is_not_there(self):
        with pytest.raises(errors.RecipeError, match=r"pip install 'distillkit\[torchjd\]'"):
            make_weights("torchjd", NAMES)

    @NEEDS_TORCHJD
    def test_aggregators_of_torchjd(self):
        for name, message in (("UPGard", "did you mean 'UPGrad'"), ("GradVac", "known|did you")):
            with pytest.raises(errors.RecipeError, match=message):
                make_weights({"name": "torchjd", "aggregator": name}, NAMES)
        with pytest.raises(errors.OptionError, match="with {'c': 1}"):
            make_weights({"name": "torchjd", "options": {"c": 1}}, NAMES)

    @pytest.mark.parametrize(
        ("at", "message"),
        [
            ("txt.**", "at = 'txt.\\*\\*': pattern .* did you mean"),
            ("head", f"term '{ATTENTION}' depends on no parameter of the modules 'head'"),
        ],
    )
    def test_modules_that_give_no_gradients(self, at, message):
        distiller = weighted.distiller_of({"name": "gradnorm", "at": at})
        with pytest.raises(errors.RecipeError, match=message):
            distiller(batch_of(0))

    def test_reentrant_checkpointing(self):
        distiller = weighted.distiller_of("gradnorm")
        tower = distiller.student.patches  # one around attention is refused by capture itself
        forward = type(tower).forward

        def checkpointed(x):
            return torch.utils.checkpoint.checkpoint(
                forward, tower, x.requires_grad_(), use_reentrant=True
            )

        tower.forward = checkpointed
        with pytest.raises(errors.RecipeError, match="use_reentrant=False"):
            distiller(batch_of(0))

    def test_a_learned_weighting_that_no_optimizer_steps(self):
        distiller = weighted.distiller_of("uncertainty")
        optimizer = torch.optim.SGD(distiller.student.parameters(), lr=0.1)
        with pytest.raises(errors.RecipeError, match="has a weighting that learns.*parameters()"):
            train(distiller, range(5), optimizer=optimizer)
        distiller = weighted.distiller_of("uncertainty")
        distiller.objective.requires_grad_(False)
        train(distiller, range(5), optimizer=optimizer)

    def test_a_student_that_no_optimizer_is_seen_to_step(self, monkeypatch):
        monkeypatch.setattr(weights, "_MOST_CALLS", 3)
        distiller = weighted.distiller_of("dynamic_average")
        for _ in range(3):
            distiller(batch_of(0))
        with pytest.raises(errors.RecipeError, match="none was seen in 3 calls"):
            distiller(batch_of(0))

    def test_the_state_of_another_weighting(self):
        state = weighted.distiller_of("gradnorm").state_dict()
        with pytest.raises(errors.RecipeError, match="not of the weighting 'dynamic_average'"):
            weighted.distiller_of("dynamic_average").load_state_dict(state)

    def test_an_objective_without_its_student(self):
        distiller = weighted.distiller_of("gradnorm", TERMS[:2])
        signals = [distiller.run_student(batch_of(0))[1], distiller.run_teacher(batch_of(0))]
        with pytest.raises(errors.RecipeError, match="objective\\(..., model=student\\)"):
            distiller.objective(*signals)
        assert distiller.objective(*signals, model=distiller.student).weights[LOGITS] == 1.0

    def test_losses_that_are_not_finite_settle_nothing(self):
        distiller = weighted.distiller_of({"name": "gradnorm", "lr": 0.1})
        before = train(distiller, range(3))[-1][0]
        broken = batch_of(3)
        broken["pixels"] = broken["pixels"] * float("nan")
        after = distiller(broken).weights
        with torch.no_grad():
            for parameter in distiller.student.parameters():
                parameter.add_(0)
        assert distiller(batch_of(4)).weights == after != before
