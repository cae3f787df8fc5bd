"""``python -m distillkit cache``: what it prints, its exit codes, shares of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

import distillkit as dk
from distillkit.__main__ import main
from tests.support import cached, small_cache
from tests.support.cache_faults import second

COUNT = 10
TARGETS = "tests.cache.test_command:"
RECIPES = ("logits", "attention")


def build():
    """What the command is told to run: a teacher, and batches of two."""
    loader = DataLoader(cached.examples(COUNT), batch_size=2, collate_fn=cached.collate)
    return cached.teacher(), loader


def build_shuffled():
    """Every rank has another order, as without a common seed."""
    taught, loader = build()
    orders = [list(range(COUNT)), [*range(4, COUNT), *range(4)]]
    rank = int(os.environ["RANK"])
    return taught, DataLoader(
        loader.dataset, batch_size=2, sampler=orders[rank], collate_fn=cached.collate
    )


def build_keyed():
    taught, _ = build()
    batch = cached.collate(cached.examples(4))
    return taught, [{**batch, "id": [0, 0, 1, 1], "view": [0, 1, 0, 1]}]


def build_without_length():
    taught, loader = build()
    return taught, iter(list(loader))


class Beside:
    """Batches, while another rank writes its own."""

    def __init__(self, loader):
        self._batches, self.dataset = list(loader), loader.dataset

    def __iter__(self):
        yield from self._batches[:4]
        other = dk.SignalCache(os.environ["PLACE"])
        other.fill(cached.teacher(), self._batches[4:], writer="other", progress=False)
        yield self._batches[4]


def build_beside():
    taught, loader = build()
    return taught, Beside(loader)


def builds_nothing():
    return build()[1]


@pytest.fixture
def recipes(tmp_path):
    """The paths of two recipes."""
    terms = {"logits": cached.LOGITS, "attention": cached.ATTENTION}
    for name, term in terms.items():
        lines = [f'{key} = "{value}"' for key, value in term.items()]
        text = f'name = "{name}"\n[[terms]]\n' + "\n".join(lines)
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    return {name: str(tmp_path / f"{name}.toml") for name in terms}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "cache"


def fill(place, recipes, *more, target="build", names=("logits",)):
    chosen = [word for name in names for word in ("--recipe", recipes[name])]
    return main(["cache", "fill", str(place), TARGETS + target, *chosen, *more])


def test_fill_says_what_it_stored_and_goes_on(place, recipes, capsys):
    assert fill(place, recipes, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "logits: 12 bytes an example, tensor, exact" in said
    assert "for 10 examples" in said
    assert not place.exists()
    assert fill(place, recipes) == 0
    said = capsys.readouterr().out
    assert "logits: 12 bytes an example" in said
    assert "stored 10 examples, " in said
    assert "; 0 were there" in said
    assert "all ranks" not in said
    assert fill(place, recipes) == 0
    said = capsys.readouterr().out
    assert said.startswith("stored 0 examples, 0 bytes, in ")
    assert "; 10 were there" in said


def test_several_recipes_and_several_keys(place, recipes, capsys):
    more = ["--key", "id", "--key", "view"]
    assert fill(place, recipes, *more, target="build_keyed", names=RECIPES) == 0
    cache = dk.SignalCache(place)
    assert cache.header.key == ("id", "view")
    assert {one.name for one in cache.header.signals} == {"logits", "attention.text_to_image"}
    assert (1, 0) in cache
    capsys.readouterr()
    assert fill(place, recipes, "--key", "id", target="build_keyed") == 1
    assert "key: ('id', 'view') in the cache, ('id',) here" in capsys.readouterr().err


def test_options_reach_the_cache(place, recipes):
    more = ["--error", "0.01", "--preprocessing", "p1", "--weights", "w, r1", "--writer", "me"]
    assert fill(place, recipes, *more) == 0
    cache = dk.SignalCache(place)
    header = cache.header
    assert (header.error, header.preprocessing, header.weights) == (0.01, "p1", "w, r1")
    assert all(name.startswith("me.") for name in cache.shards)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("module_without_a_function", 'takes "package.module:function"; got'),
        (TARGETS + "buidl", "buidl"),
        ("no_such_package.here:build", "there is no module 'no_such_package'"),
        (
            TARGETS + "builds_nothing",
            "returns (teacher, loader), a module or a Backbone and batches",
        ),
    ],
)
def test_a_wrong_target_is_an_error(target, said, place, recipes, capsys):
    code = main(["cache", "fill", str(place), target, "--recipe", recipes["logits"]])
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert not place.exists()


def test_a_recipe_is_asked_for(place, capsys):
    assert main(["cache", "fill", str(place), TARGETS + "build"]) == 1
    assert "Name the recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["cache", "empty", str(place)])
    assert stopped.value.code == 2
    assert "invalid choice: 'empty'" in capsys.readouterr().err


def ranks(monkeypatch, place, recipes, target, capsys):
    """What each of two ranks says, one after the other."""
    said = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert fill(place, recipes, target=target) == 0
        said.append(capsys.readouterr().out)
    return said


def test_ranks_take_a_share_each_and_the_last_says_that_all_is_there(
    place, recipes, capsys, monkeypatch
):
    first, last = ranks(monkeypatch, place, recipes, "build", capsys)
    assert "stored 6 examples" in first
    assert "stored 4 examples" in last
    assert "all ranks together have stored 6 of 10 examples so far" in first
    assert last.splitlines()[-1] == "all ranks together have stored 10 examples"
    shards = dk.SignalCache(place).shards
    assert {name.partition(".")[0] for name in shards} == {"rank-0", "rank-1"}


def test_loaders_that_bring_other_batches_to_each_rank_are_noticed(
    place, recipes, capsys, monkeypatch
):
    _, last = ranks(monkeypatch, place, recipes, "build_shuffled", capsys)
    stored = len(dk.SignalCache(place))
    assert stored < COUNT
    assert f"stored {stored} of 10 examples so far" in last
    assert "shuffle=False" in last
    assert "DistributedSampler" in last


def test_what_others_store_meanwhile_counts(place, recipes, capsys, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("PLACE", str(place))):
        monkeypatch.setenv(name, value)
    dk.SignalCache(place, recipes["logits"]).fill(*build(), writer="first", progress=False)
    for path in place.glob("first.*"):
        path.unlink()
    assert fill(place, recipes, target="build_beside") == 0
    assert "all ranks together have stored 6 of 10" in capsys.readouterr().out


def test_a_loader_that_does_not_say_its_length(place, recipes, capsys, monkeypatch):
    said = ranks(monkeypatch, place, recipes, "build_without_length", capsys)
    assert [one.splitlines()[-1] for one in said] == [
        "all ranks together have stored 6 examples",
        "all ranks together have stored 10 examples",
    ]


@pytest.fixture
def several(place):
    """A cache of several shards."""
    cache = dk.SignalCache(place, small_cache.RECIPE)
    small_cache.fill(cache, small_cache.batches(6), shard_bytes=700, weights="small, seed 0")
    return place


def test_info_says_whose_signals_they_are(several, capsys):
    assert main(["cache", "info", str(several)]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = dk.SignalCache(several).header
    for line in (
        "teacher          tests.support.tiny.Fusion",
        "weights          small, seed 0",
        f"adapter          {header.adapter}",
        "preprocessing    not declared",
        "examples         12, told apart by id",
        "inputs compared  ids, mask, pixels",
        "allowed error    0",
        "logits: 12 bytes an example, tensor, exact",
    ):
        assert line in lines
    attention = next(line for line in lines if line.startswith("attention.text_to_image:"))
    assert attention.endswith("an example, log_probabilities, exact, layers [1] of 2")
    assert lines[-1].endswith(f"of signals in {len(small_cache.shards(several))} files")


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("at", "lost"), [(-1, r"examples"), (40, "its examples")])
def test_verify_finds_removes_and_says(at, lost, several, capsys):
    assert main(["cache", "verify", str(several)]) == 0
    assert capsys.readouterr().out == "12 examples are as they were written\n"
    damaged = second(several)
    flip(damaged, at)
    for _ in range(2):
        assert main(["cache", "verify", str(several)]) == 1
        said = capsys.readouterr().out
        assert damaged.name in said
        assert "damaged: " in said
        assert lost in said
        assert damaged.exists()
    assert main(["cache", "verify", str(several), "--remove"]) == 1
    assert "removed: " in capsys.readouterr().out
    assert not damaged.exists()
    assert main(["cache", "verify", str(several)]) == 0


def test_a_damaged_header_does_not_stop_info(several, capsys):
    shards = small_cache.shards(several)
    lost = len(dk.SignalCache(several)._index.shards[second(several).name])
    flip(second(several), 40)
    assert main(["cache", "info", str(several)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"examples         {12 - lost}, told apart by id" in lines
    assert f"in {len(shards) - 1} files" in lines[-2]
    assert lines[-1].startswith(f"not counted: the header of shard {second(several).name} is damag")


def test_export_copies(several, tmp_path, capsys):
    to = tmp_path / "copy"
    assert main(["cache", "export", str(several), str(to), "--shard-mb", "0.001"]) == 0
    assert capsys.readouterr().out == f"12 examples are in {to}\n"
    batches = small_cache.batches(6)
    copy = dk.SignalCache(to)
    assert small_cache.read(copy, batches) == small_cache.read(dk.SignalCache(several), batches)
    assert len(copy.shards) > 1
    assert main(["cache", "export", str(several), str(to)]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["info", "verify", "export"])
def test_a_place_without_a_cache(action, tmp_path, capsys):
    more = [str(tmp_path / "to")] if action == "export" else []
    assert main(["cache", action, str(tmp_path / "nothing"), *more]) == 1
    assert "error: there is no signal cache in" in capsys.readouterr().err
    (tmp_path / "cache.json").write_text(json.dumps({"some": "thing"}), encoding="utf-8")
    assert main(["cache", action, str(tmp_path), *more]) == 1
    assert "cache.json is damaged" in capsys.readouterr().err


def test_as_a_process_of_its_own(place, recipes):
    words = ["cache", "fill", place, TARGETS + "build", "--recipe", recipes["logits"]]
    done = subprocess.run(
        [sys.executable, "-m", "distillkit", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stored 10 examples" in done.stdout
    assert len(dk.SignalCache(place)) == COUNT
