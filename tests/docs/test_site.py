"""The whole site: built without a warning, every link in it leads somewhere, and it works from disk."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.browser import CHROMIUM, DRIVER, MISSING, browser

ROOT = Path(__file__).parents[2]
VERSION = "9.1.0"
NEEDED = ("sphinx", "furo", "myst_parser", "sphinx_copybutton", "latex2mathml", "lightning")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(LACKING), reason=f"needs {', '.join(LACKING)}: the environment of make docs"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of one version beside an older one, with a gallery of one viewer."""
    folder = tmp_path_factory.mktemp("site")
    viewers = folder / "viewers"
    viewers.mkdir()
    (viewers / "one.html").write_text("<!doctype html><p id=seen>seen</p>", encoding="utf-8")
    listed = [{"file": "one.html", "title": "One viewer", "text": "What it shows."}]
    (viewers / "gallery.json").write_text(json.dumps(listed), encoding="utf-8")
    older = folder / "out/9.0.0"
    older.mkdir(parents=True)
    for name in ("objects.inv", "index.html"):
        (older / name).write_text("older", encoding="utf-8")
    command = [
        sys.executable, "-W", "ignore", "-m", "tools.website", "--out", folder / "out",
        "--work", folder / "work", "--gallery", viewers, "--version", VERSION,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    return folder / "out"


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, file):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.anchors.add(given["id"])
        target = given.get("href") or given.get("src")
        if target and tag in {"a", "img", "iframe", "link", "script"}:
            self.links.append(target)


def test_every_link_and_anchor_leads_somewhere(site):
    pages = {file: Page(file) for file in (site / VERSION).rglob("*.html")}
    assert len(pages) > 80
    broken = []
    for file, page in pages.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            path = path.partition("?")[0]
            if ":" in path or link == "#":
                continue
            target = (file.parent / unquote(path)).resolve() if path else file
            if not target.is_file() or (
                anchor and target in pages and unquote(anchor) not in pages[target].anchors
            ):
                broken.append((str(file.relative_to(site)), link))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site):
    for file in (site / VERSION).rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        for found in ('<script src="http', '<link rel="stylesheet" href="http', 'src="//'):
            assert found not in text, file


def test_formulas_names_and_notebooks_are_there(site):
    text = (site / VERSION / "api/distillkit.losses.attention.html").read_text(encoding="utf-8")
    assert "<math " in text
    assert 'href="distillkit.attention.html#distillkit.Attention"' in text
    assert 'id="distillkit.losses.attention_kl"' in text
    example = (site / VERSION / "examples/attention_map_py.html").read_text(encoding="utf-8")
    assert "attention_map.ipynb" in example


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)
def test_search_versions_and_viewers_work_from_disk(site, tmp_path):
    with browser(tmp_path / "profile") as window:
        window.call("url", {"url": (site / "index.html").as_uri()})
        window.wait(f"return location.href.includes('/{VERSION}/index.html')")
        assert window.text("h1").startswith("distillkit")
        assert window.texts("#version-choice option") == [f"{VERSION} (newest)", "9.0.0"]

        search = (site / VERSION / "search.html").as_uri()
        window.call("url", {"url": f"{search}?q=attention_kl"})
        window.wait("return document.querySelectorAll('#search-results li').length > 3")
        first = window.run("return document.querySelector('#search-results li a').href")
        assert "api/distillkit.losses.attention.html" in first

        viewer = (site / VERSION / "gallery/one.html").as_uri()
        window.call("url", {"url": viewer})
        window.wait("return document.querySelector('iframe.viewer') !== null")
        window.call("frame", {"id": window.find("iframe.viewer")})
        assert window.text("#seen") == "seen"
        window.call("frame", {"id": None})
        window.run(
            "const e = document.getElementById('version-choice'); e.value = '9.0.0';"
            "e.dispatchEvent(new Event('change'))"
        )
        window.wait("return location.href.endsWith('/9.0.0/index.html')")  # it lacks this page
        problems = [one for one in window.problems() if "favicon" not in one]
        assert problems == []
