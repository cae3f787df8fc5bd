"""Documents say what code and tests say: tables, outputs, and every loss by its name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillkit import AlignerSpec, LossSpec, Recipe, Schedule, load_recipe
from distillkit._objective.recipe import TermRecipe
from distillkit._plugins.registry import provided
from distillkit.testing.aligner_checks import CHECKS
from tools import document_tables, needs, performance_tables, scale_table

ROOT = Path(__file__).parents[1]
PROVE = ROOT / "docs/how-to/prove-your-loss.md"


@pytest.mark.parametrize("name", document_tables.DOCUMENTS)
def test_tables_are_those_of_the_data(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- begin" in text
    assert document_tables.written(text) == text, "run make documents"


def test_the_example_prints_what_the_document_shows():
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples/invent_a_loss.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = PROVE.read_text(encoding="utf-8")
    shown = re.search(r"invent_a_loss.py -->\n\n```text\n(.*?)```", text, re.DOTALL)[1]
    assert shown == printed


def test_what_was_compared_with_other_libraries_is_a_loss():
    text = (ROOT / "docs/reference/losses-oracles.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert "kl_divergence" in listed
    assert set(listed) <= set(provided(LossSpec))


MEASURED = {
    "benchmark": "distiller",
    "device": "cpu",
    "machine": "a machine",
    "tables": {"One": "| a |", "Two": "| b |"},
}


def test_measured_tables_replace_those_of_their_benchmark():
    text = "before\n\n<!-- distiller -->\n\nold\n\n<!-- end distiller -->\n\nafter\n"
    expected = (
        "before\n\n<!-- distiller -->\n\nMeasured on: a machine.\n\nOne\n\n| a |\n\n"
        "Two\n\n| b |\n\n<!-- end distiller -->\n\nafter\n"
    )
    assert performance_tables.with_tables(text, MEASURED) == expected
    assert performance_tables.with_tables(expected, MEASURED) == expected


@pytest.mark.parametrize("text", ["", "<!-- distiller -->"])
def test_measured_tables_without_a_place(text):
    with pytest.raises(ValueError, match="no place for these tables: <!-- distiller -->"):
        performance_tables.with_tables(text, MEASURED)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("attention_kl", "performance.md"),
        ("linear_kl", "performance.md"),
        ("response_memory", "performance.md"),
        ("distiller", "performance.md"),
        ("weightings", "performance.md"),
        ("signal_cache", "explanation/signal-cache.md"),
    ],
)
def test_there_is_a_place_for_every_benchmark(name, document):
    measured = {**MEASURED, "benchmark": name}
    found = performance_tables.document_of(measured)
    assert found == ROOT / "docs" / document
    text = found.read_text(encoding="utf-8")
    assert performance_tables.with_tables(text, measured) != text


LINES_OF_A_LOSS = (
    "distillkit/losses/_feature.py",
    "distillkit/losses/catalogue.toml",
    "distillkit/losses/references.bib",
    "tests/losses/test_values.py",
)


def test_the_lines_that_a_loss_needs_are_those_of_the_repository():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"\n```\w+\n(.*?)\n```\n", text, re.DOTALL)
    for file, lines in zip(LINES_OF_A_LOSS, shown, strict=True):
        assert f"`{file}`" in text
        assert lines in (ROOT / file).read_text(encoding="utf-8"), file


def test_costs_at_scale_are_counted_by_the_script():
    text = (ROOT / "docs/explanation/scale.md").read_text(encoding="utf-8")
    assert text.count("<!-- begin") == len(scale_table.tables())
    assert scale_table.written(text) == text, (
        "run python tools/scale_table.py docs/explanation/scale.md"
    )
    pair = scale_table.Pair(teacher=7e9, student=2e9)
    assert scale_table.memory(pair, 8)["student under FSDP2"] == 2e9 * 16 / 8
    assert scale_table.traffic(pair, 2)["student under DDP: gradients, all-reduce"] == 2e9 * 4


def test_a_cache_at_scale_is_what_one_example_takes_many_times():
    stored = scale_table.Stored(examples=2**20, words=1, patches=8, heads=2, classes=24, header=8)
    sizes = stored.bytes_of_example()
    assert sizes["exact (float32)"] == (2 * 8 * 2 + 24) * 4
    assert sizes["float16"] == (2 * 8 * 2 + 24) * 2
    # 2^20 examples of 60 + 8 bytes
    files = scale_table.files_of_cache(stored).splitlines()
    assert files[4] == f"| {scale_table.CODED} | 60 | 0.0 | 2 | 1 | 1 |"
    cost = scale_table.cost_of_cache(stored, 4)
    assert "| examples | 1,048,576 | 262,144 |" in cost
    assert "| index in the memory of each process | 0.3 GB | 0.1 GB |" in cost


LOOPS = ROOT / "docs/how-to/loops.md"


def test_every_line_of_a_loop_is_one_of_an_example_that_runs():
    text = LOOPS.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- from (\S+) -->\n\n```py\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```py\n") > 5
    for name, shown in blocks:
        lines = {
            line.strip().partition("  #")[0]
            for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        }
        missing = [x for x in shown.splitlines() if x.strip().partition("  #")[0] not in lines]
        assert not missing, name


def test_every_test_that_the_table_of_loops_names_exists():
    text = LOOPS.read_text(encoding="utf-8")
    named = re.findall(r"^- \d+: `(\S+?)(?:::(\w+))?`", text, re.MULTILINE)
    assert len(named) > 10
    for path, function in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in text, (path, function)


RECIPES = (ROOT / "docs/reference/recipes.md").read_text(encoding="utf-8")


def rows_of(text, heading):
    """The first cells of the tables below a heading, up to the next one of its rank."""
    part = text[text.index(f"\n{heading}\n") + 1 :]
    rank = heading.split()[0]
    part = re.split(rf"^{rank} ", part[len(rank) :], maxsplit=1, flags=re.MULTILINE)[0]
    return set(re.findall(r"^\| `(?:\[\[)?(\w+)", part, re.MULTILINE))


def test_every_key_of_a_recipe_is_in_the_reference():
    assert rows_of(RECIPES, "## The recipe") == set(Recipe.model_fields)
    term = RECIPES[RECIPES.index("## A term") : RECIPES.index("### `on`")]
    assert rows_of(f"\n{term}", "## A term") == set(TermRecipe.model_fields)
    assert rows_of(RECIPES, "### `weight`") == set(Schedule.model_fields)
    for name, owners in provided(AlignerSpec).items():
        assert "distillkit" not in owners or f'`"{name}"`' in RECIPES, name


def test_every_recipe_of_the_reference_is_one(tmp_path):
    blocks = re.findall(r"^```toml\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4
    for block in blocks:
        file = tmp_path / "one.toml"
        file.write_text(
            block if "name =" in block.partition("[[")[0] else f'name = "x"\n{block}',
            encoding="utf-8",
        )
        assert load_recipe(file).build().each()


def test_every_check_of_an_aligner_is_in_its_page():
    page = (ROOT / "docs/how-to/write-an-aligner.md").read_text(encoding="utf-8")
    assert rows_of(page, "## Prove it") == set(CHECKS)


# what the blocks of a page show -> a requirement that brings it
BROUGHT_BY = {
    r"^\s*(?:import|from) transformers\b": {"transformers", "distillkit-transformers"},
    r"^\s*(?:import|from) distillkit_transformers\b": {"distillkit-transformers"},
    r"^\s*(?:import|from) hypothesis\b|(?<!torch\.)\btesting\.\w": {"distillkit[testing]"},
    r"^\s*(?:import|from) matplotlib\b|\bplot\.\w": {"distillkit[plot]"},
    r"\bSignalCache\(": {"distillkit[cache]", "distillkit[paper]"},
    r"^\s*(?:import|from) PIL\b": {"pillow"},
    r"\bmatch_tokens\b": {"distillkit[match]"},
}
CORE = {"distillkit", "torch", "numpy", "einops", "pluggy", "pydantic"}
OTHERS = {"transformers", "distillkit_transformers", "hypothesis", "matplotlib", "acme_distill"}
OTHERS |= {
    "tokenizers",
    "distillkit_lightning",
    "lightning",
}  # what those bring, and their own page


@pytest.mark.parametrize("page", needs.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_at_its_top_what_it_needs_beside_distillkit(page):
    code, named = needs.python_of(page), set(needs.named_by(page))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE))
    unknown = imported - CORE - OTHERS - {"PIL"} - set(sys.stdlib_module_names)
    assert not unknown, f"say in BROUGHT_BY what brings {unknown}"
    for pattern, requirements in BROUGHT_BY.items():
        if re.search(pattern, code, re.MULTILINE):
            assert named & requirements, f"Needs: `pip install ...` with one of {requirements}"
    if page.parent.parent != needs.PLUGINS and named:
        title, line = page.read_text(encoding="utf-8").split("\n\n")[:2]
        assert title.startswith("# ")
        assert needs.LINE.match(line), "the line stands below the title"
        assert code, "nothing on this page is executed"


def test_without_a_requirement_its_modules_are_not_there():
    program = (
        "import importlib.util, sys; from importlib import metadata, machinery\n"
        "from tools import needs\n"
        "there = needs.distributions_of(['distillkit'])\n"
        "sys.meta_path = [needs.Without(there) if one is machinery.PathFinder else one\n"
        "                 for one in sys.meta_path]\n"
        "import distillkit as dk\n"
        "assert importlib.util.find_spec('transformers') is None\n"
        "assert importlib.util.find_spec('torch') is not None\n"
        "assert metadata.version('torch')\n"
        "try: dk.testing.check_loss\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert 'pip install "distillkit[testing]"' in done.stdout


def test_no_text_is_read_or_written_in_the_encoding_of_the_machine():
    found = []
    folders = ("distillkit", "plugins", "tests", "tools", "examples", "benchmarks")
    for file in [one for folder in folders for one in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name, given = node.func.attr, len(node.args)
            bare = {"read_text": 0, "write_text": 1}.get(name) == given
            if bare and "encoding" not in {one.arg for one in node.keywords}:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not found, "encoding="
