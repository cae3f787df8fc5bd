"""Links in Markdown lead to files and headings that exist, on a code host and on the site."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.website import markdown

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("plugins/*/*.md"),
    *ROOT.glob("examples/**/*.md"),
]


def name(page):
    return str(page.relative_to(ROOT))


def broken(page, text):
    """The links of a page that lead nowhere."""
    for target in markdown.links_of(text):
        if markdown.is_external(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or ROOT not in file.parents:
            yield target
        elif anchor and file.suffix == ".md":
            there = text if file == page else file.read_text(encoding="utf-8")
            if anchor not in markdown.anchors_of(there):
                yield target


@pytest.mark.parametrize("page", sorted(PAGES), ids=name)
def test_links_lead_to_files_and_headings(page):
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_seen():
    page = ROOT / "docs/how-to/layers.md"
    text = (
        "# A *title*, [linked](x)\n\n[good](#a-title-linked) [bad](#other) [file](none.md)\n"
        "[heading](weigh-terms.md#none) `[code](none.md)` [outside](../../../none)\n"
        "[good](../../README.md#install) [https](https://none.invalid)\n```\n[x](none.md)\n```\n"
    )
    assert list(broken(page, text)) == [
        "x",
        "#other",
        "none.md",
        "weigh-terms.md#none",
        "../../../none",
    ]


def test_headings_of_one_name_are_numbered():
    text = "# A\n## `x`: b_c-d, e!\n## A\n```\n# no heading\n```\n## A\n"
    assert markdown.anchors_of(text) == {"a", "x-b_c-d-e", "a-1", "a-2"}


def test_links_are_changed_outside_code_alone():
    text = '[a](b.md#c "t") `[a](b)` ![`p`](q.png)\n````md\n```\n[a](b)\n```\n````\n[a](b)'
    changed = markdown.map_links(text, lambda target: f"new/{target}")
    assert changed == (
        '[a](new/b.md#c "t") `[a](b)` ![`p`](new/q.png)\n````md\n```\n[a](b)\n```\n````\n[a](new/b)'
    )


def test_a_page_has_a_title_and_a_first_sentence():
    text = "<!-- c -->\n# The `title`\n\n```python\nx = 1\n```\n\nOne [sentence](x.md),\nin lines. Two.\n"
    assert markdown.title_of(text) == "The `title`"
    assert markdown.first_sentence(text) == "One sentence, in lines."
    needing = "# T\n\nNeeds: `pip install x`\n\nA task. More.\n"
    assert markdown.first_sentence(needing) == "A task."
    assert markdown.first_sentence("# T\n\n## S\n\nText.\n") == ""
    assert "<!--" not in markdown.without_comments(text)
    assert markdown.without_comments("```\n<!-- kept -->\n```") == "```\n<!-- kept -->\n```"
    with pytest.raises(ValueError, match="this one has none"):
        markdown.title_of("text")
