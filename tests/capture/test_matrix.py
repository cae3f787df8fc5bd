"""Real architectures, as they are: what is captured is what the model computed.

Each family runs in the implementation that transformers chooses and in eager, with padding and
with queries and keys made large, so that no map is near-uniform.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import distillkit as dk
from distillkit.errors import CaptureWarning
from tests.support import witnesses, zoo
from tests.support.witnesses import TOLERANCE

IMPLEMENTATIONS = ["default", "eager"]


def build(name, implementation):
    return zoo.build(name, None if implementation == "default" else implementation)


class Run(NamedTuple):
    """A model, what it computed alone, and what was recorded while it computed the same again."""

    name: str
    implementation: str
    model: torch.nn.Module
    batch: dict[str, Any]
    plain: list[Tensor]
    watched: list[Tensor]
    products: list[Tensor]
    records: dict[str, tuple[dk.Attention, ...]]
    named: list[str]


def run(name, implementation) -> Run:
    model, batch = build(name, implementation)
    with witnesses.Products() as products:
        plain = witnesses.tensors_in(model(**batch))
    with warnings.catch_warnings(record=True) as caught, dk.capture(model) as record:
        warnings.simplefilter("always", CaptureWarning)
        watched = witnesses.tensors_in(model(**batch))
    records = {module: record.calls(module) for module in record.names}
    named = [str(one.message) for one in caught if issubclass(one.category, CaptureWarning)]
    return Run(name, implementation, model, batch, plain, watched, products.results, records, named)


@functools.lru_cache(maxsize=1)
def official(name):
    model, batch = zoo.build(name, "eager")
    return model, witnesses.own_maps(model, batch)


CASES = [
    pytest.param(
        (name, implementation), id=f"{name}-{implementation}", marks=pytest.mark.xdist_group(name)
    )
    for name in zoo.FAMILIES
    for implementation in IMPLEMENTATIONS
]


@pytest.fixture(scope="module", params=CASES)
def found(request) -> Run:
    """One run per family and implementation, for all tests; the tests of a case run together."""
    return run(*request.param)


class TestFamily:
    def test_every_attention_is_recorded_once(self, found):
        counts = {module: len(attentions) for module, attentions in found.records.items()}
        assert sum(counts.values()) == zoo.FAMILIES[found.name].attentions, counts

    def test_nothing_is_named_as_unread_but_what_is_no_such_attention(self, found):
        deformable = found.name == "grounding_dino"
        assert bool(found.named) == deformable, found.named

    def test_the_models_results_are_the_same_bits(self, found):
        assert len(found.plain) == len(found.watched) > 0
        for before, after in zip(found.plain, found.watched, strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)

    def test_every_map_that_the_model_returns_in_eager_is_a_record(self, found):
        if found.implementation == "default" and zoo.FAMILIES[found.name].eager_differs:
            pytest.skip("transformers' own eager model computes something else")
        _, maps = official(found.name)
        off = [
            (one.module or "in the output", tuple(one.probabilities.shape), distance)
            for one in maps
            if (distance := witnesses.distance_to_a_map(one, found.records)) > TOLERANCE
        ]
        assert len(off) <= zoo.FAMILIES[found.name].other_maps, off

    def test_probabilities_times_value_is_what_the_attention_computed(self, found):
        off = {}
        for module, attentions in found.records.items():
            for call, attention in enumerate(attentions):
                distance = witnesses.distance_to_a_product(
                    witnesses.mixed(attention), attention.valid_rows(), found.products
                )
                if distance > TOLERANCE:
                    off[f"{module}#{call}"] = distance
        assert not off

    def test_gradient_reaches_the_modules_parameters(self, found):
        modules = dict(found.model.named_modules())
        for module, attentions in found.records.items():
            owner = modules[module]
            while not list(owner.parameters()):
                module = module.rpartition(".")[0]
                owner = modules[module]
            for attention in attentions:
                assert attention.requires_grad, module
                probabilities = attention.probabilities()
                if (probabilities * (1 - probabilities)).abs().max() < 1e-6:
                    continue  # every row sees one key alone: nothing can move it
                weights = torch.linspace(-1, 1, probabilities.numel()).view_as(probabilities)
                reached = torch.autograd.grad(
                    (probabilities * weights).sum(), [p for p in owner.parameters() if p.requires_grad],
                    retain_graph=True, allow_unused=True,
                )  # fmt: skip
                assert any(g is not None and g.abs().max() > 0 for g in reached), module


def test_the_gradient_is_that_of_the_eager_models_own_maps(found):
    model, maps = official(found.name)
    named = [one for one in maps if one.module in found.records and one.probabilities.requires_grad]
    pairs = []
    for module in dict.fromkeys(one.module for one in named):
        own = [one.probabilities for one in named if one.module == module]
        ours = [attention.probabilities() for attention in found.records[module]]
        if [p.numel() for p in own] == [p.numel() for p in ours]:
            pairs += zip(own, ours, found.records[module], strict=True)
    differs = found.implementation == "default" and zoo.FAMILIES[found.name].eager_differs
    if not pairs or differs:
        pytest.skip(
            "nothing to compare with: no module returns its map in eager, or eager computes otherwise"
        )

    def gradients(maps_, of):
        loss = sum(
            (p.reshape(a.shape) * torch.sin(torch.arange(p.numel()).view(a.shape)))[
                a.valid_rows()
            ].sum()
            for p, a in maps_
        )
        parameters = {name: p for name, p in of.named_parameters() if p.requires_grad}
        values = torch.autograd.grad(
            loss, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        return dict(zip(parameters, values, strict=True))

    expected = gradients([(own, attention) for own, _, attention in pairs], model)
    given = gradients([(ours, attention) for _, ours, attention in pairs], found.model)
    largest = max(g.abs().max() for g in expected.values() if g is not None)
    assert largest > 1e-4
    for parameter, gradient in expected.items():
        if gradient is not None and gradient.abs().max() > 1e-5 * largest:
            assert given[parameter] is not None, parameter
            off = (given[parameter] - gradient).abs().max() / largest
            assert off < 1e-4, (parameter, off)


def test_find_attention_lists_and_verifies_each(found):
    model = found.model
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    table = dk.find_attention(model, **found.batch)
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert after == before
    rows = {row.name: row for row in table if row.verified != "not read"}
    assert set(rows) == set(found.records)
    for module, attentions in found.records.items():
        row, attention = rows[module], attentions[0]
        assert row.calls == len(attentions)
        assert row.cls == type(dict(model.named_modules())[module]).__name__
        assert (row.heads, row.query_length, row.key_length) == attention.shape[1:]
        assert row.head_dim == attention.query.shape[-1]
        assert row.kind in ("self", "cross")
        if not (found.name == "groupvit" and "assign" in module):
            assert row.verified == "verified", (module, row.note)
            assert row.error <= TOLERANCE
        assert module in str(table)


def test_the_page_lists_every_family():
    page = Path(__file__).parents[2] / "docs" / "reference" / "capture-matrix.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    listed = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert listed == ["architecture", *zoo.FAMILIES]
