"""A cache in a store elsewhere: what is requested, copied, checked and shared."""

from __future__ import annotations

import gc
import json
import os
import pickle
import time
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from torch.utils.data import DataLoader

import distillkit as dk
from distillkit.errors import CacheError
from tests.cache.processes import forked, succeeded
from tests.support import small_cache
from tests.support.small_cache import fill

LOADER = small_cache.batches(6)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
may_fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Counted(DirFileSystem):
    """A store that is no folder, and writes down each request: in a file, for all processes."""

    protocol = "counted"

    def __init__(self, path=None, fs=None, log=None, **options):
        super().__init__(path, fs or LocalFileSystem(), **options)
        self.log = log

    def note(self, what, path, size=0):
        with Path(self.log).open("a") as file:
            file.write(json.dumps([what, path.rsplit("/", 1)[-1], size]) + "\n")

    def cat_file(self, path, start=None, end=None, **options):
        data = super().cat_file(path, start=start, end=end, **options)
        self.note("whole" if start is None else "range", path, len(data))
        return data

    def get_file(self, path, to, **options):
        time.sleep(0.02)  # so that others come to want it meanwhile
        super().get_file(path, to, **options)
        self.note("copy", path, Path(to).stat().st_size)

    def ls(self, path, **options):
        self.note("list", path)
        return super().ls(path, **options)

    def size(self, path):
        self.note("size", path)
        return super().size(path)

    def pipe_file(self, path, value, **options):
        Path(self._join(path)).parent.mkdir(parents=True, exist_ok=True)
        super().pipe_file(path, value, **options)


