"""Plugins are loaded whole or not at all, each once; a bad one is one warning with its name."""

from __future__ import annotations

import re
import sys
import threading
import warnings

import pytest

import distillkit as dk
from distillkit import errors
from distillkit._plugins import loading
from distillkit._plugins.registry import lookup, provided

BROKEN = {
    "broken": "ModuleNotFoundError: No module named 'no_such_dependency' .*fake_broken.py, line 3",
    "raising": "a loss is named by letters, .* got '' .*fake_raising.py, line 13",
    "exiting": "SystemExit: usage: fake_exiting FILE .*fake_exiting.py, line 5",
    "missing": "module 'fake_missing' has no attribute 'plugin'",
    "wrong_type": "distillkit_losses returns a list of LossSpec; it holds an AdapterSpec; "
    "an AdapterSpec comes from distillkit_adapters",
    "newer": "it is written for plugin API 99, and distillkit .* has 1: upgrade distillkit",
    "newer_names": "cannot import name 'SpecOfTheFuture' .*need a newer distillkit than",
}


def states():
    return {plugin.source.name: plugin.state for plugin in loading.plugins()}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_one_warning_and_hides_no_other(install, name):
    install(name, "good", "twin")
    with pytest.warns(errors.PluginLoadWarning) as caught:
        known = provided(dk.LossSpec)
    (warning,) = caught
    assert f"plugin 'fake-{name.replace('_', '-')}:" in str(warning.message)
    assert set(known["good_l1"]) == {"fake-good:good", "fake-twin:good"}
    assert "kl_divergence" in known
    (found,) = [plugin for plugin in loading.plugins() if plugin.state == "broken"]
    assert found.source.name in str(warning.message)
    assert found.problem in str(warning.message)
    assert re.search(BROKEN[name], found.problem)
    assert found.specs == ()


def test_a_plugin_that_fails_in_one_hook_provides_nothing_at_all(install):
    install("raising")
    with pytest.warns(errors.PluginLoadWarning):
        assert "raising" not in provided(dk.AdapterSpec)


def test_nothing_is_loaded_or_said_until_something_is_asked_for(run):
    code = "import sys, distillkit as dk; dk.Attention; print('fake_broken' in sys.modules)"
    done = run("-W", "error", "-c", code, installed=["broken", "slow"])
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_where_warnings_are_errors_the_second_question_is_answered(install):
    install("broken", "good")
    with pytest.raises(errors.PluginLoadWarning):  # filterwarnings = error
        lookup(dk.LossSpec, "good_l1")
    assert lookup(dk.LossSpec, "good_l1").name == "good_l1"


def test_an_interrupt_from_the_keyboard_is_no_broken_plugin(install):
    install("interrupted")
    with pytest.raises(KeyboardInterrupt):
        provided(dk.LossSpec)
    sys.path[:] = [entry for entry in sys.path if not entry.endswith("interrupted")]
    assert "mse" in provided(dk.LossSpec)  # the next question starts anew


def test_damaged_metadata_hides_nobody(install):
    install("damaged", "good")
    assert states()["unknown:damaged"] == "loaded"
    assert {"damaged_l1", "good_l1"} <= set(provided(dk.LossSpec))


def test_a_wrong_entry_point_is_said_in_words(tmp_path, monkeypatch):
    info = tmp_path / "fake_lines-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fake-lines\nVersion: 1\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[distillkit]\na = fake lines\nb = \nc = fake_lines:\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(errors.PluginLoadWarning) as caught:
        loading.plugins()
    assert [str(one.message).partition(": ")[2] for one in caught] == [
        f"""an entry point is "package.module"; got {value!r}"""
        for value in ("fake lines", "", "fake_lines:")
    ]


def test_two_entry_points_of_one_name_in_one_distribution(tmp_path, monkeypatch, install):
    info = tmp_path / "fake_double-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fake-double\nVersion: 1\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[distillkit]\na = fake_slow\na = fake_good.plugin\n", encoding="utf-8"
    )
    install("slow", "good")
    monkeypatch.setattr(loading, "installed", lambda: [
        loading.Source("fake-double:a", target, "1") for target in ("fake_good.plugin", "fake_slow")
    ])  # fmt: skip
    with pytest.warns(errors.PluginLoadWarning, match="another plugin has its name"):
        assert [plugin.state for plugin in loading.plugins()] == ["loaded", "loaded", "broken"]


