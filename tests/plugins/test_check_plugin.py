"""``check_plugin`` sees what listing a plugin imports and whether all that it names is there."""

from __future__ import annotations

import pytest

from distillkit import testing


def seen(results, *, passed):
    return {result.name: result.seen for result in results if result.passed is passed}


def test_a_good_plugin_passes_every_check(install):
    install("good")
    results = testing.check_plugin("fake_good.plugin")
    assert seen(results, passed=False) == {}
    assert seen(results, passed=True)["recipe good_recipe"] == "a recipe of 1 term"
    assert list(seen(results, passed=True)) == [
        "loads",
        "light",
        "names",
        "adapter good-backbone",
        "aligner good_halves",
        "loss good_l1",
        "operation good_attention",
        "recipe good_recipe",
        "weighting good_halved",
    ]
    testing.assert_plugin("fake-good:good")  # its whole name serves as well


def test_a_plugin_that_is_not_installed_is_checked_beside_those_that_are(install):
    install("unpackaged", "good", "broken")
    assert seen(testing.check_plugin("fake_unpackaged"), passed=False) == {}


def test_the_line_that_imports_torch_is_named(install):
    install("heavy")
    failed = seen(testing.check_plugin("fake_heavy"), passed=False)
    assert list(failed) == ["light"]
    assert "imports torch" in failed["light"]
    assert "fake_heavy.py, line 3" in failed["light"]


def test_every_reference_that_leads_nowhere_is_named(install):
    install("unresolved")
    failed = seen(testing.check_plugin("fake_unresolved"), passed=False)
    parts = {
        "names": "loss 'mse' is provided by distillkit too",
        "adapter unresolved": "there is no module 'no_such_module'",
        "aligner unresolved_aligner": "factory names 3.14",
        "loss mse": "function names 3.14",
        "loss unresolved_l1": "module math has no attribute 'dits'; did you mean 'dist'?",
        "operation unresolved_operation": "has no attribute 'sqr'; did you mean 'sqrt'",
        "recipe unresolved_recipe": "no_such_file.toml",
        "weighting unresolved_weighting": "has no attribute 'pie'; did you mean 'pi'",
    }
    assert failed.keys() == parts.keys()
    assert all(part in failed[name] for name, part in parts.items())


@pytest.mark.parametrize(
    ("definition", "spec", "complaint"),
    [
        ("def f(x): ...", "LossSpec('x', f, signature='(d),(d)->()')", "called with 2 positional"),
        ("def f(x, y, z=1): ...", "LossSpec('x', f, signature='attention')", "keyword-only"),
        ("def f(x, y, z): ...", "LossSpec('x', f, signature='(v),(k),(k)->()')", None),
        ("def f(*x, z=1): ...", "LossSpec('x', f, signature='(v),(k),(k)->()')", None),
        ("def f(): ...", "dk.AdapterSpec('x', matches='*', factory=f)", "with 1 positional argu"),
        ("def f(model): ...", "dk.AdapterSpec('x', matches='*', factory=f)", None),
        ("def f(*, alpha): ...", "dk.WeightingSpec('x', factory=f)", "with 1 positional argu"),
        ("def f(terms, *, alpha): ...", "dk.WeightingSpec('x', factory=f)", None),
    ],
)
def test_a_function_that_cannot_be_called_as_it_will_be(plugin, definition, spec, complaint):
    hooks = {"Loss": "losses", "dk.A": "adapters", "dk.W": "weightings"}
    hook = hooks[spec[:4]]
    plugin(f"{definition}\n@hookimpl\ndef distillkit_{hook}(): return [{spec}]")
    failed = seen(testing.check_plugin("fake_adhoc"), passed=False)
    assert len(failed) == (complaint is not None)
    assert all(complaint in said for said in failed.values())


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("broken", "no_such_dependency"), ("exiting", "SystemExit"), ("newer", "plugin API 99")],
)
def test_a_plugin_that_does_not_load_says_why(install, name, complaint):
    install(name)
    failed = seen(testing.check_plugin(f"fake_{name}"), passed=False)
    assert list(failed) == ["loads"]
    assert complaint in failed["loads"]


def test_an_interpreter_that_dies_is_a_failed_check(plugin):
    code = "import os, distillkit._plugins.probe as p\nif p.sys.argv[0].endswith('probe.py'): os._exit(7)"
    plugin(code)
    (result,) = testing.check_plugin("fake_adhoc")
    assert "the interpreter ended with code 7" in result.seen


def test_what_a_plugin_prints_does_not_disturb(plugin):
    plugin(
        "print('[]'); print('hello', end='')\n@hookimpl\ndef distillkit_losses():\n"
        "    print('again', end='')\n    return [LossSpec('x', max, signature='attention')]"
    )
    assert seen(testing.check_plugin("fake_adhoc"), passed=False) == {}


def test_the_raising_form_names_every_check_that_failed(install):
    install("heavy", "unresolved")
    with pytest.raises(AssertionError, match="plugin 'fake_heavy':\nfailed  light: .*torch"):
        testing.assert_plugin("fake_heavy")
    with pytest.raises(AssertionError) as error:
        testing.assert_plugin("fake_unresolved")
    assert str(error.value).count("failed  ") == 8
