"""One line of the table of families for each: what its tiny models offer, and what the kit says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from distillkit_transformers import plugin
from distillkit_transformers.listing import listed

import distillkit as dk
from distillkit import AdapterSpec, testing

from . import described_families, families

SPECS = {spec.name: spec for spec in plugin.distillkit_adapters()}
HEAD = ("family", "classes", "by", "signals", "kit", "absent, and why")

# families whose tiny models have other names than the family
_BUILDERS_OF = {
    "blip": ("blip_matching", "blip_answering", "blip_captioning"),
    "blip_2": ("blip_2_matching", "blip_2_generating"),
    "blip_dual_encoder": ("blip_towers",),
    "llava": ("llava", "llava_padded_left"),
    "vilt": ("vilt", "vilt_answering", "vilt_of_unequal_images"),
    "vilt_of_images": ("vilt_of_two_images",),
    "vilt_dual_encoder": (
        "vilt_dual_encoder",
        "vilt_dual_encoder_of_unequal_images",
        "vilt_dual_encoder_of_two_images",
        "vilt_dual_encoder_of_one_image",
        "vilt_dual_encoder_of_masked_words",
    ),
}

# (family, check) -> why it fails, though the layout is right
FALSE_ALARMS = {
    ("emu3", "a_patch_moves_its_own_cell"): (
        "a code that changes moves its token anywhere, so how far it moves says nothing"
    ),
}

Factory = Callable[[], tuple[Any, ...]]


def factories(name: str) -> list[Factory]:
    """The tiny models of a family."""
    if name in listed():
        return [described_families.BUILDERS[name]]
    return [_spread(families.FAMILIES[one]) for one in _BUILDERS_OF.get(name, (name,))]


def _spread(build: Factory) -> Factory:
    def factory() -> tuple[Any, ...]:
        model, batch = build()
        return families.spread(model), batch

    return factory


def line(name: str) -> str:
    """A family's line of the table."""
    seen = [_offered(factory) for factory in factories(name)]
    signals = dict.fromkeys(signal for offered, _ in seen for signal in offered)
    absent = {
        signal: why for _, reasons in seen for signal, why in reasons.items()
        if signal not in signals
    }  # fmt: skip
    results = [one for factory in factories(name) for one in testing.check_adapter(factory)]
    spec = SPECS[name]
    classes = spec.matches.rpartition(".")[2]
    cells = (f"`{name}`", f"`{classes}`", _by(spec), _listed(signals), _kit(name, results),
             _reasons(name, absent))  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _offered(factory: Factory) -> tuple[list[str], dict[str, str]]:
    model, batch = factory()
    signals = dk.Backbone(model.eval()).signals(batch)
    return sorted(signals), dict(signals.absent)


def _by(spec: AdapterSpec) -> str:
    if spec.name in listed():
        return f"`{listed()[spec.name].file}`"
    module = str(spec.factory).partition(":")[0].rpartition(".")[2]
    return f"`{module}.py`"


def _listed(signals: Iterable[str]) -> str:
    return ", ".join(f"`{one}`" for one in signals)


def _kit(name: str, results: list[testing.CheckResult]) -> str:
    """Which checks passed, and of the others what was seen."""
    passed = sum(one.passed for one in results)
    said = [f"{passed} passed"]
    for one in results:
        if one.unverified:
            said.append(f"`{one.name}` unverified: {one.seen.rpartition(': ')[2]}")
        elif one.failed:
            why = FALSE_ALARMS.get((name, one.name), one.seen)
            said.append(f"`{one.name}` failed: {why}")
    return "; ".join(dict.fromkeys(said))


def _reasons(name: str, absent: dict[str, str]) -> str:
    """Signals that are absent, those with one reason together, and what the layout cannot say."""
    by_reason: dict[str, list[str]] = {}
    for signal, why in sorted(absent.items()):
        by_reason.setdefault(_short(why), []).append(signal)
    said = [f"{_listed(signals)}: {why}" for why, signals in by_reason.items()]
    note = listed()[name].note if name in listed() else ""
    return "; ".join([*said, *([note] if note else [])])


def _short(why: str) -> str:
    """The reason of a signal that another class of the family has."""
    return "of classes with a head alone" if "has no field" in why else why