LOSS = "LossSpec('x', 'math:dist', signature='(d),(d)->()')"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("return None", "distillkit_losses returns a list of LossSpec; got a NoneType"),
        ("return 'x'", "returns a list of LossSpec; got a str"),
        (f"return {{'x': {LOSS}}}", "returns a list of LossSpec; got a dict"),
        (f"return {LOSS}", "returns a list of LossSpec; got a LossSpec"),
        ("return ['kl']", "returns a list of LossSpec; it holds a str"),
        (f"return [{LOSS}, {LOSS}]", "distillkit_losses provides 'x' twice"),
        ("raise RuntimeError('in the hook')", "RuntimeError: in the hook .*fake_adhoc.py, line 5"),
        ("return [LossSpec('', 'm:f', signature='s')]", "a loss is named by letters.*got ''"),
        ("return [LossSpec('a:b', 'm:f', signature='s')]", "without a colon.*got 'a:b'"),
        ("return [LossSpec('a b', 'm:f', signature='s')]", "a loss is named by.*got 'a b'"),
        ("return [LossSpec(3, 'm:f', signature='s')]", "a loss is named by.*got 3"),
        ("return [LossSpec('task', 'm:f', signature='s')]", "no loss may be called \"task\""),
        ("return [LossSpec('x', 'm.f', signature='s')]", "function is \"package.module:attribute"),
        ("return [LossSpec('x', None, signature='s')]", "function is .* the object itself; got No"),
        ("return [LossSpec('x', 'm:f', signature=None)]", "'x': signature is a string; got None"),
        ("return [LossSpec('x', 'm:f', signature='s', tags='nonnegative')]", "tags are strings in a"),
        ("return [LossSpec('x', 'm:f', signature='s', tag=())]", "TypeError.*argument 'tag'"),
        ("return [dk.AdapterSpec('x', matches='', factory='m:f')]", "matches is a pattern over"),
        ("return [dk.AdapterSpec('x', matches='*', factory='m:f', offers='logits')]", "offers are strings in a tuple .*got 'logits'"),
        ("return [dk.RecipeSpec('x', resource='x.toml')]", "resource is a TOML file inside a pack"),
        ("return [dk.RecipeSpec('x.toml', resource='p:x.toml')]", "ends in .toml is read as a pat"),
        ("return [dk.OperationSpec('x', target='mylib.f', read='m:f')]", "target is \"packa"),
    ],
)  # fmt: skip
def test_what_a_hook_may_not_return(plugin, code, problem):
    found = plugin(f"@hookimpl\ndef distillkit_losses():\n    {code}\n")
    assert found.state == "broken"
    assert re.search(problem, found.problem)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("@hookimpl\ndef distillkit_losses(config): return []", "'config'.*can not be found in t"),
        (
            "@hookimpl\ndef distillkit_loses(): return []",
            "no hook is called 'distillkit_loses'; di",
        ),
        ("def distillkit_losses(): return []", "distillkit_losses is not marked: write @hookimpl"),
        ("@hookimpl(wrapper=True)\ndef distillkit_losses(): return (yield)", "is a wrapper; hooks"),
        ("x = 1", "it has none of the hooks distillkit_losses, distillkit_adapters"),
        (
            "import distillkit; distillkit.load_recipe('dide')",
            "asks for what plugins provide while",
        ),
        ("def oops(:", "SyntaxError: invalid syntax"),
        ("class Plugin(BaseException): pass\nraise Plugin('odd')", "Plugin: odd"),
        *(
            (f"DISTILLKIT_API = {api}", "DISTILLKIT_API is a whole number from 1 up; got")
            for api in ("0", "'1'", "True", "1.0", "None")
        ),
    ],
)
def test_what_a_plugin_may_not_be(plugin, code, problem):
    found = plugin(code)
    assert found.state == "broken"
    assert re.search(problem, found.problem)


def test_what_a_plugin_may_be_besides_a_module_of_functions_that_return_lists(plugin):
    found = plugin(f"""
        @hookimpl(specname="distillkit_losses")
        def more():
            yield {LOSS}

        @hookimpl
        def distillkit_losses():
            return (LossSpec("UPPER-case.2", max, signature="attention"),)

        @hookimpl(optionalhook=True)
        def distillkit_hook_of_the_future():
            return []
    """)
    assert (found.state, found.problem) == ("loaded", "")
    assert {spec.name for spec in found.specs} == {"x", "UPPER-case.2"}


