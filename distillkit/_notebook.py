"""Tables in a notebook: what ``print`` shows, in a fixed width."""

from __future__ import annotations

import html


def preformatted(shown: object) -> str:
    """The HTML of what ``print`` shows of an object, for its ``_repr_html_``.

    Examples:
        >>> preformatted("a < b")
        '<pre style="white-space: pre; overflow-x: auto">a &lt; b</pre>'
    """
    return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(str(shown))}</pre>'
