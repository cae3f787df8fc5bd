"""Write the page of adapter files as ``inspect`` prints them.

    python -m tools.inspected_page

The models are tiny ones of real architectures with random weights; a test holds the page to what
is printed now.
"""

from __future__ import annotations

from pathlib import Path

from distillkit._inspect.inspection import inspect_model
from tests.support import families_to_inspect

PAGE = Path(__file__).parents[1] / "docs/reference/inspected.md"
SHOWN = (
    "clip", "siglip2", "blip_itm", "flava", "llava_next", "qwen2_vl", "idefics2", "florence2", "vilt",
    "lxmert",
)  # fmt: skip
HEAD = """\
# Ten files as inspect printed them

`python -m distillkit inspect package.module:function` on ten families of transformers, tiny and with
random weights. Nothing was edited. What it could not establish is a comment on the line that is yours
to write; a line that is `missing` keeps the file from being complete. The last lines are the verdicts
of the [adapter kit](adapters.md#the-kit); [all families](adapters.md#written-by-inspect) are a table.
`python -m tools.inspected_page` writes this page.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in SHOWN:
        printed = str(inspect_model(*families_to_inspect.build(name))).strip()
        parts.append(f"## {name}\n\n```toml\n{printed}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
