"""The page as text: data that no browser takes for code, and one script that it may run."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from string import Template
from typing import Any

from .contents import Contents

SCRIPTS = ("values.js", "decode.js", "table.js", "panels.js", "page.js")
"""The parts of the page's one script, in this order."""


def page_of(contents: Contents) -> str:
    """One HTML file with everything in it.

    Its content security policy allows this one script by its hash, and no connection. Text of the
    caller stands in a JSON block, in which ``<``, ``>`` and ``&`` are escaped, and reaches the page
    as text nodes alone.
    """
    script, style = "".join(map(_read, SCRIPTS)), _read("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    blocks = [
        f'<script type="text/plain" id="layer-{i}">{text}</script>'
        for i, text in enumerate(contents.texts)
    ]
    return Template(_read("page.html")).substitute(
        policy=(
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        ),
        style=style,
        script=script,
        facts=as_json(contents.facts),
        layers="\n".join(blocks),
    )


def as_json(value: Any) -> str:
    r"""JSON that ends no script element, whatever its strings hold.

    Examples:
        >>> as_json(["</script>"])
        '["\\u003c/script\\u003e"]'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
