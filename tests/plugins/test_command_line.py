"""``python -m distillkit``: listings, details, what is wrong, exit codes."""

from __future__ import annotations

import doctest
import json
import re
import sys
from pathlib import Path

import pytest

import distillkit as dk
from distillkit.__main__ import COMMANDS, Command, listing, main
from distillkit._plugins.registry import lookup

ROOT = Path(__file__).parents[2]


def columns(text):
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


def test_losses_are_listed_with_their_tags_and_papers(capsys):
    assert main(["losses"]) == 0
    rows = columns(capsys.readouterr().out)
    spec = lookup(dk.LossSpec, "kl_divergence")
    assert "nonnegative" in spec.tags
    assert spec.reference == "hinton-etal-2015-distilling"
    row = [spec.name, "distillkit", spec.summary, ", ".join(spec.tags), spec.reference]
    assert row in rows
    assert len(rows) == len({row[0] for row in rows}) > 30


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("adapters", ["good-backbone", "fake-good", "The backbone of Fake_Good.", "fake_good.parts.*"]),
        ("aligners", ["good_halves", "fake-good", "Every second."]),
        ("recipes", ["good_recipe", "fake-good", "L1."]),
        ("operations", ["good_attention", "fake-good", "A kernel of its own."]),
        ("weightings", ["good_halved", "fake-good", "Half of the large."]),
    ],
)  # fmt: skip
def test_every_kind_is_listed(install, capsys, kind, row):
    install("good")
    assert main([kind]) == 0
    assert row in columns(capsys.readouterr().out)


def test_an_empty_listing_says_so(monkeypatch):
    monkeypatch.setattr("distillkit.__main__.provided", lambda kind: {})
    assert listing("adapters") == "no adapters are registered"


def test_the_listing_marks_conflicts(install):
    install("good", "twin")
    lines = [line for line in listing("losses").splitlines() if line.startswith("good_l1 ")]
    assert [row[1] for row in columns("\n".join(lines))] == [
        "fake-good (conflict)",
        "fake-twin (conflict)",
    ]


def test_details_show_every_field(install, capsys):
    install("good", "twin")
    assert main(["losses", "fake-good:good_l1", "mse"]) == 0
    first, second, _ = capsys.readouterr().out.split("\n\n")
    assert columns(first) == [
        ["from", "fake-good:good"],
        ["name", "good_l1"],
        ["function", "fake_good.parts:good_l1"],
        ["signature", "(d),(d)->()"],
        ["tags", "nonnegative, zero_at_identity"],
        ["summary", "Mean absolute difference."],
        ["reference", "nobody-2026-good"],
    ]
    assert ["name", "mse"] in columns(second)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["losses", "kl_divergance"], "no loss is called 'kl_divergance'; did you mean 'kl_diver"),
        (["losses", "good_l1"], 'write "fake-good:good_l1" or "fake-twin:good_l1"'),
        (["recipes", "Dide"], "no recipe is called 'Dide'; did you mean 'dide' or "),
    ],
)
def test_a_name_that_cannot_be_shown_is_exit_code_1(install, capsys, arguments, said):
    install("good", "twin")
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loses"], "there is no command 'loses'; did you mean 'losses'?"),
        (["Plugin"], "there is no command 'Plugin'; did you mean 'plugins'?"),
        (["frobnicate"], "there is no command 'frobnicate'; known: 'adapters', 'aligners',"),
        ([], "required: command"),
        (["check"], "required: file.toml"),
        (["plugins", "x"], "unrecognized arguments: x"),
    ],
)
def test_bad_usage_is_exit_code_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"distillkit {dk.__version__}\n"


def test_version_of_a_checkout_says_where_it_was_imported_from(monkeypatch, capsys):
    monkeypatch.setattr("distillkit.__main__.installed_version", lambda: "0+unknown")
    with pytest.raises(SystemExit):
        main(["--version"])
    folder = Path(dk.__file__).parent
    said = f"distillkit 0+unknown (not installed; imported from {folder})"
    assert capsys.readouterr().out.split() == said.split()  # argparse wraps lines


