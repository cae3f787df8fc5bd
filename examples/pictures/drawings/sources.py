"""Where drawings, names and groups come from: pinned packages, their artists and licences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A pinned npm package.

    Attributes:
        name: of the package.
        version: of the package.
        files: what is kept of it: paths, or folders that end in a slash.
        licence: of its contents, as an SPDX expression.
    """

    name: str
    version: str
    files: tuple[str, ...]
    licence: str

    @property
    def folder(self) -> str:
        """The name of the folder that holds it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}"


@dataclass(frozen=True)
class DrawingSet:
    """The drawings of one style by one group of artists.

    Attributes:
        name: of the set.
        artist: the group that drew it; groups are disjoint between splits.
        package: what holds it.
    """

    name: str
    artist: str
    package: Package


def _icons(name: str, artist: str, package: str, version: str, licence: str) -> DrawingSet:
    files = ("icons.json", "chars.json")
    return DrawingSet(name, artist, Package(f"@iconify-json/{package}", version, files, licence))


SETS = (
    _icons("noto", "noto", "noto", "1.2.9", "Apache-2.0"),
    _icons("noto-v1", "noto-v1", "noto-v1", "1.2.5", "Apache-2.0"),
    _icons("fluent", "fluent", "fluent-emoji", "1.2.7", "MIT"),
    _icons("fluent-flat", "fluent", "fluent-emoji-flat", "1.2.6", "MIT"),
    DrawingSet(
        "fluent-3d", "fluent", Package("@lobehub/fluent-emoji-3d", "1.1.0", ("assets/",), "MIT")
    ),
    _icons("fxemoji", "fxemoji", "fxemoji", "1.2.2", "Apache-2.0"),
    _icons("streamline", "streamline", "streamline-emojis", "1.2.4", "CC-BY-4.0"),
    _icons("emojione", "emojione", "emojione", "1.2.3", "CC-BY-4.0"),
    _icons("emojione-v1", "emojione-v1", "emojione-v1", "1.2.3", "CC-BY-SA-4.0"),
    _icons("twemoji", "twemoji", "twemoji", "1.2.5", "CC-BY-4.0"),
    _icons("openmoji", "openmoji", "openmoji", "1.2.29", "CC-BY-SA-4.0"),
)

SHORT_CODES = ("cldr", "emojibase", "github", "iamcal", "joypixels")

EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    (
        "en/data.json",
        "meta/groups.json",
        "meta/unicode-names.json",
        *(f"en/shortcodes/{name}.json" for name in SHORT_CODES),
    ),
    "MIT",
)
CLDR = Package(
    "cldr-annotations-full", "48.2.0", ("annotations/en/annotations.json",), "Unicode-3.0"
)
CLDR_DERIVED = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    ("annotationsDerived/en/annotations.json",),
    "Unicode-3.0",
)
TEXTS = (EMOJIBASE, CLDR, CLDR_DERIVED)

ARTISTS = {
    "train": ("noto", "noto-v1", "fluent", "fxemoji", "streamline"),
    "validation": ("emojione", "emojione-v1"),
    "test": ("twemoji", "openmoji"),
}
"""Who draws for training, validation and test."""
