"""Specs by name: the core's own through everybody's hooks, lookups, conflicts, this process's own."""

from __future__ import annotations

import pytest
import torch

import distillkit as dk
from distillkit import errors
from distillkit._plugins.registry import lookup, owner_labels, provided
from distillkit._plugins.specs import SPEC_TYPES, references, resolve


def test_every_builtin_reference_resolves():
    for spec_type in SPEC_TYPES:
        for by_plugin in provided(spec_type).values():
            if "distillkit" in by_plugin:  # other distributions may be installed beside it
                for reference in references(by_plugin["distillkit"]).values():
                    assert callable(resolve(reference))
    assert set(provided(dk.LossSpec)) >= {"attention_kl", "cosine_distance", "kl_divergence", "mse"}


def test_every_loss_is_registered_under_its_own_name():
    for name, by_plugin in provided(dk.LossSpec).items():
        if "distillkit" in by_plugin:
            assert resolve(lookup(dk.LossSpec, name).function) is getattr(dk.losses, name)


def test_unknown_names_say_what_was_meant():
    with pytest.raises(
        errors.UnknownNameError,
        match="no loss is called 'kl_divergance'; did you mean 'kl_divergence'",
    ):
        lookup(dk.LossSpec, "kl_divergance")
    with pytest.raises(
        errors.UnknownNameError, match="no recipe is called 'xyz'; known: 'clip_affinity'"
    ):
        lookup(dk.RecipeSpec, "xyz")


def test_two_plugins_with_one_name_are_a_conflict_until_one_is_named(install):
    install("good", "twin")
    with pytest.raises(
        errors.PluginConflictError,
        match="loss 'good_l1' is provided by several plugins; "
        'write "fake-good:good_l1" or "fake-twin:good_l1"',
    ):
        lookup(dk.LossSpec, "good_l1")
    assert lookup(dk.LossSpec, "fake-twin:good_l1").function == "math:dist"
    for full in ("fake-good:good_l1", "Fake_Good:good_l1", "fake-good:good:good_l1"):
        assert lookup(dk.LossSpec, full).function == "fake_good.parts:good_l1"
    assert set(provided(dk.LossSpec)["good_l1"]) == {"fake-good:good", "fake-twin:good"}
    assert lookup(dk.LossSpec, "distillkit:mse").function == "distillkit.losses:mse"


def test_two_plugins_of_one_distribution_are_told_apart_by_their_entry_points(install):
    install("loud")
    with pytest.warns(errors.PluginLoadWarning, match="'fake_loud_two' is loaded as 'fake-loud:th"):
        assert list(provided(dk.LossSpec)["LOUD"]) == ["fake-loud:Loud:One", "fake-loud:three"]
    with pytest.raises(
        errors.PluginConflictError, match='"fake-loud:Loud:One:LOUD" or "fake-loud:three:LOUD"'
    ):
        lookup(dk.LossSpec, "fake-loud:LOUD")
    assert lookup(dk.LossSpec, "fake-loud:Loud:One:LOUD").summary == "The first."
    assert lookup(dk.LossSpec, "fake-loud:three:LOUD").summary == "The second."


def test_a_name_in_the_wrong_case_or_of_the_wrong_plugin_is_suggested_right(install):
    install("good", "twin")
    with pytest.raises(errors.UnknownNameError, match="did you mean 'good_l1'"):
        lookup(dk.LossSpec, "GOOD_L1")
    with pytest.raises(errors.UnknownNameError, match="did you mean 'fake-good:good_l1'"):
        lookup(dk.LossSpec, "fake-god:good_l1")
    with pytest.raises(errors.UnknownNameError, match="did you mean .*'fake-good:good_recipe'"):
        lookup(dk.RecipeSpec, "fake-twin:good_recipe")


def test_an_unknown_name_says_which_plugins_were_left_out(install):
    install("broken")
    with (
        pytest.warns(errors.PluginLoadWarning),
        pytest.raises(
            errors.UnknownNameError,
            match="left out: 'fake-broken:broken'; `python -m distillkit plug",
        ),
    ):
        lookup(dk.LossSpec, "broken_l1")


def test_owner_labels_are_distributions_where_that_is_enough():
    assert owner_labels(["a:x", "b:x", "c"]) == {"a:x": "a", "b:x": "b", "c": "c"}
    assert owner_labels(["a:x", "a:y"]) == {"a:x": "a:x", "a:y": "a:y"}


def test_a_recipe_may_name_the_loss_of_one_plugin(install):
    install("good", "twin")
    with pytest.raises(errors.RecipeError, match='terms.0: loss .good_l1.*"fake-good:good_l1"'):
        dk.load_recipe("good_recipe")
    recipe = dk.Recipe(name="mine", terms=[{"loss": "fake-good:good_l1", "on": "logits"}])
    student = dk.Signals({"logits": torch.tensor([[1.0, 3.0]], requires_grad=True)})
    teacher = dk.Signals({"logits": torch.tensor([[0.0, 0.0]])})
    assert recipe.build()(student, teacher).loss.item() == 2.0


@pytest.mark.parametrize("other", ["good_l1", "mse"])
def test_registering_a_name_that_a_plugin_provides_hides_nothing(install, other):
    install("good")
    mine = dk.LossSpec(other, max, signature="(d),(d)->()")
    dk.register(mine)
    with pytest.raises(errors.PluginConflictError, match=f'"register:{other}"'):
        lookup(dk.LossSpec, other)
    assert lookup(dk.LossSpec, f"register:{other}") is mine


def test_a_loss_and_a_recipe_may_have_one_name():
    dk.register(dk.LossSpec("dide", max, signature="(d),(d)->()"))
    assert lookup(dk.RecipeSpec, "dide").resource == "distillkit:recipes/dide.toml"


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


def test_an_operator_is_named_as_torch_names_it():
    assert resolve("torch.ops.aten.add") is torch.ops.aten.add
    dk.OperationSpec("x", target="torch.ops.acme.fused", read="m:f")  # need not exist