@pytest.fixture
def elsewhere(tmp_path):
    """Opens caches of one store; the requests since the last look; the store's own folder."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    log.touch()

    class Elsewhere:
        folder = root / "cache"

        def cache(self, recipe=None, local=None):
            options = {"path": str(root), "log": str(log)}
            return dk.SignalCache("counted://cache", recipe, local=local, storage_options=options)

        def requests(self):
            found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            log.write_text("", encoding="utf-8")
            return found

    return Elsewhere()


@pytest.fixture
def there(elsewhere):
    """The same with a cache of several shards."""
    fill(elsewhere.cache(small_cache.RECIPE), LOADER, shard_bytes=700)
    assert len(small_cache.shards(elsewhere.folder)) >= 4
    elsewhere.requests()
    return elsewhere


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return small_cache.undisturbed(tmp_path_factory.mktemp("truth"), LOADER)


def kinds(requests):
    return Counter(what for what, *_ in requests)


def header_bytes(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_opening_reads_headers_and_copies_nothing(there):
    cache = there.cache()
    assert len(cache) == 12
    assert 3 in cache
    assert cache.sizes()["logits"] == 12 * 12
    shards = small_cache.shards(there.folder)
    requests = there.requests()
    assert kinds(requests) == {"list": 2, "whole": 1, "range": 2 * len(shards)}
    read = sum(size for what, _, size in requests if what == "range")
    assert read == sum(map(header_bytes, shards))


def test_a_shard_is_copied_when_an_example_of_it_is_read(there, truth, tmp_path):
    cache = there.cache(local=tmp_path / "local")
    assert small_cache.read(cache, LOADER[:1]) == {key: truth[key] for key in (0, 1)}
    copied = {name for what, name, _ in there.requests() if what == "copy"}
    assert copied == {path.name for path in (tmp_path / "local").rglob("*.safetensors")}
    assert len(copied) == 1
    assert small_cache.read(cache, LOADER) == truth
    small_cache.read(cache, LOADER)
    again = there.cache(local=tmp_path / "local")
    assert small_cache.read(again, LOADER) == truth
    assert kinds(there.requests())["copy"] == len(small_cache.shards(there.folder)) - 1
    assert not list((tmp_path / "local").rglob(".unfinished*"))


def damage(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def copies(local):
    return sorted(local.rglob("*.safetensors"))


@pytest.mark.parametrize("change", ["a number", "the header", "cut short"])
def test_a_damaged_copy_is_fetched_again(change, there, truth, tmp_path):
    local = tmp_path / "local"
    small_cache.read(there.cache(local=local), LOADER)
    there.requests()
    copy = copies(local)[1]
    damage(copy, 40 if change == "the header" else -1)
    if change == "cut short":
        copy.write_bytes(copy.read_bytes()[:-5])
    cache = there.cache(local=local)
    assert small_cache.read(cache, LOADER) == truth
    assert kinds(there.requests())["copy"] == 1
    assert copy.read_bytes() == (there.folder / copy.name).read_bytes()


def test_a_damaged_shard_is_fetched_again_once_and_named(there, tmp_path):
    damaged = small_cache.shards(there.folder)[1]
    damage(damaged)
    cache = there.cache(local=tmp_path / "local")
    for _ in range(2):
        with pytest.raises(CacheError, match=rf"{damaged.name}: .* of example \d+ is damaged"):
            small_cache.read(cache, LOADER)
    fetched = Counter(name for what, name, _ in there.requests() if what == "copy")
    assert fetched[damaged.name] == 2


def test_verify_looks_at_the_store_and_not_at_copies(there, truth, tmp_path):
    local = tmp_path / "local"
    cache = there.cache(small_cache.RECIPE, local=local)
    small_cache.read(cache, LOADER)
    for copy in copies(local):
        damage(copy)
    assert cache.verify(remove=True) == []
    assert len(small_cache.shards(there.folder)) == len(copies(local))
    damaged = small_cache.shards(there.folder)[1]
    damage(damaged)
    before = copies(local)
    (found,) = cache.verify()
    assert found.shard == damaged.name
    assert copies(local) == before
    assert cache.verify(remove=True) == [found]
    assert not damaged.exists()
    assert damaged.name not in {path.name for path in copies(local)}
    assert fill(cache, LOADER).stored == found.examples
    assert small_cache.read(cache, LOADER) == truth
    assert not [one for one in local.rglob("*") if one.name.startswith("tmp")]


def test_a_shard_that_cannot_be_fetched_is_not_taken_for_a_damaged_one(there, monkeypatch):
    cache = there.cache()
    before = small_cache.shards(there.folder)

    def broken(*_, **__):
        raise ConnectionError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(Counted, "get_file", broken)
        with pytest.raises(CacheError, match=r"cannot be fetched from counted://cache .the netw"):
            cache.verify(remove=True)
        with pytest.raises(
            CacheError, match=r"cannot be copied from .*the network is down.*local="
        ):
            small_cache.read(cache, LOADER)
        patch.setattr(Counted, "cat_file", broken)
        with pytest.raises(CacheError, match=r"safetensors cannot be read: the network is down"):
            small_cache.read(pickle.loads(pickle.dumps(cache)), LOADER)
    assert small_cache.shards(there.folder) == before


def test_copies_of_a_cache_that_was_written_anew_are_not_served(there, truth, tmp_path):
    """The same place, writer and numbers; another teacher."""
    local = tmp_path / "local"
    small_cache.read(there.cache(local=local), LOADER)
    for path in there.folder.iterdir():
        path.unlink()
    cache = there.cache(small_cache.RECIPE, local=local)
    backbone = small_cache.teacher(seed=5)
    cache.fill(backbone, LOADER, shard_bytes=700, progress=False)
    found = small_cache.read(there.cache(local=local), LOADER)
    assert found == small_cache.read(cache, LOADER)
    assert all(found[key] != truth[key] for key in truth)
    # a copy under a name that is right, of a file that is not
    one, other = (next(local.rglob(path.name)) for path in small_cache.shards(there.folder)[:2])
    one.write_bytes(other.read_bytes())
    assert small_cache.read(there.cache(local=local), LOADER) == found


def folder_of(cache):
    return cache._store._copies.folder.parent


def test_temporary_copies_go_with_the_cache(there):
    cache = there.cache()
    small_cache.read(cache, LOADER)
    folder = folder_of(cache)
    assert copies(folder)
    other = pickle.loads(pickle.dumps(cache))
    assert folder_of(other) != folder
    del cache
    gc.collect()
    assert not folder.exists()
    assert len(small_cache.read(other, LOADER)) == 12
    assert folder_of(other).exists()


@forks
@may_fork
def test_workers_share_their_parents_copies_and_do_not_remove_them(there, truth):
    cache = there.cache()
    loader = DataLoader(
        LOADER, batch_size=None, num_workers=2, collate_fn=cache.joining(dict),
        multiprocessing_context="fork",
    )  # fmt: skip
    for _ in range(2):
        found = {}
        for batch in loader:
            found |= small_cache.bits(batch["teacher_signals"], batch["id"])
        assert found == truth
    assert len(copies(folder_of(cache))) == len(small_cache.shards(there.folder))
    assert kinds(there.requests())["copy"] == len(small_cache.shards(there.folder))


@forks
@may_fork
def test_a_forked_process_that_lets_go_of_its_cache_removes_nothing(there):
    caches = [there.cache()]
    small_cache.read(caches[0], LOADER)
    folder = folder_of(caches[0])

    def lets_go():
        caches.clear()
        gc.collect()

    assert succeeded(forked(lets_go))
    assert copies(folder)


@forks
@may_fork
def test_processes_that_share_a_folder_for_copies_fetch_each_shard_once(there, truth, tmp_path):
    local, gate = tmp_path / "local", tmp_path / "gate"

    def reads():
        while not gate.exists():
            pass
        assert small_cache.read(there.cache(local=local), LOADER) == truth

    children = [forked(reads) for _ in range(4)]
    gate.touch()
    assert succeeded(*children)
    fetched = Counter(name for what, name, _ in there.requests() if what == "copy")
    assert fetched == {path.name: 1 for path in small_cache.shards(there.folder)}


def test_two_writers_fill_a_store_side_by_side(elsewhere, truth):
    one, other = elsewhere.cache(small_cache.RECIPE), elsewhere.cache(small_cache.RECIPE)
    fill(one, LOADER[:2], writer="a", shard_bytes=700)
    fill(other, LOADER[2:4], writer="b", shard_bytes=700)
    assert fill(one, LOADER, writer="a", shard_bytes=700)[:2] == (4, 8)
    other.refresh()
    for cache in (one, other, elsewhere.cache()):
        assert small_cache.read(cache, LOADER) == truth
    assert {path.name.partition(".")[0] for path in small_cache.shards(elsewhere.folder)} == {
        "a", "b",
    }  # fmt: skip


def test_writers_that_begin_at_once_agree_on_a_header(elsewhere, truth):
    """The other one's header appears while this one makes its own."""
    other = elsewhere.cache(small_cache.RECIPE)
    mine = elsewhere.cache(small_cache.RECIPE)
    backbone = small_cache.teacher()
    calls = []

    def begins(*_):
        calls.append(1)
        if len(calls) == 1:
            fill(other, LOADER[3:], writer="other")

    backbone.model.register_forward_hook(begins)
    mine.fill(backbone, LOADER, writer="mine", progress=False)
    assert small_cache.read(elsewhere.cache(), LOADER) == truth


def test_memory_is_a_store(truth):
    place = "memory://a-signal-cache/of-this-test"
    cache = dk.SignalCache(place, small_cache.RECIPE)
    fill(cache, LOADER, shard_bytes=700)
    assert small_cache.read(dk.SignalCache(place), LOADER) == truth
    assert dk.SignalCache(place).verify() == []
    assert "12 examples" in repr(cache)
    with pytest.raises(CacheError, match=r"nowhere://x: Protocol not known: nowhere"):
        dk.SignalCache("nowhere://x")
    fsspec.filesystem("memory").rm("/a-signal-cache", recursive=True)
