"""Whatever stands in a file or in a command line, there is an error of ours, or none.

Never the traceback of another library, a hang, or code that is run. The suite draws a few;
``make fuzz`` draws 10,000 of each, which DISTILLKIT_FUZZ says.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import threading
import tomllib
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distillkit as dk
from distillkit.__main__ import COMMANDS, main
from distillkit.errors import CacheError, CacheWarning, DistillKitError
from tests.support import small_cache, toml_mutants

ROOT = Path(__file__).parents[2]
COUNT = int(os.environ.get("DISTILLKIT_FUZZ", "40"))
SECONDS = 60  # a hang, on any machine
drawn = settings(
    max_examples=COUNT,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize="DISTILLKIT_FUZZ" not in os.environ,  # the suite draws the same every time
)


def seeds(pattern):
    files = sorted(ROOT.glob(pattern))
    assert files, pattern
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [(text, tomllib.loads(text)) for text in texts]


RECIPES = seeds("distillkit/recipes/*.toml")
ADAPTERS = [
    *seeds("plugins/distillkit-transformers/distillkit_transformers/families/*.toml"),
    *seeds("examples/dide/[st]*er*.toml"),
]
KEYS_OF_RECIPES = [*dk.Recipe.model_fields, *dk.Recipe.model_json_schema()["$defs"]["TermRecipe"]["properties"]]  # fmt: skip
KEYS_OF_ADAPTERS = ["streams", "inputs", "logits", "hidden", "tokens", "modality", "length", "grid", "patch", "special", "mask", "where", "through"]  # fmt: skip


@contextlib.contextmanager
def no_hang():
    """An error where it takes longer than any of this may; only where signals reach us."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def bomb(tmp_path_factory):
    """A module that a file may name; it is on the path, and nobody may import it."""
    folder = tmp_path_factory.mktemp("bomb")
    (folder / "fuzz_bomb.py").write_text("def go():\n    return None\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    assert "fuzz_bomb" not in sys.modules, "a file was trusted, and its code was run"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("fuzz")
    with contextlib.chdir(made):
        yield made


def says_what_is_wrong(file, read):
    """The file is read, or an error of ours says why not; ``check`` agrees."""
    said, out = io.StringIO(), io.StringIO()
    with no_hang():
        try:
            read(file)
            said.write("right")
        except DistillKitError as error:
            said.write(str(error))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(["check", str(file)])
    assert code in (0, 1)
    assert said.getvalue().strip()
    assert out.getvalue().strip()


@drawn
@given(data=toml_mutants.files(RECIPES, KEYS_OF_RECIPES))
def test_recipes(folder, data):
    file = folder / "recipe.toml"
    file.write_bytes(data)
    says_what_is_wrong(file, dk.load_recipe)


@drawn
@given(data=toml_mutants.files(ADAPTERS, KEYS_OF_ADAPTERS))
def test_adapter_files(folder, data):
    file = folder / "adapter.toml"
    file.write_bytes(data)
    says_what_is_wrong(file, dk.DeclarativeAdapter.from_toml)


OPTIONS = ["--help", "--version", "-o", "--recipe", "--key", "--error", "--dry-run", "--remove", "--shard-mb", "--teacher", "--", "-", "-x", "--no-such"]  # fmt: skip
ACTIONS = ["fill", "info", "verify", "export", "dide", "kl_divergence", "mse", "distillkit:mse"]
WORDS = [*COMMANDS, *OPTIONS, *ACTIONS, "nowhere", "no.toml", "no_such_module:f", "a:", ":", ":b", "a:b:c", "..:x", "", " ", "\x00", "1e9", "nan", "-1", "cache", "no://such", "file:///nowhere", "x.pt", "x.html"]  # fmt: skip
LINES = st.tuples(
    st.sampled_from([*COMMANDS, "cache", "check"]) | st.text(max_size=6),
    st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=5),
).map(lambda parts: [parts[0], *parts[1]])


@drawn
@given(arguments=LINES)
def test_command_lines(folder, arguments):
    out = io.StringIO()
    with (
        no_hang(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", CacheWarning)
        try:
            code = main(arguments)
        except SystemExit as stop:  # argparse: 0 for --help, 2 for a wrong line
            code = stop.code
    assert code in (0, 1, 2)
    assert out.getvalue().strip()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with a cache, batches, and what it gives for them."""
    place = tmp_path_factory.mktemp("cache") / "signals"
    batches = small_cache.batches(3)
    small_cache.fill(dk.SignalCache(place, small_cache.RECIPE), batches)
    return place, batches, small_cache.read(dk.SignalCache(place, small_cache.RECIPE), batches)


def damage(place, chance):
    """Change one to three files of a cache: their bytes, their lengths, their names."""
    for _ in range(chance.randint(1, 3)):
        file = chance.choice(sorted(one for one in place.rglob("*") if one.is_file()))
        data = file.read_bytes()
        kind = chance.choice(["bytes", "bytes", "cut", "swap", "remove", "text", "huge", "folder"])
        if kind == "bytes":
            file.write_bytes(toml_mutants.changed_bytes(data, chance))
        elif kind == "cut":
            file.write_bytes(data[: chance.randint(0, len(data))])
        elif kind == "swap":
            other = chance.choice(sorted(one for one in place.rglob("*") if one.is_file()))
            file.write_bytes(other.read_bytes())
        elif kind == "remove":
            file.unlink()
        elif kind == "text":
            file.write_bytes(chance.choice([b"", b"{}", b"[]", b"null", b"cfuzz_bomb\ngo\n(tR."]))
        elif kind == "huge":
            file.write_bytes(b"\xff" * 8 + data[8:])
        else:
            file.unlink()
            file.mkdir()
        if not any(one.is_file() for one in place.rglob("*")):
            return


@drawn
@given(seed=st.integers(0, 2**48))
def test_caches(stored, folder, seed):
    place, batches, expected = stored
    damaged = folder / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(place, damaged)
    damage(damaged, random.Random(seed))
    out = io.StringIO()
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        try:
            found = small_cache.read(dk.SignalCache(damaged, small_cache.RECIPE), batches)
            assert found == expected, "wrong numbers were returned"
        except CacheError as error:
            out.write(str(error))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            for action in ("info", "verify"):
                assert main(["cache", action, str(damaged)]) in (0, 1)
    assert out.getvalue().strip()