def test_a_plugin_may_be_an_object_in_a_module(monkeypatch, tmp_path):
    (tmp_path / "fake_object.py").write_text(
        f"""
from distillkit import LossSpec, hookimpl

class Plugin:
    @hookimpl
    def distillkit_losses(self):
        return [{LOSS}]

plugin = Plugin()
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DISTILLKIT_PLUGINS", "fake_object:plugin")
    assert list(provided(dk.LossSpec)["x"]) == ["fake_object:plugin"]
    assert lookup(dk.LossSpec, "fake_object:plugin:x").name == "x"


def test_threads_that_ask_at_once_load_once_and_warn_once(install, monkeypatch, capsys):
    install("slow", "broken")
    monkeypatch.setenv("DISTILLKIT_TRACE", "1")
    start, found = threading.Barrier(4), []

    def ask():
        start.wait()
        found.append(lookup(dk.LossSpec, "slow_l1"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert len({id(spec) for spec in found}) == 1
    assert len(caught) == 1
    assert capsys.readouterr().err.count("import fake_slow") == 1


def test_threads_that_register_at_once_lose_nothing():
    start = threading.Barrier(4)

    def add(thread):
        start.wait()
        for i in range(50):
            dk.register(dk.LossSpec(f"t{thread}_{i}", max, signature="(d),(d)->()"))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(name[0] == "t" and name[1].isdigit() for name in provided(dk.LossSpec)) == 200


@pytest.mark.parametrize(
    ("setting", "loaded"),
    [
        ("", set()),
        (" , ", set()),
        ("distillkit", set()),
        ("fake-good", {"fake-good:good"}),
        (" Fake_Good , fake-slow:slow ,", {"fake-good:good", "fake-slow:slow"}),
        ("fake-good,fake-good:good", {"fake-good:good"}),
        ("fake_unpackaged,fake-slow", {"fake-slow:slow", "fake_unpackaged"}),
        ("fake_good.plugin", {"fake_good.plugin"}),
    ],
)
def test_the_environment_chooses_the_plugins(install, monkeypatch, setting, loaded):
    install("good", "slow", "broken", "unpackaged")
    monkeypatch.setenv("DISTILLKIT_PLUGINS", setting)
    found = states()
    assert {name for name, state in found.items() if state == "loaded"} == {"distillkit", *loaded}
    assert found["fake-broken:broken"] == "off"
    assert "fake_broken" not in sys.modules
    if "fake_good.plugin" not in loaded:
        assert set(found.values()) == {"loaded", "off"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fake-god", "'fake-god'; did you mean 'fake-good' or 'fake-good:good'"),
        ("fake-good,no_such_module", "no plugin or module .in DISTILLKIT_PLUGINS. is called 'no_s"),
        ("no_such.module", "is called 'no_such.module'"),
        ("fake_good.plugn", "is called 'fake_good.plugn'"),
        ("fake_good.plugin.hooks", "is called 'fake_good.plugin.hooks'"),
        ("not a name", "is called 'not a name'"),
        ("good:", "is called 'good:'"),
    ],
)
def test_a_misspelt_choice_is_an_error_not_a_missing_plugin(install, monkeypatch, setting, message):
    install("good")
    monkeypatch.setenv("DISTILLKIT_PLUGINS", setting)
    with pytest.raises(errors.UnknownNameError, match=message):
        lookup(dk.LossSpec, "mse")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("fake_broken.part", "No module named 'no_such_dependency'"),
        ("fake_exiting.part", "SystemExit: usage: fake_exiting FILE"),
        ("json", "it has none of the hooks"),
    ],
)
def test_a_module_that_is_there_and_broken_is_no_misspelt_one(
    install, monkeypatch, setting, problem
):
    install("broken", "exiting")
    monkeypatch.setenv("DISTILLKIT_PLUGINS", setting)
    with pytest.warns(errors.PluginLoadWarning, match=f"'{setting}' was left out: .*{problem}"):
        assert "mse" in provided(dk.LossSpec)


def test_the_trace_prints_every_import_and_hook_call_with_its_time(install, monkeypatch, capsys):
    install("good", "slow")
    monkeypatch.setenv("DISTILLKIT_TRACE", "1")
    loading.plugins()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("distillkit: ") and line.endswith(" ms") for line in lines)
    calls = [line.removeprefix("distillkit: ").rpartition(",")[0] for line in lines]
    hooks = ("adapters", "aligners", "losses", "operations", "recipes", "weightings")
    assert [call for call in calls if call.startswith("fake-good")] == [
        "fake-good:good: import fake_good.plugin",
        *(f"fake-good:good: distillkit_{hook}()" for hook in hooks),
    ]
    (slow,) = [line for line in lines if "import fake_slow" in line]
    assert float(slow.rpartition(", ")[2].removesuffix(" ms")) >= 190
    loading.plugins()
    assert capsys.readouterr().err == ""


def test_listing_imports_the_plugin_module_and_nothing_that_it_names(run):
    code = (
        "import sys; from distillkit.__main__ import main; main(['losses'])\n"
        "print(sorted(n for n in sys.modules if n.startswith('fake_') or n in ('torch', 'numpy')))"
    )
    done = run("-c", code, installed=["good", "slow"])
    assert done.stdout.splitlines()[-1] == "['fake_good', 'fake_good.plugin', 'fake_slow']"
    done = run("-c", code, installed=["heavy"])  # the test can fail; the listing still works
    assert done.stdout.splitlines()[-1] == "['fake_heavy', 'numpy', 'torch']"
    assert "heavy_l1" in done.stdout
