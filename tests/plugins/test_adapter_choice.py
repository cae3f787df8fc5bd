"""Which adapter fits a model: the most specific one, whatever it is called and whoever brings it."""

from __future__ import annotations

import re
import zipfile

import pytest
import torch

import distillkit as dk
from distillkit import errors, testing
from distillkit.__main__ import main

HERE = __name__


class Grandparent(torch.nn.Module):
    def forward(self, x):
        return x


class Parent(Grandparent):
    pass


class Child(Parent):
    pass


def offer(name, matches):
    """Register an adapter that tells its name by its stream."""
    spec = dk.AdapterSpec(
        name, matches=matches, factory=lambda model: dk.DeclarativeAdapter(streams={name: "*"})
    )
    dk.register(spec)


def chosen(model):
    return next(iter(dk.adapter_for(model).streams))


# each from the least to the most specific for Child; the names sort the other way round
ORDER = ["*", f"{HERE}.*", f"{HERE}.Ch*", f"{HERE}.Grandparent", f"{HERE}.Parent", f"{HERE}.Child"]


@pytest.mark.parametrize("rank", range(1, len(ORDER)))
@pytest.mark.parametrize("names", ["abcdef", "fedcba"], ids=["forwards", "backwards"])
def test_the_most_specific_wins_whatever_it_is_called(rank, names):
    for name, matches in zip(names, ORDER[: rank + 1], strict=False):
        offer(name, matches)
    assert chosen(Child()) == names[rank]


def test_of_patterns_the_one_of_the_more_derived_class_wins():
    offer("a", "*.Parent")
    offer("b", "*.Child")
    assert chosen(Child()) == "b"
    assert chosen(Parent()) == "a"


def test_a_tie_names_both_and_their_owners():
    offer("first", f"{HERE}.Child")
    offer("second", f"{HERE}.Child")
    with pytest.raises(
        errors.PluginConflictError,
        match=r"several adapters fit .*\.Child, and none is more specific: "
        r'"register:first" of register .* and "register:second" of register .*'
        r'student_adapter="register:first"',
    ):
        dk.adapter_for(Child())
    assert next(iter(dk.adapter_for(Child(), "register:second").streams)) == "second"


def test_patterns_that_cross_are_a_tie():
    offer("first", f"{HERE}.*")
    offer("second", "*.Child")
    with pytest.raises(errors.PluginConflictError, match=re.escape(f"(matches '{HERE}.*')")):
        dk.adapter_for(Child())


def test_what_a_user_registers_counts_beside_a_plugin(install):
    install("good")
    from fake_good.parts import Backbone

    before = dk.adapter_for(Backbone()).streams
    offer("zzz", "fake_good.parts.Backbone")  # sorts last, and names the class itself
    assert chosen(Backbone()) == "zzz" != next(iter(before))


def test_a_user_s_adapter_of_a_plugin_s_name_has_effect(install):
    install("good")
    from fake_good.parts import Backbone

    offer("good-backbone", "fake_good.parts.Backbone")
    assert chosen(Backbone()) == "good-backbone"
    offer("good-backbone", "fake_good.parts.*")
    with pytest.raises(
        errors.PluginConflictError,
        match='"fake-good:good-backbone" of fake-good .* and "register:good-backbone" of register',
    ):
        dk.adapter_for(Backbone())


FILE = 'inputs = { x = "pixels" }\nstreams = { image = "blocks.*" }\n'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``fake_filed`` with an adapter file, on the path as a folder or inside a zip."""

    def made(*, zipped, text=FILE):
        files = {
            "fake_filed/__init__.py": "",
            "fake_filed/adapters/tower.toml": text,
            "fake_filed/plugin.py": "from distillkit import AdapterSpec, hookimpl\n@hookimpl\n"
            "def distillkit_adapters():\n    return [AdapterSpec('tower', "
            "matches='fake_filed.*', resource='fake_filed:adapters/tower.toml')]\n",
        }
        if zipped:
            place = tmp_path / "fake_filed.zip"
            with zipfile.ZipFile(place, "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            place = tmp_path
            for name, content in files.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(content, encoding="utf-8")
        monkeypatch.syspath_prepend(str(place))
        monkeypatch.setenv("DISTILLKIT_PLUGINS", "fake_filed.plugin")

    return made


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_file_inside_a_package_is_an_adapter(package, capsys, zipped):
    package(zipped=zipped)
    assert dk.adapter_for(Child(), "tower").streams == {"image": "blocks.*"}
    model = type("Tower", (Child,), {"__module__": "fake_filed.models"})()
    assert dk.adapter_for(model).streams == {"image": "blocks.*"}
    testing.assert_plugin("fake_filed.plugin")
    assert main(["adapters"]) == 0
    assert "fake_filed:adapters/tower.toml" in capsys.readouterr().out
    assert main(["plugins"]) == 0
    assert re.search(r"fake_filed.plugin +loaded +1 adapter", capsys.readouterr().out)


def test_a_wrong_file_says_its_place(package):
    package(zipped=False, text=FILE.replace("streams", "steams"))
    with pytest.raises(errors.SignalError, match="tower.toml.*\n.*did you mean 'streams'"):
        dk.adapter_for(Child(), "tower")
    failed = [r for r in testing.check_plugin("fake_filed.plugin") if not r.passed]
    assert [result.name for result in failed] == ["adapter tower"]
    assert "did you mean 'streams'" in failed[0].seen


@pytest.mark.parametrize(
    ("resource", "complaint"),
    [
        ("fake_filed:adapters/towr.toml", "no such file .*the wheel.*did you mean 'tower.toml'"),
        ("fake_filed:elsewhere/tower.toml", "no such file .*there are none"),
        ("no_such_package:tower.toml", "there is no package 'no_such_package'"),
    ],
)
def test_what_is_not_there_is_said_when_it_is_used(package, resource, complaint):
    package(zipped=False)
    dk.register(dk.AdapterSpec("mine", matches=f"{HERE}.Child", resource=resource))
    with pytest.raises(errors.SpecError, match=f"adapter 'mine' names the file.*{complaint}"):
        dk.adapter_for(Child())
    dk.register(dk.RecipeSpec("mine", resource=resource))
    with pytest.raises(errors.SpecError, match=f"recipe 'mine' names the file.*{complaint}"):
        dk.load_recipe("mine")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "takes one of two.*got neither"),
        ({"factory": "m:f", "resource": "p:x.toml"}, "takes one of two.*got both"),
        ({"resource": "x.toml"}, 'resource is a TOML file inside a package, "package:adapters'),
        ({"resource": 3}, "got 3"),
        ({"factory": "m.f"}, 'factory is "package.module:attribute"'),
    ],
)
def test_a_spec_names_a_factory_or_a_file(given, complaint):
    with pytest.raises(errors.SpecError, match=complaint):
        dk.AdapterSpec("x", matches="m.*", **given)
