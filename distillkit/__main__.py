"""``python -m distillkit``: what is installed, listed without importing any of it."""

from __future__ import annotations

import argparse

from ._plugins.registry import provided
from ._plugins.specs import AdapterSpec, AlignerSpec, LossSpec, OperationSpec, RecipeSpec

_LISTINGS = {
    "losses": LossSpec,
    "recipes": RecipeSpec,
    "adapters": AdapterSpec,
    "aligners": AlignerSpec,
}


def main(arguments: list[str] | None = None) -> None:
    """Print one listing."""
    parser = argparse.ArgumentParser(prog="python -m distillkit", description=__doc__)
    parser.add_argument("listing", choices=[*_LISTINGS, "operations"], help="what to list")
    chosen = parser.parse_args(arguments).listing
    print(listing(chosen))


def listing(kind: str) -> str:
    """The table of one kind: name, who provides it, summary."""
    known = provided(OperationSpec if kind == "operations" else _LISTINGS[kind])
    rows = [
        (name, plugin + (" (conflict)" if len(specs) > 1 else ""), getattr(spec, "summary", ""))
        for name, specs in known.items()
        for plugin, spec in specs.items()
    ]
    if not rows:
        return f"no {kind} are registered"
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        f"{name:<{widths[0]}}  {plugin:<{widths[1]}}  {summary}" for name, plugin, summary in rows
    )


if __name__ == "__main__":
    main()
