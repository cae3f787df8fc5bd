"""The gallery's pages: what ``examples/dide/gallery.py`` wrote, one frame for each viewer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

FOLDER = PurePosixPath("gallery")
LISTED = "gallery.json"
# pictures of the documentation: the file, what it shows, and the page that says how it was made
PICTURES = (
    (
        "study-attention.png",
        "Where teacher and students look for the digit that a question names",
        "results.md",
    ),
    (
        "study-learning.png",
        "Learning curves of the students, over steps and over time",
        "results.md",
    ),
    (
        "attention-map.png",
        "Where the class token of a small ViT looks",
        "tutorial/attention-of-any-model.md",
    ),
    (
        "divergences.png",
        "Loss and slope of each divergence over the probability that the student gives",
        "how-to/choose-a-loss.md",
    ),
)


def pages(viewers: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The list, a page for each viewer, and the viewers, which are whole pages of their own.

    Args:
        viewers: the folder of the viewers, with ``gallery.json``: a list of tables with ``file``,
            ``title`` and ``text``.

    Raises:
        FileNotFoundError: the gallery was not made.
    """
    listed = viewers / LISTED
    if not listed.is_file():
        raise FileNotFoundError(f"{listed} is missing: run make gallery")
    lines = [
        "# Gallery", "",
        ("Live viewers of models that were trained for this page: hover a word to see where teacher "
        "and student look for it. [See what is distilled](../how-to/see-what-is-distilled.md) "
        "says how to make one of your own."), "",
    ]  # fmt: skip
    names = []
    for one in json.loads(listed.read_text(encoding="utf-8")):
        file = PurePosixPath(one["file"])
        names.append(file.stem)
        lines.append(f"- **[{one['title']}]({file.stem}.md)**  \n  {one['text']}")
        yield FOLDER / f"{file.stem}.md", viewer_page(one["title"], one["text"], file).encode()
        yield PurePosixPath("_static") / FOLDER / file, (viewers / file).read_bytes()
    lines += ["", "## Pictures", ""]
    for picture, text, page in PICTURES:
        lines += [f"![{text}](../images/{picture})", "", f"*[{text}](../{page}).*", ""]
    lines += ["", "```{toctree}", ":hidden:", "", *names, "```", ""]
    yield FOLDER / "index.md", "\n".join(lines).encode()


def viewer_page(title: str, text: str, file: PurePosixPath) -> str:
    """A viewer in a frame that can reach neither the site nor a network."""
    address = f"../_static/{FOLDER}/{file}"
    return "\n".join(
        [
            "---", "hide-toc: true", "---",
            f"# {title}", "", text, "",
            f'<p><a href="{address}">Open it alone</a></p>',
            (f'<iframe class="viewer" title="{title}" sandbox="allow-scripts" src="{address}">'
            "</iframe>"), "",
        ]
    )  # fmt: skip
