"""Write the tables of the documentation from the data of code and tests.

    python -m tools.document_tables

A table lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; a test holds the documents
to what is written here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from distillkit import LossSpec, RecipeSpec, load_recipe, testing
from distillkit.__main__ import _provides, _table
from distillkit._objective.recipe import TermRecipe
from distillkit._plugins.catalogue import bibliography, catalogue
from distillkit._plugins.loading import plugins
from distillkit._plugins.recipe_card import SIDES, RecipeCard, recipe_card
from distillkit._plugins.registry import provided
from distillkit.testing.adapter_checks import CHECKS as ADAPTER_CHECKS
from tests.support import families_to_inspect
from tests.support.cache_faults import DAMAGES, EVENTS
from tests.support.layout_models import TOWERS
from tests.support.peer_defects import DEFECTS
from tests.support.planted_faults import FAULTS
from tests.support.planted_layouts import CAUGHT_BY, planted, verdict

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "docs/how-to/choose-a-loss.md",
    "docs/how-to/choose-a-recipe.md",
    "docs/how-to/prove-your-loss.md",
    "docs/explanation/losses.md",
    "docs/explanation/signal-cache.md",
    "docs/reference/adapters.md",
    "docs/reference/command-line.md",
    "docs/reference/losses.md",
    "docs/reference/packaged-recipes.md",
)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def checks() -> str:
    rows = [(f"`{check.name}`", check.summary, chosen_by(check)) for check in testing.CHECKS]
    return table(["check", "what it asks", "chosen by"], rows)


def chosen_by(check: testing.Check) -> str:
    """What a loss declares for a check to apply to it."""

    def applies(tags: tuple[str, ...] = (), bound: float | None = None) -> bool:
        loss = LossSpec("x", lambda s, t: s - t, signature="(v),(v)->()", tags=tags, bound=bound)
        return check in testing.checks_for(loss)

    if applies():
        return "every loss"
    choosing = [f"tag `{tag}`" for tag in testing.TAGS if applies(tags=(tag,))]
    if applies(bound=1.0):
        return "`bound=`"
    arguments = {"where": "an argument `where`", "option_bounds": "options with bounds"}
    return choosing[0] if choosing else arguments[check.name]


def listed_plugins() -> str:
    """What ``python -m distillkit plugins`` prints: of distillkit as it is, of two others made up."""
    ours = next(plugin for plugin in plugins() if plugin.source.name == "distillkit")
    lines = _table(
        [
            ["distillkit", "1.0", "loaded", _provides(ours)],
            ["acme-distill:acme", "1.0", "loaded", "1 loss, 1 adapter, 1 recipe"],
            ["other:other", "0.3", "broken", ""],
        ]
    )
    why = "    ModuleNotFoundError: No module named 'acme_kernels' (.../other/plugin.py, line 3)"
    return f"```console\n$ python -m distillkit plugins\n{lines}\n{why}\n```"


def faults() -> str:
    rows = [(fault.what, f"`{fault.caught_by}`") for fault in FAULTS]
    return table(["planted fault", "caught by"], rows)


def layouts() -> str:
    """Planted layouts: for each tower, how many models and what the kit says."""
    lies = [(lie.kind, lie.tower) for lie in planted()]

    def cell(kind: str, tower: str) -> str:
        models = lies.count((kind, tower))
        return f"{verdict(kind, tower)} ({models})" if models else "-"

    rows = [
        (kind, *(cell(kind, tower) for tower in TOWERS), f"`{check}`")
        for kind, check in CAUGHT_BY.items()
    ]
    return table(["planted layout", *TOWERS, "by"], rows)


def adapter_checks() -> str:
    rows = [(f"`{name}`", (check.__doc__ or "").partition("\n")[0]) for name, check in
            ADAPTER_CHECKS.items()]  # fmt: skip
    return table(["check", "what it asks"], rows)


def inspected() -> str:
    """Families, whether the file that inspect writes passes unedited, and what it lacks."""
    names = families_to_inspect.NAMES
    rows = []
    for name in names:
        missing, _ = families_to_inspect.expected(name)
        why = families_to_inspect.FAILING.get(name, "")
        said = "; ".join([*(f"`{line}`" for line in missing), *([why] if why else [])])
        passes = "no" if name in families_to_inspect.INCOMPLETE else "yes"
        rows.append((f"`{name}`", passes, said or "-"))
    count = len(names) - len(families_to_inspect.INCOMPLETE)
    head = f"{count} of {len(names)} pass unedited."
    return f"{head}\n\n{table(['family', 'passes', 'what is missing, or fails'], rows)}"


def defects() -> str:
    return table(["number", "what went wrong"], DEFECTS.items())


def damages() -> str:
    rows = [(one.what, one.lost, one.returned, one.found_by) for one in DAMAGES]
    return table(["changed", *_OUTCOME], rows)


def events() -> str:
    rows = [(one.what, one.lost, one.returned, one.found_by) for one in EVENTS]
    return table(["happens", *_OUTCOME], rows)


_OUTCOME = ("what is lost", "what is returned", "found by")


def losses() -> str:
    specs = sorted((entry.spec for entry in catalogue()), key=lambda spec: spec.name)
    rows = [
        (
            f"`{spec.name}`",
            f"`{spec.signature}`",
            spec.summary,
            ", ".join(spec.tags) + (f", at most {spec.bound:.4g}" if spec.bound else ""),
        )
        for spec in specs
    ]
    return table(["loss", "shapes", "what it compares", "what the kit holds it to"], rows)


def guide() -> str:
    rows = [
        (f"`{entry.spec.name}`", entry.compares, entry.use_when, entry.cost, entry.needs)
        for entry in catalogue()
    ]
    return table(["loss", "compares", "use it when", "cost", "needs"], rows)


def recipe_guide() -> str:
    """From what one has to a packaged recipe."""
    rows = [
        (card.guide["teacher"], card.guide["student"], card.guide["data"], card.guide["cost"],
         f"[`{name}`](../reference/packaged-recipes.md#{name})")
        for name, card in _cards()
    ]  # fmt: skip
    head = [
        "the teacher is",
        "the student is",
        "a batch has",
        "cost beside both forwards",
        "recipe",
    ]
    return table(head, rows)


def packaged_recipes() -> str:
    """Every packaged recipe: its terms, its signals, who offers them, its source."""
    return "\n\n".join(_recipe(name, card) for name, card in _cards())


def _recipe(name: str, card: RecipeCard) -> str:
    recipe = load_recipe(name)
    terms = [
        (f"`{one.label}`", _weight(one.weight), _layers(one), f"`{one.rows}`, per {one.per}")
        for one in recipe.terms
    ]
    needs = [
        (side, _code(card.needs[side]), f"{len(card.adapters[side])}: {_code(card.adapters[side])}")
        for side in SIDES
    ]
    source = f"Source: {_title(card.reference)}"
    return "\n\n".join([
        f"## {name}", f"{recipe.summary[:1].upper()}{recipe.summary[1:]}.", f"`{card.equation}`",
        table(["term", "weight", "layers", "rows"], terms),
        table(["side", "needs", "adapters of this repository that offer all"], needs),
        f"Not reproduced: {' '.join(card.omits.split())}", source,
    ])  # fmt: skip


def _cards() -> list[tuple[str, RecipeCard]]:
    specs = {name: by["distillkit"] for name, by in provided(RecipeSpec).items()
             if "distillkit" in by}  # fmt: skip
    return [(name, recipe_card(spec)) for name, spec in specs.items()]


def _weight(weight: object) -> str:
    return f"{weight:g}" if isinstance(weight, float) else str(weight)


def _layers(term: TermRecipe) -> str:
    return "-" if term.loss == "task" else f"`{term.layers}`"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _title(key: str) -> str:
    """The source's title, with a link."""
    entry = bibliography()[key]
    title = re.search(r"title\s*= \{(.*)\},", entry)
    url = re.search(r"url\s*= \{(.*)\},", entry)
    assert title is not None, key
    assert url is not None, key
    return f"[{title[1].replace('{', '').replace('}', '')}]({url[1]})"


TABLES: dict[str, Callable[[], str]] = {
    "checks": checks,
    "recipe_guide": recipe_guide,
    "packaged_recipes": packaged_recipes,
    "faults": faults,
    "layouts": layouts,
    "adapter_checks": adapter_checks,
    "inspected": inspected,
    "defects": defects,
    "damages": damages,
    "events": events,
    "listed_plugins": listed_plugins,
    "losses": losses,
    "guide": guide,
}


def written(text: str) -> str:
    """A document with its tables as they should be."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- begin {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
