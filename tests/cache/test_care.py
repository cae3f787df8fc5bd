"""Looking after a cache's files: streams, copies, what others have written."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch

import distillkit as dk
from distillkit.errors import CacheError
from tests.cache.processes import filling, forked, succeeded
from tests.support import cached, small_cache
from tests.support.failing_steps import Steps
from tests.support.small_cache import fill

LOADER = small_cache.batches(6)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
may_fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache of several shards, and what it gives."""
    place = tmp_path_factory.mktemp("care") / "cache"
    cache = dk.SignalCache(place, small_cache.RECIPE)
    fill(cache, LOADER, shard_bytes=700)
    assert len(cache.shards) >= 4
    return place, small_cache.read(cache, LOADER)


@pytest.fixture
def place(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "cache")


@pytest.fixture(scope="module")
def truth(made):
    return made[1]


def streamed(cache, *names):
    found = {}
    for keys, signals in cache.stream(*names):
        for i, key in enumerate(keys):
            assert key not in found
            found[key] = signals["logits"][i]
    return found


def test_a_stream_has_every_example_once_shard_by_shard(place):
    cache = dk.SignalCache(place)
    chunks = list(cache.stream())
    assert len(chunks) == len(cache.shards)
    found = streamed(cache)
    assert sorted(found) == list(range(12))
    for batch in LOADER:
        expected = cache.signals(batch)["logits"]
        assert torch.equal(torch.stack([found[key] for key in batch["id"]]), expected)
    for _, signals in cache.stream("logits"):
        assert list(signals) == ["logits"]
    with pytest.raises(dk.errors.UnknownNameError, match="did you mean 'logits'"):
        next(cache.stream("logit"))


def test_what_two_writers_have_stored_is_streamed_and_exported_once(tmp_path, truth):
    """Both fill everything, one after the other, as ranks do that began at once."""
    one, other = (dk.SignalCache(tmp_path / name, small_cache.RECIPE) for name in "ab")
    fill(one, LOADER, writer="a", shard_bytes=700)
    fill(other, LOADER[:4], writer="b")
    for path in small_cache.shards(tmp_path / "b"):
        shutil.copy(path, tmp_path / "a")
    one.refresh()
    assert {name[0] for name in one.shards} == {"a", "b"}
    assert len(streamed(one)) == 12
    copy = one.export(tmp_path / "copy", shard_bytes=1)
    assert len(copy.shards) == len(copy) == 12
    assert small_cache.read(copy, LOADER) == truth


@pytest.mark.parametrize("shard_bytes", [1, 700, 1 << 28])
def test_an_export_holds_the_same_in_files_of_another_size(shard_bytes, place, truth, tmp_path):
    cache = dk.SignalCache(place)
    copy = cache.export(tmp_path / "new" / "copy", shard_bytes=shard_bytes)
    assert small_cache.read(copy, LOADER) == truth
    assert copy.header == cache.header
    assert copy.verify() == []
    assert copy.sizes() == cache.sizes()
    expected = {1: 12, 700: len(cache.shards), 1 << 28: 1}
    assert len(copy.shards) == expected[shard_bytes]
    assert fill(copy, LOADER).known == 12
    dk.SignalCache(tmp_path / "new" / "copy", small_cache.RECIPE)


def test_an_export_goes_elsewhere_and_back(place, truth, tmp_path):
    there = dk.SignalCache(place).export("memory://exported-by-this-test")
    back = there.export(tmp_path / "back")
    assert small_cache.read(back, LOADER) == truth


def test_a_place_that_is_not_empty_is_refused(place, tmp_path):
    cache = dk.SignalCache(place)
    before = sorted(place.iterdir())
    with pytest.raises(CacheError, match="is not empty: export into a new folder"):
        cache.export(place)
    assert sorted(place.iterdir()) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    with pytest.raises(CacheError, match="notes is not empty"):
        cache.export(tmp_path / "notes")


@forks
@may_fork
def test_an_export_that_is_killed_at_any_step_is_no_cache_or_a_whole_one(place, truth, tmp_path):
    cache = dk.SignalCache(place)
    steps = Steps(None, lambda: None)
    with steps.watched():
        cache.export(tmp_path / "whole", shard_bytes=2000)
    states = set()
    for at in range(steps.count):
        to = tmp_path / str(at)

        def killed(at=at, to=to):
            with Steps(at, lambda: os.kill(os.getpid(), signal.SIGKILL)).watched():
                cache.export(to, shard_bytes=2000)

        assert os.waitpid(forked(killed), 0)[1] == signal.SIGKILL
        copy = dk.SignalCache(to)
        if (to / "cache.json").exists():
            states.add("whole")
            assert small_cache.read(copy, LOADER) == truth
            continue
        with pytest.raises(CacheError, match="there is no signal cache in"):
            copy.signals(LOADER[0])
        if not small_cache.shards(to):
            states.add("nothing")
            cache.export(to, shard_bytes=2000)
            assert small_cache.unfinished(to) == []
            continue
        states.add("some")
        with pytest.raises(CacheError, match="part of an export that was interrupted: remove it"):
            cache.export(to)
    assert states == {"nothing", "some", "whole"}


def test_a_damaged_example_is_not_exported(place, tmp_path):
    damaged = small_cache.shards(place)[1]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 4
    damaged.write_bytes(data)
    with pytest.raises(CacheError, match=f"{damaged.name}.*is damaged"):
        dk.SignalCache(place).export(tmp_path / "copy")
    assert not (tmp_path / "copy" / "cache.json").exists()


@forks
@may_fork
def test_refresh_takes_in_what_another_process_has_written(tmp_path):
    assert succeeded(forked(filling(tmp_path, LOADER[:2])))
    cache = dk.SignalCache(tmp_path)
    assert len(cache) == 4
    assert succeeded(forked(filling(tmp_path, LOADER, writer="b")))
    assert len(cache) == 4
    assert cache.missing([3, 4]) == [4]
    cache.refresh()
    assert len(cache) == 12
    assert cache.missing([3, 4]) == []


def query_of(student, teacher):
    """An aligner that is content with no map."""
    return student.query, teacher.query


def test_an_aligner_of_somebody_gets_queries_and_keys(tmp_path):
    dk.register(dk.AlignerSpec("test_query_of", factory=lambda: query_of))
    recipe = cached.recipe_of({"loss": "mse", "on": "attention.text", "align": ["test_query_of"]})
    plain = cached.recipe_of({**cached.ATTENTION, "align": ["drop_special"]})
    taught = cached.teacher(model=cached.tiny.Dual)
    some = cached.examples(shortest=5)  # a tensor of queries does not say what is padding
    cache = cached.filled(tmp_path, recipe, some, taught=taught, codings={"attention.text": "map"})
    (spec,) = cache.header.signals
    assert set(spec.pieces[0]) == {"log_p", "query", "key", "value"}
    batch = cached.collate(some)
    ran, read = (cached.distiller_of(one, recipe)(batch) for one in (taught, cache))
    torch.testing.assert_close(read.loss, ran.loss)
    mapped = cached.filled(tmp_path / "plain", plain, some, codings={cached.ATTENTION["on"]: "map"})
    assert set(mapped.header.signals[0].pieces[0]) == {"log_p"}
