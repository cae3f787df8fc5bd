"""Which file of the repository becomes which page of the site, and how its links change.

A link between pages leads to the page; one to a picture to the picture; one to any other file of
the repository to a page that shows that file; one to a folder to the repository's host.
"""

from __future__ import annotations

import ast
import os
import tomllib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from .markdown import is_external, links_of, map_links, without_comments

ROOT = Path(__file__).parents[2]
SINGLE = {
    "README.md": "index.md",  # who links to the README finds the first page
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
PICTURES = {".png", ".svg", ".jpg"}
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", ".jsonl": "json"}


def page_of(path: PurePosixPath) -> PurePosixPath | None:
    """The page that a Markdown file becomes."""
    name = str(path)
    if name in SINGLE:
        return PurePosixPath(SINGLE[name])
    if path.suffix != ".md":
        return None
    if path.parts[0] == "docs":
        return path.relative_to("docs")
    if path.parts[0] == "plugins":
        kind = "" if path.name == "README.md" else f"-{path.stem.lower()}"
        return PurePosixPath("plugins") / f"{path.parts[1]}{kind}.md"
    if path.parts[0] == "examples":
        return path.parent.with_name(f"{path.parent.name}.md")
    return None


def sources() -> dict[PurePosixPath, PurePosixPath]:
    """The pages, each by the file that it is made of."""
    patterns = ("*.md", "docs/**/*.md", "plugins/*/*.md", "examples/**/*.md")
    files = [file.relative_to(ROOT) for pattern in patterns for file in ROOT.glob(pattern)]
    found = {PurePosixPath(file.as_posix()): page_of(PurePosixPath(file)) for file in files}
    return {
        file: page
        for file, page in sorted(found.items())
        if page is not None and str(file) != "README.md"
    }


def page_of_file(path: PurePosixPath) -> PurePosixPath:
    """The page that shows a file which is no page itself."""
    folder = path.parent if path.parts[0] == "examples" else PurePosixPath("files") / path.parent
    return folder / f"{path.name.replace('.', '_')}.md"


def repository() -> str:
    """The address of the repository, as pyproject.toml has it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["urls"]["Repository"])


def staged(file: PurePosixPath, page: PurePosixPath, note: Callable[[PurePosixPath], None]) -> str:
    """The text of a page, its links leading to where the site has what they name.

    Args:
        file: of the repository.
        page: what it becomes.
        note: called with each file that a link shows.
    """
    text = without_comments((ROOT / file).read_text(encoding="utf-8"))

    def change(target: str) -> str:
        path, hash_, anchor = target.partition("#")
        if is_external(target) or not path:
            return target
        named = PurePosixPath(os.path.normpath(file.parent / path))
        there = page_of(named)
        if there is None and (ROOT / named).is_dir():
            return f"{repository()}/tree/main/{named}"
        if named.suffix in PICTURES:
            there = named.relative_to("docs")
        elif there is None:
            note(named)
            there = page_of_file(named)
        return os.path.relpath(there, page.parent) + hash_ + anchor

    return map_links(text, change)


def page_showing(path: PurePosixPath, notebook: PurePosixPath | None = None) -> str:
    """A page that shows a file of the repository, and offers it for download.

    Args:
        path: the file.
        notebook: the staged notebook of the same lines.
    """
    up = "../" * (len(page_of_file(path).parts) - 1)
    offers = [f"{{download}}`{path.name} <{up}files/{path}>`"]
    offers += [f"{{download}}`{notebook.name} <{up}{notebook}>`"] if notebook else []
    is_example = len(path.parts) == 2 and path.parts[0] == "examples"  # these are in the navigation
    head = [] if is_example else ["---", "orphan: true", "---"]
    return "\n".join(
        [
            *head,
            f"# {path.name if is_example else path}", "",
            *summary_lines(path),
            f"Download: {', '.join(offers)}", "",
            f"```{{literalinclude}} {up}files/{path}",
            f":language: {LANGUAGES.get(path.suffix, 'none')}",
            "```", "",
        ]
    )  # fmt: skip


def summary_lines(path: PurePosixPath) -> list[str]:
    """The first paragraph of the docstring of a module, and an empty line."""
    if path.suffix != ".py":
        return []
    text = (ROOT / path).read_text(encoding="utf-8")
    summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    return [summary, ""] if summary else []


def pictures_of(file: PurePosixPath) -> list[PurePosixPath]:
    """The pictures that a page shows."""
    text = (ROOT / file).read_text(encoding="utf-8")
    named = [PurePosixPath(os.path.normpath(file.parent / one)) for one in links_of(text)]
    return [one for one in named if one.suffix in PICTURES]
