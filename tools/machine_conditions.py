"""Run the tests as other machines would, several conditions at once, and write down what ran.

    python -m tools.machine_conditions            every set of conditions, all tests
    python -m tools.machine_conditions turkish -- tests/plugins tests/objective

Each set is run in a copy of the checkout, in a folder with spaces, without a home to write to. A run
that ended becomes a line of ``docs/reference/machines.md``, whatever came of it; what was not run has
none. Red? Run the files that failed again with one condition after the other taken out (``--without``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/machines.md"
RUNS = ROOT / "docs/machines.jsonl"
NO_HOME = "/proc/no-home"  # not even root can make it
CONDITIONS = ("language", "zone", "umask", "home", "folder", "hashes", "threads", "order")


@dataclass(frozen=True)
class Machine:
    """Conditions that a machine may bring.

    Attributes:
        language: its locale.
        zone: its time zone.
        hashes: the seed of Python's hashes, and so of the order of sets.
        threads: of torch.
        order: the seed of the order of tests.
        processes: that share the tests.
        umask: what is taken from the permissions of new files.
    """

    language: str
    zone: str
    hashes: int
    threads: int
    order: int
    processes: int = 1
    umask: int = 0o077


MACHINES = {
    "turkish": Machine("tr_TR.UTF-8", "Pacific/Kiritimati", 1, threads=4, order=1),
    "plain": Machine("C", "America/St_Johns", 2, threads=1, order=2, processes=4),
    "latin": Machine("tr_TR.ISO-8859-9", "Asia/Kathmandu", 3, threads=1, order=3),
}


def make_locale(name: str, folder: Path) -> None:
    """Compile a locale that the machine may not have."""
    language, _, encoding = name.partition(".")
    if not encoding:
        return
    command = ["localedef", "-i", language, "-f", encoding, str(folder / name)]
    subprocess.run(command, check=True, capture_output=True)


def copy_checkout(to: Path) -> None:
    """Every file that git knows or would know."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def environment_of(
    machine: Machine, checkout: Path, locales: Path, without: set[str]
) -> dict[str, str]:
    """The variables that bring the conditions."""
    sources = [checkout, checkout / "plugins/distillkit-transformers"]
    brought = {
        "language": {"LC_ALL": machine.language, "LANG": machine.language, "LOCPATH": str(locales)},
        "zone": {"TZ": machine.zone},
        "home": {"HOME": NO_HOME, "XDG_CACHE_HOME": f"{NO_HOME}/cache"},
        "hashes": {"PYTHONHASHSEED": str(machine.hashes)},
        "threads": {
            "DISTILLKIT_THREADS": str(machine.threads),
            "OMP_NUM_THREADS": str(machine.threads),
        },
    }
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources)), "DISTILLKIT_ORDER": "0"}
    for condition, variables in brought.items():
        if condition not in without:
            made |= variables
    if "order" not in without:
        made["DISTILLKIT_ORDER"] = str(machine.order)
    return made


def run(name: str, tests: Sequence[str], without: set[str]) -> dict[str, object]:
    """Run the tests on one machine; what is written down of it."""
    machine = MACHINES[name]
    with tempfile.TemporaryDirectory() as folder:
        inner = "checkout" if "folder" in without else "a folder of mine, ünïcode"
        checkout, locales = Path(folder) / inner, Path(folder) / "locales"
        checkout.mkdir()
        locales.mkdir()
        if "language" not in without:
            make_locale(machine.language, locales)
        copy_checkout(checkout)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tools.shuffled",
            "-p",
            "no:cacheprovider",
        ]
        if machine.processes > 1:
            command += ["-n", str(machine.processes), "--dist", "loadgroup"]
        done = subprocess.run(
            [*command, *tests],
            cwd=checkout,
            env=environment_of(machine, checkout, locales, without),
            umask=-1 if "umask" in without else machine.umask,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    printed = done.stdout.decode("utf-8", "replace")
    sys.stdout.write(printed)
    counts = {
        kind: int(n)
        for n, kind in re.findall(r"(\d+) (passed|failed|errors?|skipped)", printed[-300:])
    }
    return {
        "machine": name,
        "tests": " ".join(tests) or "all",
        "without": sorted(without),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0),
        "code": done.returncode,
    }


def table(runs: Sequence[dict[str, object]]) -> str:
    """The runs as lines of a page; of one machine and the same tests, the last."""
    if not runs:
        return "No run has been written down yet."
    lines = [
        "| locale | zone | hashes | threads | order | processes | tests | result |",
        "|---|---|---|---|---|---|---|---|",
    ]
    last = {(one["machine"], one["tests"]): one for one in runs if not one["without"]}
    for one in last.values():
        machine = MACHINES[str(one["machine"])]
        result = f"{one['passed']} pass" + (f", {one['failed']} fail" if one["failed"] else "")
        cells = (
            f"`{machine.language}`", machine.zone, machine.hashes, machine.threads, machine.order,
            machine.processes, f"`{one['tests']}`", result,
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def written(text: str, runs: Sequence[dict[str, object]]) -> str:
    """The page with the table as it should be."""
    block = f"<!-- begin machines -->\n\n{table(runs)}\n\n<!-- end machines -->"
    return re.sub(
        r"<!-- begin machines -->.*<!-- end machines -->", lambda _: block, text, flags=re.DOTALL
    )


def read_runs() -> list[dict[str, object]]:
    """What was run before."""
    return [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]


def main(arguments: Sequence[str]) -> int:
    """Run machines; 1 where a test failed."""
    given = list(arguments)
    tests = given[given.index("--") + 1 :] if "--" in given else []
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("machines", nargs="*", choices=[[], *MACHINES], help="all, unless named")
    parser.add_argument("--without", action="append", default=[], choices=CONDITIONS)
    parsed = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    code = 0
    for name in parsed.machines or MACHINES:
        found = run(name, tests, set(parsed.without))
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        code = code or int(found["code"] != 0)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), read_runs()), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
