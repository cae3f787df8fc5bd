"""Read a TOML file, or say what is wrong with the file itself."""

from __future__ import annotations

import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DistillKitError, UnknownNameError, did_you_mean


class TomlFile(NamedTuple):
    """A file as text, for the lines of messages, and as tables."""

    text: str
    tables: dict[str, Any]


def read_toml(path: Path | Traversable, what: str, error_type: type[DistillKitError]) -> TomlFile:
    """The text and the tables of a file.

    Args:
        path: of the file; or the file inside a package, as ``importlib.resources`` finds it.
        what: the file should be, for messages: "recipe file".
        error_type: the error to raise where the file is there and is no TOML.

    Raises:
        UnknownNameError: there is no such file.
        DistillKitError: of ``error_type``: it cannot be read, is no UTF-8 or no TOML.
    """
    named = f"{what} {str(path)!r}"
    if not path.is_file():
        raise _no_such_file(path, what)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a mark
    except UnicodeDecodeError as error:
        raise error_type(
            f"{named} is no UTF-8, which TOML is written in: byte {error.start} is no part of a "
            "letter. Save the file as UTF-8"
        ) from None
    except OSError as error:
        raise error_type(f"{named} cannot be read: {error.strerror or error}") from None
    try:
        return TomlFile(text, tomllib.loads(text))
    except ValueError as error:  # a number of more digits than Python reads is no TOMLDecodeError
        raise error_type(f"{named} is no TOML: {error}") from None
    except RecursionError:
        raise error_type(f"{named} is nested deeper than any recipe or adapter") from None


def _no_such_file(path: Path | Traversable, what: str) -> UnknownNameError:
    """Why there is none, and which files are near."""
    missing = f"no {what} is called {str(path)!r}"
    if not isinstance(path, Path):
        return UnknownNameError(missing)
    if path.is_dir():
        return UnknownNameError(f"{missing}: that is a folder")
    folder = path.parent
    if not folder.is_dir():
        return UnknownNameError(f"{missing}: there is no folder {str(folder)!r}")
    try:
        beside = sorted(str(one) for one in folder.glob("*.toml") if one.is_file())
    except OSError:  # a folder that may be entered and not listed
        beside = []
    where = f"in the folder {str(folder.resolve())!r}"
    if not beside:
        return UnknownNameError(f"{missing}: there is no such file, and no other .toml, {where}")
    return UnknownNameError(
        f"{missing}: there is no such file {where}; {did_you_mean(str(path), beside)}"
    )
