"""What is installed, by name, and what is wrong with a recipe or an adapter file."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from ._plugins.loading import Plugin, plugins
from ._plugins.registry import lookup, owner_labels, provided
from ._plugins.specs import (
    AdapterSpec,
    AlignerSpec,
    LossSpec,
    OperationSpec,
    RecipeSpec,
    Reference,
    Spec,
    WeightingSpec,
    resolve,
)
from ._recipe_listing import recipe_block, recipe_details
from ._toml_file import read_toml
from ._version import NOT_INSTALLED, installed_version
from .errors import DistillKitError, PluginLoadWarning, RecipeError, did_you_mean

Arguments = argparse.Namespace

_LISTINGS: dict[str, type[Spec]] = {
    "losses": LossSpec,
    "adapters": AdapterSpec,
    "aligners": AlignerSpec,
    "recipes": RecipeSpec,
    "operations": OperationSpec,
    "weightings": WeightingSpec,
}


class Command(NamedTuple):
    """One subcommand.

    Attributes:
        help: one line for the list of commands, and the start of its own help.
        run: ``run(arguments) -> int``, the exit code; a reference where it needs torch, so that
            nothing is imported for the other commands.
        declare: adds its arguments to its parser.
    """

    help: str
    run: Reference
    declare: Callable[[argparse.ArgumentParser], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 1 where something is wrong, 2 for bad usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        parser.error(f"there is no command {given[0]!r}; {did_you_mean(given[0], COMMANDS)}")
    chosen, unknown = parser.parse_known_args(given)
    if unknown:
        parser.error(_not_taken(parser, given[0], unknown))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginLoadWarning)  # said below, without a code line
        try:
            code: int = resolve(COMMANDS[chosen.command].run)(chosen)
            _say_what_was_left_out(chosen.command)
        except DistillKitError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
    return code


def listing(kind: str) -> str:
    """The table of one kind: name, who provides it, one line; of losses also tags and paper."""
    rows = []
    for name, specs in provided(_LISTINGS[kind]).items():
        labels = owner_labels(specs)
        for owner, spec in specs.items():
            conflict = " (conflict)" if len(specs) > 1 else ""
            rows.append([name, labels[owner] + conflict, spec.summary, *_more_columns(spec)])
    return _table(rows) if rows else f"no {kind} are registered"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distillkit",
        description=__doc__,
        epilog="DISTILLKIT_PLUGINS=a,b loads these plugins alone (empty: none); "
        "DISTILLKIT_TRACE=1 prints every import and hook call of a plugin.",
    )
    parser.add_argument("--version", action="version", version=_version_line())
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in COMMANDS.items():
        command.declare(commands.add_parser(name, help=command.help, description=command.help))
    return parser


def _not_taken(parser: argparse.ArgumentParser, command: str, unknown: Sequence[str]) -> str:
    """What a command does not take, with the option that may have been meant."""
    option = next((one for one in unknown if one.startswith("-")), None)
    if option is None:
        return f"unrecognized arguments: {' '.join(unknown)}"
    known = _options(parser, command)
    said = did_you_mean(option.partition("=")[0], known)
    return f"{command} has no option {option.partition('=')[0]!r}; {said}"


def _options(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """The options of a command and of its actions."""
    found: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                if command in ("", name):
                    found += _options(one, "")
        elif command == "":
            found += [option for option in action.option_strings if option.startswith("--")]
    return found


def _version_line() -> str:
    version = installed_version()
    if version == NOT_INSTALLED:
        return f"distillkit {version} (not installed; imported from {Path(__file__).parent})"
    return f"distillkit {version}"


def _takes_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="name", help="show everything about these alone"
    )


def _takes_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="file.toml", help="a recipe or an adapter; or a recipe's name"
    )


def _takes_a_function(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="package.module:function",
        help="a function without arguments that returns (model, batch), the batch a dictionary of "
        "what the model is called with",
    )

    parser.add_argument(
        "-o", "--output", metavar="file.toml", help="write the adapter file there, not to stdout"
    )


def _takes_signals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="signals.pt or package.module:function",
        help="a file of torch.save with signals, or a dictionary of student, teacher, words and "
        "images; or a function without arguments that returns (distiller, batch[, words[, "
        "images]])",
    )
    parser.add_argument(
        "-o", "--output", metavar="file.html", default="view.html", help="the page; view.html"
    )


def _takes_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the folder of a distillkit.RunLog; several are compared in one set of curves",
    )
    parser.add_argument(
        "-o", "--output", metavar="page.html", default="report.html", help="the page; report.html"
    )


def _takes_a_cache(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)

    def action(name: str, said: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=said, description=said)
        made.add_argument("place", metavar="folder", help="a folder, or a URL that fsspec knows")
        return made

    fill = action("fill", "run a teacher and store its signals; goes on where it stopped")
    fill.add_argument(
        "target",
        metavar="package.module:function",
        help="a function without arguments that returns (teacher, loader): a model or a Backbone, "
        "and batches as a distiller takes them, each with the entry that --key names",
    )
    fill.add_argument(
        "--recipe", action="append", default=[], help="what signals are stored for; repeatable"
    )
    fill.add_argument(
        "--teacher", help="of recipes for several teachers, the name of this one: its terms alone"
    )
    fill.add_argument(
        "--key", action="append", default=[], help="the batch entry that tells examples apart"
    )
    fill.add_argument("--error", type=float, help="the mean error that is allowed; 0 by default")
    fill.add_argument("--preprocessing", help="a name for it, which readers can ask for")
    fill.add_argument("--weights", help="a name for the weights, in place of their checksum")
    fill.add_argument("--writer", help="a name for this process, in place of its rank's")
    fill.add_argument(
        "--dry-run", action="store_true", help="run one batch, say what it will take, write nothing"
    )
    action("info", "say whose signals a cache holds, and how they are written")
    verify = action("verify", "read every byte; exit code 1 if any is damaged")
    verify.add_argument("--remove", action="store_true", help="remove damaged files")
    export = action("export", "copy a cache, checked, into fewer files")
    export.add_argument("to", metavar="folder", help="a new folder, or a URL that fsspec knows")
    export.add_argument("--shard-mb", type=float, default=256.0, help="the size of its files")


def _takes_nothing(parser: argparse.ArgumentParser) -> None:
    del parser


def _list(arguments: Arguments) -> int:
    if not arguments.names:
        print(listing(arguments.command))
    for name in arguments.names:
        print(_details(lookup(_LISTINGS[arguments.command], name)))
    return 0


def _list_recipes(arguments: Arguments) -> int:
    """What every recipe compares and needs; about those that are named, all that there is."""
    for name in arguments.names:
        spec = lookup(RecipeSpec, name)
        print(f"{_details(spec)}{recipe_details(spec)}\n")
    if not arguments.names:
        if not provided(RecipeSpec):
            print(listing("recipes"))
        for specs in provided(RecipeSpec).values():
            labels = owner_labels(specs)
            for owner, spec in specs.items():
                conflict = " (conflict)" if len(specs) > 1 else ""
                heading = f"{spec.name}  {labels[owner]}{conflict}  {spec.summary}"
                print(f"{recipe_block(heading.rstrip(), spec)}\n")
    return 0


def _details(spec: Spec) -> str:
    """Every field of one spec, a line each."""
    owners = [one for one, known in provided(type(spec))[spec.name].items() if known is spec]
    rows = [("from", owners[0])] + [(one.name, getattr(spec, one.name)) for one in fields(spec)]
    return _table([[field, _shown(value)] for field, value in rows if value]) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else repr(value)


def _more_columns(spec: Spec) -> list[str]:
    if isinstance(spec, LossSpec):
        return [", ".join(spec.tags), spec.reference]
    if isinstance(spec, AdapterSpec):
        return [spec.matches, spec.resource or ""]
    if isinstance(spec, WeightingSpec):
        return [spec.reference]
    return []


def _list_plugins(arguments: Arguments) -> int:
    del arguments
    found = plugins()
    heads = [[one.source.name, one.source.version, one.state, _provides(one)] for one in found]
    for plugin, line in zip(found, _table(heads).splitlines(), strict=True):
        print(line)
        if plugin.problem:
            print(f"    {plugin.problem}")
    return 0


def _provides(plugin: Plugin) -> str:
    counts = Counter(spec.kind for spec in plugin.specs)
    kinds = {spec_type.kind: listed for listed, spec_type in _LISTINGS.items()}
    return ", ".join(
        f"{counts[kind]} {kind if counts[kind] == 1 else listed}"
        for kind, listed in kinds.items()
        if counts[kind]
    )


def _print_schema(arguments: Arguments) -> int:
    del arguments
    from distillkit import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))
    return 0


def _check(arguments: Arguments) -> int:
    """Say of each file whether it is right; the exit code is 1 where one is not."""
    wrong = 0
    for file in arguments.files:
        try:
            print(f"{file}: {_checked(file)}")
        except (DistillKitError, ImportError) as error:
            wrong = 1
            own = isinstance(error, DistillKitError)
            said = str(error) if own else f"{type(error).__name__}: {error}"
            print(said if file in said else f"{file}: {said}")
    return wrong


def _checked(file: str) -> str:
    """The contents of a right file; a wrong one raises."""
    from distillkit import DeclarativeAdapter, load_recipe

    if _is_adapter(file):
        adapter = DeclarativeAdapter.from_toml(file)
        return f"an adapter with the streams {', '.join(adapter.streams)}"
    recipe = load_recipe(file)
    names = [str(term.name) for term in recipe.build().terms]
    return f"a recipe, {recipe.name!r}, with the terms {', '.join(names)}"


def _is_adapter(file: str) -> bool:
    """Whether a TOML file has an adapter's tables; one with neither's is an error here."""
    path = Path(file)
    if not (path.is_file() or path.suffix == ".toml"):
        return False  # a recipe's name, or an error that load_recipe words
    table = read_toml(path, "recipe or adapter file", RecipeError).tables
    if "terms" in table:
        return False
    if "streams" in table or "tokens" in table:
        return True
    raise RecipeError(
        "neither a recipe, which has [[terms]], nor an adapter, which has `streams`; it has "
        + (", ".join(map(repr, table)) or "nothing")
    )


def _say_what_was_left_out(command: str) -> None:
    broken = [plugin.source.name for plugin in plugins() if plugin.state == "broken"]
    if broken and command != "plugins":
        names = ", ".join(map(repr, broken))
        sys.stderr.write(f"left out: {names}; `python -m distillkit plugins` says why\n")


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


COMMANDS = {
    **{
        name: Command(f"list the {name}, and who provides them", _list, _takes_names)
        for name in _LISTINGS
        if name != "recipes"
    },
    "recipes": Command(
        "list the recipes: what each compares, the signals it needs, which adapters offer them",
        _list_recipes,
        _takes_names,
    ),
    "plugins": Command(
        "list the plugins: what each provides, or why it was left out",
        _list_plugins,
        _takes_nothing,
    ),
    "schema": Command(
        "print the JSON schema of a recipe, for editors", _print_schema, _takes_nothing
    ),
    "check": Command(
        "say what is wrong with recipes and adapter files; exit code 1 if anything is",
        _check,
        _takes_files,
    ),
    "inspect": Command(
        "write the whole adapter file of a model, checked by the adapter kit, and list its "
        "attentions",
        "distillkit._inspect.command:run",
        _takes_a_function,
    ),
    "view": Command(
        "write an HTML page that shows where student and teacher look",
        "distillkit._view.command:run",
        _takes_signals,
    ),
    "report": Command(
        "write an HTML page about a training: its curves, what was compared, cost, warnings",
        "distillkit._report.command:run",
        _takes_runs,
    ),
    "cache": Command(
        "run a teacher once and keep its signals on disk",
        "distillkit._cache.command:run",
        _takes_a_cache,
    ),
}


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name or a letter that the terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head` has seen enough; python would complain while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
