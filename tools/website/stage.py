"""Put together what Sphinx builds: the pages, their pictures, the API, examples and the gallery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from . import api, gallery, markdown, notebooks, pages
from .pages import ROOT

# a section's folder, its title, and what its page says above the list
SECTIONS = {
    "tutorial": ("Tutorials", "Begin here: each is one program, from an empty file to a result."),
    "how-to": ("How-to guides", "One task each. Every block of code is executed by the tests."),
    "explanation": ("Explanation", "Why things are as they are: derivations, costs, decisions."),
    "reference": ("Reference", "Tables of what there is, written from code and tests."),
    "plugins": ("Distributions", "Packages beside the core, each installed by its own name."),
    "project": ("Project", "What changed, how to contribute, and how to report a weakness."),
}
# pages of a section that lie above it
MORE = {"explanation": ["results.md", "pictures.md", "performance.md"]}
EXAMPLES = PurePosixPath("examples")


class Staging:
    """A folder that becomes what was written into it; files that stay the same are not touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[Path] = set()

    def write(self, path: PurePosixPath, text: str) -> None:
        """A text, unless it is there already."""
        self.put(path, text.encode("utf-8"))

    def copy(self, source: Path, path: PurePosixPath) -> None:
        """A file."""
        self.put(path, source.read_bytes())

    def put(self, path: PurePosixPath, content: bytes) -> None:
        """Sphinx reads a page again when its file is newer."""
        there = self.folder / path
        self.written.add(there)
        if there.is_file() and there.read_bytes() == content:
            return
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)

    def remove_others(self) -> None:
        """Delete what an earlier staging wrote and this one did not."""
        for file in self.folder.rglob("*"):
            if file.is_file() and file not in self.written:
                file.unlink()


def stage(folder: Path, viewers: Path | None) -> None:
    """Write everything into a folder.

    Args:
        folder: Sphinx's source; files of an earlier staging that are no more are deleted.
        viewers: the folder that ``make gallery`` wrote; None builds a site without a gallery.
    """
    staging = Staging(folder)
    here = Path(__file__).parent
    staging.copy(here / "conf.py", PurePosixPath("conf.py"))
    for kind in ("static", "templates"):
        for file in (here / kind).iterdir():
            staging.copy(file, PurePosixPath(f"_{kind}") / file.name)
    _stage_pages(staging)
    _stage_examples(staging)
    for path, text in api.pages():
        staging.write(path, text)
    if viewers is not None:
        for path, content in gallery.pages(viewers):
            staging.put(path, content)
    staging.write(PurePosixPath("index.md"), first_page(has_gallery=viewers is not None))
    staging.remove_others()


def _stage_pages(staging: Staging) -> None:
    shown: set[PurePosixPath] = set()
    sources = pages.sources()
    for file, page in sources.items():
        text = pages.staged(file, page, shown.add)
        if str(page) != "index.md":  # it is written last, with the navigation
            staging.write(page, text)
        for picture in pages.pictures_of(file):
            staging.copy(ROOT / picture, picture.relative_to("docs"))
    for section in SECTIONS:
        staging.write(PurePosixPath(section) / "index.md", section_page(section, sources))
    scripts = {PurePosixPath(file.relative_to(ROOT)) for file in ROOT.glob("examples/*.py")}
    for path in sorted(shown | scripts):
        staging.copy(ROOT / path, PurePosixPath("files") / path)
        if path not in scripts:
            staging.write(pages.page_of_file(path), pages.page_showing(path))


def _stage_examples(staging: Staging) -> None:
    """A page for each script, with its notebook, and the list of them."""
    lines = [
        "# Examples", "",
        ("Programs that train from nothing: no download, no GPU. Those of one file are offered as "
        "notebooks too. The tests run the scripts, and hold the notebooks to the same lines."), "",
        "| example | |", "|---|---|",
    ]  # fmt: skip
    names = []
    alone = notebooks.examples()
    for script in sorted(ROOT.glob("examples/*.py")):
        path = PurePosixPath(script.relative_to(ROOT))
        page = pages.page_of_file(path)
        notebook = PurePosixPath("files/notebooks") / f"{script.stem}.ipynb"
        if script in alone:
            staging.write(notebook, notebooks.text_of(script))
        staging.write(page, pages.page_showing(path, notebook if script in alone else None))
        summary = (pages.summary_lines(path) or [""])[0].partition("\n")[0]
        lines.append(f"| [`{script.name}`]({page.name}) | {summary} |")
        names.append(page.stem)
    lines += [
        "", ("Of several files: the [demo](dide/train_py.md), and [a package that others "
        "install](write_a_plugin.md)."), "",
        "```{toctree}", ":hidden:", "", *names, "write_a_plugin", "```", "",
    ]  # fmt: skip
    staging.write(EXAMPLES / "index.md", "\n".join(lines))


def section_page(section: str, sources: dict[PurePosixPath, PurePosixPath]) -> str:
    """The list of a section's pages, each with its first sentence."""
    title, about = SECTIONS[section]
    lines = [f"# {title}", "", about, ""]
    names = []
    for file, page in _pages_of(section, sources):
        text = (ROOT / file).read_text(encoding="utf-8")
        target = page.name if page.parts[0] == section else f"../{page}"
        sentence = markdown.first_sentence(text)
        lines.append(f"- **[{markdown.title_of(text)}]({target})**  \n  {sentence}")
        names.append(target.removesuffix(".md"))
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *names, "```", ""])


def _pages_of(
    section: str, sources: dict[PurePosixPath, PurePosixPath]
) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    above = MORE.get(section, [])
    for file, page in sources.items():
        if page.parts[0] == section or str(page) in above:
            yield file, page


def first_page(*, has_gallery: bool) -> str:
    """``docs/index.md`` and the navigation."""
    index = PurePosixPath("docs/index.md")
    text = pages.staged(index, PurePosixPath("index.md"), lambda _: None)
    entries = ["tutorial", "how-to", "explanation", "reference", "api", "examples"]
    entries += ["gallery"] if has_gallery else []
    lines = [f"{entry}/index" for entry in (*entries, "plugins", "project")]
    return "\n".join([text, "```{toctree}", ":hidden:", "", *lines, "```", ""])
