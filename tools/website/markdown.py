"""Links, headings and code blocks of Markdown, as a code host understands them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

# a code span is matched so that nothing in it is taken for a link
_LINK = re.compile(r"(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)|\]\((?P<target>[^)\s]+)")
_FENCE = re.compile(r"\s*(?:>\s*)?(```+|~~~+)\s*([\w+-]*)")
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


class Line(NamedTuple):
    """A line, and whether it belongs to a code block, its fences included."""

    text: str
    is_code: bool


def lines_of(text: str) -> Iterator[Line]:
    """The lines of a document, without their ends."""
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            yield Line(line, is_code=True)
            if found and found[1].startswith(fence) and not found[2]:
                fence = ""
        elif found:
            fence = found[1]
            yield Line(line, is_code=True)
        else:
            yield Line(line, is_code=False)


def map_links(text: str, change: Callable[[str], str]) -> str:
    """The document with each target of a link or picture changed; code is left as it is."""

    def replaced(found: re.Match[str]) -> str:
        target = found["target"]
        return found[0] if target is None else f"]({change(target)}"

    return "\n".join(
        line if is_code else _LINK.sub(replaced, line) for line, is_code in lines_of(text)
    )


def links_of(text: str) -> list[str]:
    """The targets of links and pictures, in order."""
    found: list[str] = []

    def note(target: str) -> str:
        found.append(target)
        return target

    map_links(text, note)
    return found


def is_external(target: str) -> bool:
    """Whether a target names a scheme: ``https:``, ``mailto:``."""
    return re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def anchors_of(text: str) -> set[str]:
    """What a link may name behind ``#``: the headings, as code hosts write them."""
    anchors: set[str] = set()
    for line, is_code in lines_of(text):
        heading = None if is_code else _HEADING.match(line)
        if heading:
            anchor = slug(plain(heading[2]))
            number, first = 0, anchor
            while anchor in anchors:
                number += 1
                anchor = f"{first}-{number}"
            anchors.add(anchor)
    return anchors


def slug(heading: str) -> str:
    """A heading as an anchor: small letters, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def plain(text: str) -> str:
    """Text without the marks of links, code and emphasis."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[`*]", "", text)


def title_of(text: str) -> str:
    """The first heading."""
    for line, is_code in lines_of(text):
        heading = None if is_code else _HEADING.match(line)
        if heading:
            return heading[2]
    raise ValueError("a page begins with a heading, '# Title'; this one has none")


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph between title and sections; empty without one.

    A line that says what to install, ``Needs: ...``, is passed over.
    """
    prose = "\n".join("" if is_code else line for line, is_code in lines_of(without_comments(text)))
    introduction = re.split(r"^##", prose, maxsplit=1, flags=re.MULTILINE)[0]
    paragraphs = (one.strip("\n") for one in re.split(r"\n\s*\n", introduction))
    whole = next((one for one in paragraphs if re.match(r"(?!Needs:)[A-Za-z`\[(]", one)), "")
    whole = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(whole.split("\n")))
    end = re.search(r"(?<=[.:])\s+(?=[A-Z`])|$", whole)
    return whole[: end.start()].rstrip(":") if end else whole


def without_comments(text: str) -> str:
    """The document without HTML comments; those in code blocks stay."""
    blocks = []
    for is_code, lines in groupby(lines_of(text), key=lambda line: line.is_code):
        block = "\n".join(line.text for line in lines)
        blocks.append(block if is_code else _COMMENT.sub("", block))
    return "\n".join(blocks)
