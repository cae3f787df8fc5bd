"""Specs by name: the core's own through everybody's hooks, lookups, conflicts, the listing."""

from __future__ import annotations

import subprocess
import sys

import pluggy
import pytest
import torch

import distillkit as dk
from distillkit import errors
from distillkit._plugins import hookspecs
from distillkit._plugins.registry import lookup, plugin_manager, provided
from distillkit._plugins.specs import resolve

SPEC_TYPES = (dk.LossSpec, dk.AdapterSpec, dk.AlignerSpec, dk.RecipeSpec, dk.OperationSpec)


@pytest.fixture
def plugin():
    """Registers an object as a plugin called ``acme`` for one test."""
    manager = plugin_manager()
    added = []

    def add(implementation):
        manager.register(implementation, name="acme")
        added.append(implementation)

    yield add
    for implementation in added:
        manager.unregister(implementation)


class Acme:
    @dk.hookimpl
    def distillkit_losses(self):
        return [
            dk.LossSpec("mse", "math:dist", signature="(d),(d)->()"),
            dk.LossSpec("acme", "math:dist", signature="(d),(d)->()"),
        ]


def test_every_builtin_reference_resolves():
    for spec_type in SPEC_TYPES:
        for by_plugin in provided(spec_type).values():
            spec = by_plugin.get("distillkit")
            for field in ("function", "factory", "target", "read") if spec else ():
                if hasattr(spec, field):
                    assert callable(resolve(getattr(spec, field)))
    assert set(provided(dk.LossSpec)) >= {"attention_kl", "cosine_distance", "kl_divergence", "mse"}


def test_every_public_loss_is_registered_under_its_own_name():
    helpers = {"masked_mean", "shared_rows", "gather", "distinct_pairs", "distinct_triplets"}
    helpers |= {"checked_pair", "citation"}
    public = set(dk.losses.__all__) - helpers - {"standardize_logits"}
    core = {name for name, by_plugin in provided(dk.LossSpec).items() if "distillkit" in by_plugin}
    assert core == public
    for name in public:
        assert resolve(lookup(dk.LossSpec, name).function) is getattr(dk.losses, name)


def test_every_spec_type_has_a_hook_and_every_hook_a_doc():
    manager = pluggy.PluginManager("distillkit")
    manager.add_hookspecs(hookspecs)
    hooks = {name for name in dir(hookspecs) if name.startswith("distillkit_")}
    assert hooks == {spec_type.hook for spec_type in SPEC_TYPES}
    assert all(getattr(hookspecs, name).__doc__ for name in hooks)


def test_unknown_names_say_what_was_meant():
    with pytest.raises(
        errors.UnknownNameError,
        match="no loss is called 'kl_divergance'; did you mean 'kl_divergence'",
    ):
        lookup(dk.LossSpec, "kl_divergance")
    with pytest.raises(errors.UnknownNameError, match="no recipe is called 'xyz'; known: 'dide'"):
        lookup(dk.RecipeSpec, "xyz")


def test_two_plugins_with_one_name_are_a_conflict_until_one_is_named(plugin):
    plugin(Acme())
    with pytest.raises(errors.PluginConflictError, match='"acme:mse" or "distillkit:mse"'):
        lookup(dk.LossSpec, "mse")
    assert lookup(dk.LossSpec, "acme:mse").function == "math:dist"
    assert lookup(dk.LossSpec, "distillkit:mse").function == "distillkit.losses:mse"
    assert lookup(dk.LossSpec, "acme").name == "acme"
    assert set(provided(dk.LossSpec)["mse"]) == {"acme", "distillkit"}


@pytest.mark.parametrize("spec_type", SPEC_TYPES)
def test_every_hook_is_heard(plugin, spec_type):
    given = {"LossSpec": {"function": "m:f", "signature": ""}, "AdapterSpec": {"matches": "*", "factory": "m:f"},
             "AlignerSpec": {"factory": "m:f"}, "RecipeSpec": {"resource": "p:r"},
             "OperationSpec": {"target": "no_such_module:f", "read": "m:f"}}  # fmt: skip
    spec = spec_type(name="heard", **given[spec_type.__name__])
    plugin(type("Plugin", (), {spec_type.hook: dk.hookimpl(lambda self: [spec])})())
    assert lookup(spec_type, "heard") is spec


def test_register_replaces_its_own_and_is_used_by_terms():
    def halved(student, teacher):
        return (student - teacher).abs().sum(-1) / 2

    for function in (lambda student, teacher: 1 / 0, halved):
        dk.register(dk.LossSpec("test_halved", function, signature="(d),(d)->()"))
    student = dk.Signals({"logits": torch.tensor([[1.0, 3.0]], requires_grad=True)})
    teacher = dk.Signals({"logits": torch.tensor([[0.0, 0.0]])})
    assert dk.Term("test_halved", on="logits")(student, teacher).item() == 2.0
    with pytest.raises(TypeError, match="register takes one of LossSpec, .*; got function"):
        dk.register(halved)


def test_an_adapter_is_found_by_the_class_of_the_model():
    class Model(torch.nn.Module):
        pass

    class Child(Model):
        pass

    adapter = dk.DeclarativeAdapter(streams={"joint": "blocks.*"})
    for name in ("Model", "Child"):
        spec = dk.AdapterSpec(
            f"test_{name}",
            matches=f"*.{name}",
            factory=lambda model, name=name: dk.DeclarativeAdapter(streams={"joint": name}),
        )
        dk.register(spec)
    assert dk.adapter_for(Child()).streams == {"joint": "Child"}
    assert dk.adapter_for(torch.nn.DataParallel(Model())).streams == {"joint": "Model"}
    assert dk.adapter_for(Child(), "test_Model").streams == {"joint": "Model"}
    assert dk.adapter_for(Child(), adapter).streams == adapter.streams
    with pytest.raises(TypeError, match="an adapter has `streams`"):
        dk.adapter_for(Child(), 3)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("losses", "distillkit  Forward KL of attention probabilities"),
        ("recipes", "dide  distillkit  DiDE"),
        ("adapters", "no adapters are registered"),
    ],
)
def test_the_listing(kind, line):
    done = subprocess.run(
        [sys.executable, "-m", "distillkit", kind], capture_output=True, text=True, check=True
    )
    assert line in done.stdout


def test_the_listing_marks_conflicts(plugin):
    from distillkit.__main__ import listing

    plugin(Acme())
    lines = [line for line in listing("losses").splitlines() if line.startswith("mse ")]
    assert len(lines) == 2
    assert all("(conflict)" in line for line in lines)
