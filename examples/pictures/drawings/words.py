"""The words for classes of things, the one table made by hand, and what its words do not fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A class of things in singular and plural, with its article."""

    singular: str
    plural: str

    @property
    def with_article(self) -> str:
        """The singular with "a" or "an".

        Examples:
            >>> Word("aircraft", "aircraft").with_article
            'an aircraft'
        """
        return f"{'an' if self.singular[0] in 'aeiou' else 'a'} {self.singular}"


SUBGROUPS = {
    "animal-mammal": Word("mammal", "mammals"),
    "animal-bird": Word("bird", "birds"),
    "animal-marine": Word("sea animal", "sea animals"),
    "animal-bug": Word("bug", "bugs"),
    "animal-reptile": Word("reptile", "reptiles"),
    "plant-flower": Word("flower", "flowers"),
    "food-fruit": Word("fruit", "fruits"),
    "food-vegetable": Word("vegetable", "vegetables"),
    "food-sweet": Word("sweet", "sweets"),
    "food-prepared": Word("prepared food", "prepared foods"),
    "food-asian": Word("asian food", "asian foods"),
    "drink": Word("drink", "drinks"),
    "transport-ground": Word("land vehicle", "land vehicles"),
    "transport-air": Word("aircraft", "aircraft"),
    "place-building": Word("building", "buildings"),
    "time": Word("clock", "clocks"),
    "sky-weather": Word("sky or weather sign", "sky or weather signs"),
    "sport": Word("sports item", "sports items"),
    "clothing": Word("piece of clothing", "pieces of clothing"),
    "musical-instrument": Word("musical instrument", "musical instruments"),
    "book-paper": Word("book or paper", "books or papers"),
    "tool": Word("tool", "tools"),
    "household": Word("household item", "household items"),
    "office": Word("office item", "office items"),
}
"""Unicode's subgroup -> the word for what it holds."""

FAMILIES = {
    "animal": Word("animal", "animals"),
    "food": Word("food", "foods"),
    "transport": Word("vehicle", "vehicles"),
}
"""The beginning of several subgroups -> the word for what they hold together."""

NOT_OF_ITS_CLASS = frozenset(
    {
        "paw prints", "pig nose", "feather", "wing", "spider web", "microbe", "coral",
        "spiral shell", "rosette", "bus stop", "motorway", "railway track", "oil drum", "fuel pump",
        "wheel", "police car light", "horizontal traffic light", "vertical traffic light",
        "stop sign", "construction", "roller skate", "station", "seat", "parachute", "anchor",
        "ring buoy", "suspension railway", "mountain cableway", "aerial tramway", "satellite",
        "brick", "rock", "wood", "wedding", "building construction", "Statue of Liberty",
        "thermometer", "closed umbrella", "umbrella", "umbrella on ground", "high voltage", "fire",
        "droplet", "water wave", "hair pick", "lipstick", "ring", "gem stone", "folding hand fan",
        "shopping bags", "prayer beads", "pouring liquid", "ice", "cooking", "label", "bomb",
        "shield", "link", "broken chain", "chains", "elevator", "bubbles", "mouse trap",
    }
)  # fmt: skip
"""Names of what stands in a subgroup and is not what its word says."""

WORDS = {word.singular: word for word in (*SUBGROUPS.values(), *FAMILIES.values())}
"""Singular -> word."""


def classes_of(name: str, subgroup: str) -> tuple[str, ...]:
    """The classes of a thing, by its name and Unicode's subgroup; none if no word fits.

    Examples:
        >>> classes_of("owl", "animal-bird"), classes_of("feather", "animal-bird")
        (('animal', 'bird'), ())
    """
    if name in NOT_OF_ITS_CLASS:
        return ()
    found = [word for start, word in FAMILIES.items() if subgroup.split("-")[0] == start]
    if subgroup in SUBGROUPS:
        found.append(SUBGROUPS[subgroup])
    return tuple(sorted(word.singular for word in found))