def test_plugins_are_listed_with_what_they_provide_or_why_they_were_left_out(install, capsys):
    install("good", "newer", "broken", "exiting")
    assert main(["plugins"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = columns(out)
    assert rows[0][:3] == ["distillkit", dk.__version__, "loaded"]
    good = "1 loss, 1 adapter, 1 aligner, 1 recipe, 1 operation, 1 weighting"
    assert ["fake-good:good", "1.2", "loaded", good] in rows
    after = dict(zip([row[0] for row in rows], [row[-1] for row in rows[1:]], strict=False))
    assert "No module named 'no_such_dependency'" in after["fake-broken:broken"]
    assert "usage: fake_exiting FILE" in after["fake-exiting:exiting"]
    assert "is written for plugin API 99" in after["fake-newer:newer"]


def test_plugins_that_the_environment_leaves_out_are_marked_off(install, capsys, monkeypatch):
    install("good", "broken")
    monkeypatch.setenv("DISTILLKIT_PLUGINS", "")
    assert main(["plugins"]) == 0
    rows = columns(capsys.readouterr().out)
    for row in (["fake-broken:broken", "0.1", "off"], ["fake-good:good", "1.2", "off"]):
        assert rows[rows.index(row) + 1] == ["", "DISTILLKIT_PLUGINS does not name it"]


def test_a_misspelt_environment_is_exit_code_1(install, capsys, monkeypatch):
    install("good")
    monkeypatch.setenv("DISTILLKIT_PLUGINS", "fake-god")
    assert main(["losses"]) == 1
    assert "error: no plugin or module (in DISTILLKIT_PLUGINS)" in capsys.readouterr().err


def test_a_listing_with_a_broken_plugin_says_so_without_a_traceback(run):
    done = run("-m", "distillkit", "losses", installed=["broken", "good"])
    assert "good_l1" in done.stdout
    said = "left out: 'fake-broken:broken'; `python -m distillkit plugins` says why\n"
    assert done.stderr == said


def test_a_terminal_without_a_letter_shows_its_number(run, tmp_path):
    (tmp_path / "x.toml").write_text(TERM.replace("'x'", "'π'"), encoding="utf-8")
    shown = run("-m", "distillkit", "check", str(tmp_path / "x.toml"), PYTHONIOENCODING="ascii")
    assert "a recipe, '\\u03c0'" in shown.stdout


def test_the_exit_code_reaches_the_shell(run, tmp_path):
    (tmp_path / "wrong.toml").write_text("[[terms]]\nlos = 'mse'", encoding="utf-8")
    file = str(tmp_path / "wrong.toml")
    assert run("-m", "distillkit", "check", file, check=False).returncode == 1
    assert run("-m", "distillkit", "check", "dide").returncode == 0


def test_the_schema_is_the_recipes_own(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == dk.Recipe.model_json_schema()


def test_check_says_what_right_files_are(capsys):
    files = [str(ROOT / "examples" / "dide" / name) for name in ("dide.toml", "student.toml")]
    assert main(["check", *files, "dide"]) == 0
    recipe, adapter, named = capsys.readouterr().out.splitlines()
    assert recipe == (
        f"{files[0]}: a recipe, 'dide-digits', with the terms kl_divergence/logits, "
        "attention_kl/attention.text_to_image, attention_kl/attention.image_to_text"
    )
    assert adapter == f"{files[1]}: an adapter with the streams text, image"
    assert named.startswith("dide: a recipe, 'dide', with the terms kl_divergence/logits, ")


TERM = "name = 'x'\n[[terms]]\nloss = 'mse'\non = 'logits'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TERM.replace("mse", "mze"), "no loss is called 'mze'; did you mean 'mse'"),
        (TERM + "wieght = 2", "no key of a term is called 'wieght'; did you mean 'weight'"),
        (TERM + "options = { temprature = 2.0 }", "no option is called 'temprature'"),
        (TERM + "align = ['projecter']", "no aligner is called 'projecter'; did you mean 'proj"),
        (TERM + "[[terms]]\nloss = 'mse'\non = 'logits'", "several terms are called 'mse/logits'"),
        ("name = 'x'\nterms = []", "a recipe needs at least one"),
        ("streams = { joint = 'x' }\ninptus = {}", "no key of an adapter is called 'inptus'"),
        ("[[tokens.joint]]\nmodality = 'text'", "streams: Field required"),
        ("name = ", "no TOML: Invalid value"),
        ("[project]\nname = 'x'", "neither a recipe, which has [[terms]], nor an adapter"),
        ("", "it has nothing"),
    ],
)
def test_check_says_what_is_wrong_and_goes_on(tmp_path, capsys, text, said):
    wrong, right = tmp_path / "wrong.toml", tmp_path / "right.toml"
    wrong.write_text(text, encoding="utf-8")
    right.write_text(TERM, encoding="utf-8")
    assert main(["check", str(wrong), str(right)]) == 1
    out = capsys.readouterr().out
    assert said in out
    assert str(wrong) in out
    assert f"{right}: a recipe" in out


def test_check_of_files_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    (tmp_path / "folder.toml").mkdir()
    for name, said in [
        ("latin.toml", "is no UTF-8"),
        ("folder.toml", "folder.toml': that is a folder"),
        ("latim.toml", "there is no such file in the folder"),
        ("latim.toml", f"did you mean {str(tmp_path / 'latin.toml')!r}"),
        ("no/nothing.toml", f"there is no folder {str(tmp_path / 'no')!r}"),
        ("nothing", "no recipe is called"),
    ]:
        assert main(["check", str(tmp_path / name)]) == 1
        assert said in capsys.readouterr().out


def test_check_knows_the_losses_of_plugins(install, tmp_path, capsys):
    (tmp_path / "x.toml").write_text(TERM.replace("mse", "good_l1"), encoding="utf-8")
    assert main(["check", str(tmp_path / "x.toml")]) == 1
    assert "no loss is called 'good_l1'" in capsys.readouterr().out


def test_a_command_may_be_named_by_a_reference_and_is_imported_when_it_runs(monkeypatch):
    command = Command("list folders", "distillkit_no_such_module:run", lambda parser: None)
    monkeypatch.setitem(COMMANDS, "folders", command)
    assert main(["recipes"]) == 0
    assert main(["folders"]) == 1  # only now is its module looked for
    monkeypatch.setitem(COMMANDS, "folders", command._replace(run="builtins:len"))
    with pytest.raises(TypeError, match="Namespace"):
        main(["folders"])


def test_help_describes_every_command(capsys):
    for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        out = " ".join(capsys.readouterr().out.split())
        shown = COMMANDS if arguments == ["--help"] else arguments[:1]
        assert all(COMMANDS[name].help in out for name in shown)


def test_every_command_has_a_heading_and_its_line_in_the_docs():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^## `(\S+).*`$", page, re.MULTILINE))
    assert headings == set(COMMANDS)
    words = " ".join(page.split()).lower()
    assert all(command.help.lower() in words for command in COMMANDS.values())


HEAVY = """
name = "heavy"
[[terms]]
loss = "kl_divergance"
on = "logits"
[[terms]]
loss = "mse"
on = "logits"
wieght = 2
"""


def shown_commands():
    """Each command that the page shows, with what it shows of the output."""
    page = (ROOT / "docs/reference/command-line.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for command in re.split(r"^\$ python -m distillkit ", block, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            yield line, output


@pytest.mark.parametrize("command", ["losses", "recipes", "check"])
def test_a_command_prints_what_the_page_shows(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dide = ROOT / "distillkit/recipes/dide.toml"
    Path("dide.toml").write_text(dide.read_text(encoding="utf-8"), encoding="utf-8")
    Path("heavy.toml").write_text(HEAVY, encoding="utf-8")
    shown = [(line, output) for line, output in shown_commands() if line.split()[0] == command]
    assert shown
    for line, output in shown:
        main(line.split())
        printed = "".join(capsys.readouterr())
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert doctest.OutputChecker().check_output(output, printed, flags), (line, printed)


MODELS = """
import torch
from torch import nn

def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), {"src": torch.randn(2, 3, 8)}

def blind():
    model, batch = encoder()
    return model, {"src": torch.zeros(2, 3, 8)}

def nothing():
    return nn.Linear(2, 2), {"input": torch.zeros(1, 2)}

def wrong():
    return nn.Linear(2, 2)
"""


@pytest.fixture
def in_a_folder_with_models(tmp_path, monkeypatch):
    (tmp_path / "tiny_models.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("tiny_models", None)


def test_inspect_writes_an_adapter_file_and_lists_attentions_beside_it(
    in_a_folder_with_models, capsys
):
    assert main(["inspect", "tiny_models:encoder"]) == 0
    said = capsys.readouterr()
    assert said.err.count("MultiheadAttention") == 2
    assert said.err.count("verified") == 2
    assert said.out.startswith('streams = { image = "layers.*.self_attn" }')
    assert "# passed  layout_covers_every_position_once" in said.out
    Path("printed.toml").write_text(said.out, encoding="utf-8")
    assert main(["check", "printed.toml"]) == 0


def test_inspect_writes_a_file_where_it_is_told(in_a_folder_with_models, capsys):
    assert main(["inspect", "tiny_models:encoder", "-o", "encoder.toml"]) == 0
    said = capsys.readouterr()
    assert not said.out
    assert "encoder.toml: complete, and passed" in said.err
    assert main(["check", "encoder.toml"]) == 0


def test_inspect_of_a_model_that_is_not_told_apart(in_a_folder_with_models, capsys):
    assert main(["inspect", "tiny_models:blind", "-o", "blind.toml"]) == 1
    assert "blind.toml: not complete, or wrong" in capsys.readouterr().err
    assert "# missing: streams" in Path("blind.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tiny_models:wrong", "returns (model, batch), a module and a dictionary"),
        ("tiny_models:encodr", "did you mean 'encoder'"),
        ("tiny_model:encoder", "there is no module 'tiny_model'"),
        ("tiny_models", 'inspect takes "package.module:function"'),
    ],
)
def test_inspect_says_what_it_takes(in_a_folder_with_models, capsys, target, said):
    assert main(["inspect", target]) == 1
    assert said in capsys.readouterr().err


def test_inspect_of_a_model_without_attention(in_a_folder_with_models, capsys):
    assert main(["inspect", "tiny_models:nothing"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "no attention was found\n\n")
