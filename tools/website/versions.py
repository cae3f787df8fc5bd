"""Several versions beside each other: a folder for each, one list, and a way to the newest.

The list is a script, because a page opened from disk may load a script beside it, and no JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

from packaging.version import Version

_REDIRECT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>distillkit</title>
<meta http-equiv="refresh" content="0; url={newest}/index.html">
<link rel="canonical" href="{newest}/index.html">
<p><a href="{newest}/index.html">distillkit {newest}</a></p>
</html>
"""


def folders(site: Path) -> list[Path]:
    """The folders of versions, the newest first."""
    found = [index.parent for index in site.glob("*/objects.inv")]
    return sorted(found, key=lambda folder: Version(folder.name), reverse=True)


def newest(versions: list[str]) -> str:
    """The newest release, or the newest of all where there is none."""
    releases = [one for one in versions if not Version(one).is_prerelease]
    return max(releases or versions, key=Version)


def write_list(site: Path) -> list[str]:
    """Write ``versions.js`` and ``index.html`` for the versions that are there."""
    found = [
        {
            "version": folder.name,
            "pages": sorted(str(page.relative_to(folder)) for page in folder.rglob("*.html")),
        }
        for folder in folders(site)
    ]
    names = [str(one["version"]) for one in found]
    if not names:
        raise ValueError(f"{site} holds no version: build one with make docs")
    shown = json.dumps({"newest": newest(names), "versions": found}, indent=1)
    (site / "versions.js").write_text(f"window.DISTILLKIT_VERSIONS = {shown};\n", encoding="utf-8")
    (site / "index.html").write_text(_REDIRECT.format(newest=newest(names)), encoding="utf-8")
    return names
