"""The page as text: data that no browser takes for code, and one script that it may run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from .contents import Contents

SCRIPTS = ("values.js", "decode.js", "table.js", "panels.js", "page.js")
"""The parts of the viewer's one script, in this order."""


def page_of(contents: Contents) -> str:
    """One HTML file with everything in it, as :func:`filled` makes it."""
    blocks = [
        f'<script type="text/plain" id="layer-{i}">{text}</script>'
        for i, text in enumerate(contents.texts)
    ]
    return filled(__package__, facts=as_json(contents.facts), layers="\n".join(blocks))


def filled(package: str, others: Sequence[str] = (), **blocks: str) -> str:
    """The ``page.html`` of a package with its style, its script and its data.

    Its content security policy allows scripts by their hashes, and no connection. Text of the
    caller stands in a JSON block, in which ``<``, ``>`` and ``&`` are escaped, and reaches the page
    as text nodes alone.

    Args:
        package: what holds ``page.html``, ``page.css`` and ``page.js``; what all pages share stands
            before the last two.
        others: packages whose pages are shown in frames of this one, and may run there.
        blocks: what else the page has a place for.
    """
    hashes = " ".join(f"'sha256-{_digest(_script(one))}'" for one in (package, *others))
    return Template(_read(package, "page.html")).substitute(
        policy=(
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src {hashes}; base-uri 'none'; form-action 'none'"
        ),
        style=_read(__package__, "shared.css") + _read(package, "page.css"),
        script=_script(package),
        **blocks,
    )


def _script(package: str) -> str:
    parts = SCRIPTS if package == __package__ else ("page.js",)
    return _read(__package__, "shared.js") + "".join(_read(package, part) for part in parts)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


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


def _read(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
