"""What was broken on purpose: nothing that was stored is lost, and nothing wrong is returned."""

from __future__ import annotations

import copy
import errno
import gc
import itertools
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
from torch.utils.data import DataLoader

import distillkit as dk
from distillkit.errors import CacheError
from tests.support import small_cache
from tests.support.cache_faults import DAMAGES, EVENTS, second
from tests.support.failing_steps import Steps
from tests.support.small_cache import fill

ROOT = Path(__file__).parents[2]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
# Python warns of a fork where threads run; the worker uses none of them
may_fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def memory():
    """A folder that is no disk, where the system has one: a thousand times, a disk takes long."""
    there = Path("/dev/shm")
    with TemporaryDirectory(dir=there if there.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def found(memory):
    """What the real processes came to, scenario by scenario."""
    folder = memory / "processes"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.cache.processes", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)

    def of(scenario):
        assert "failure" not in results[scenario], results[scenario]["failure"] + done.stderr
        return results[scenario]

    return of


# -------------------------------------------------------------------------------- real processes


@forks
def test_fifty_kills_at_random_lose_a_shard_each_at_most(found):
    result = found("killed_at_random")
    assert result["kills"] == 50
    assert result["with_shards"] > 10


@forks
def test_a_kill_at_any_step_of_writing_loses_a_shard_at_most(found):
    result = found("killed_at_every_step")
    assert result["steps"] > 20
    assert result["with_unfinished_files"] > 5


@forks
def test_two_writers_of_one_name_are_refused(found):
    result = found("two_writers")
    assert "another process is writing" in result["error"]
    assert "writer='b'" in result["error"]
    assert result["unchanged"]
    assert result["another_name"]


@forks
def test_ranks_fill_side_by_side_and_any_number_of_processes_reads(found):
    assert found("ranks_side_by_side") == {"writers": ["rank-0", "rank-1"], "unfinished": []}


@forks
def test_ranks_that_fill_the_same_examples_do_no_harm(found):
    assert found("ranks_with_the_same_examples") == {"examples": 24, "damaged": 0}


@forks
def test_a_reader_sees_whole_examples_while_a_writer_writes(found):
    result = found("reading_while_writing")
    assert result["refused"] > 0
    assert result["refused_for_else"] == 0
    assert result["early"] > 0


@forks
def test_a_worker_that_outlives_a_killed_writer_keeps_nobody_out(found):
    found("a_worker_outlives_its_writer")


# -------------------------------------------------------------------------------- changed files

LOADER = small_cache.batches(6)
CACHE_ID = [fault.what for fault in DAMAGES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache of several shards, and what it gives."""
    place = tmp_path_factory.mktemp("whole") / "cache"
    fill(dk.SignalCache(place, small_cache.RECIPE), LOADER, shard_bytes=700)
    assert len(small_cache.shards(place)) >= 4
    return place, small_cache.undisturbed(tmp_path_factory.mktemp("truth"), LOADER)


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy to be broken."""
    return shutil.copytree(whole[0], tmp_path / "cache"), whole[1]


def outcome(place, truth):
    """The errors on opening, and for each example; whatever is given is right to the bit."""
    try:
        cache = dk.SignalCache(place)
        assert cache.header.key == ("id",)
    except CacheError as error:
        return str(error), {}
    errors = {}
    for batch in LOADER:
        for i, key in enumerate(batch["id"]):
            one = {name: x[i : i + 1] for name, x in batch.items()}
            try:
                assert small_cache.bits(cache.signals(one), [key])[key] == truth[key], key
            except CacheError as error:
                errors[key] = str(error)
    return None, errors


@pytest.mark.parametrize("fault", DAMAGES, ids=CACHE_ID)
def test_changed_files_are_found_named_and_mended(fault, damaged):
    place, truth = damaged
    before = {path.name for path in small_cache.shards(place)}
    of_shard = set(dk.SignalCache(place)._index.shards[second(place).name].contents.keys)
    fault.change(place)
    changed = before ^ {path.name for path in small_cache.shards(place)} | {second(place).name}
    opening, errors = outcome(place, truth)

    if fault.found_by == "opening":
        assert "cache.json" in opening or "fill it" in opening
        (place / "cache.json").unlink(missing_ok=True)
    elif fault.found_by == "any reading":
        assert set(errors) == set(truth)
        assert all(any(name in error for name in before | changed) for error in errors.values())
    elif fault.found_by == "reading the example":
        assert 0 < len(errors) <= len(of_shard) < len(truth)
        assert {str(key) for key in errors} <= of_shard
        assert all(str(key) in error for key, error in errors.items())
    else:
        assert (opening, errors) == (None, {})

    cache = dk.SignalCache(place, small_cache.RECIPE)
    if not (place / "cache.json").exists():
        assert fill(cache, LOADER).known == len(truth) - 2  # but for the first batch
    named = cache.verify()
    assert len(named) == fault.verified
    assert {one.shard for one in named} <= {path.name for path in small_cache.shards(place)}
    assert all(one.shard in one.problem for one in named)
    assert cache.verify(remove=True) == named
    filled = fill(cache, LOADER, shard_bytes=700)
    assert (filled.stored == 0) is fault.lost.startswith("nothing")
    for one in (cache, dk.SignalCache(place)):
        assert small_cache.read(one, LOADER) == truth
        assert one.verify() == []
    assert small_cache.unfinished(place) == []


def test_every_byte_of_a_shard_matters(tmp_path):
    everything_is_found(tmp_path, lambda: small_cache.shards(tmp_path)[0], may_change=False)


def test_every_byte_of_the_header_matters_or_changes_nothing(tmp_path):
    everything_is_found(tmp_path, lambda: tmp_path / "cache.json", may_change=True)


def attempt(place, loader):
    """The problem, or the numbers."""
    try:
        return None, small_cache.read(dk.SignalCache(place), loader)
    except CacheError as error:
        return str(error), None


def everything_is_found(place, file, *, may_change):
    """Each byte is another one once: an error, or, of white space, the right numbers."""
    loader = small_cache.batches(1)
    fill(dk.SignalCache(place, small_cache.RECIPE), loader)
    truth = small_cache.read(dk.SignalCache(place), loader)
    path = file()
    data = path.read_bytes()
    unnoticed = []
    with path.open("r+b", buffering=0) as written:
        for at in range(len(data)):
            os.pwrite(written.fileno(), bytes([data[at] ^ 1 << at % 8]), at)
            problem, found = attempt(place, loader)
            os.pwrite(written.fileno(), data[at : at + 1], at)
            if problem is None:
                assert found == truth, at
                unnoticed.append(data[at])
            else:
                assert path.name in problem, (at, problem)
    assert may_change or not unnoticed
    assert set(unnoticed) <= set(b" \n")


def test_shards_without_a_header_are_not_taken_for_those_of_another_teacher(damaged):
    place, _ = damaged
    (place / "cache.json").unlink()
    before = sorted(place.iterdir())
    cache = dk.SignalCache(place, small_cache.RECIPE)
    with pytest.raises(CacheError, match="belongs to another cache"):
        cache.fill(small_cache.teacher(seed=1), LOADER, progress=False)
    assert sorted(place.iterdir()) == before


def test_a_file_that_changes_under_a_reader_is_an_error_and_no_end(damaged):
    """A mapped file that is cut short would end the process."""
    place, truth = damaged
    cache = dk.SignalCache(place)
    assert small_cache.read(cache, LOADER) == truth
    os.truncate(second(place), 200)
    with pytest.raises(CacheError, match=second(place).name):
        small_cache.read(cache, LOADER)


def test_a_shard_that_vanishes_under_a_reader_is_named(damaged):
    place, _ = damaged
    cache = dk.SignalCache(place)
    assert len(cache) == 12
    gone = second(place)
    gone.unlink()
    with pytest.raises(CacheError, match=f"{gone.name} cannot be read: No such file"):
        small_cache.read(cache, LOADER)
    cache.refresh()
    with pytest.raises(CacheError, match="are not in"):
        small_cache.read(cache, LOADER)


def test_what_two_shards_hold_stays_when_one_is_gone(damaged):
    place, truth = damaged
    cache = dk.SignalCache(place)
    gone = second(place)
    shutil.copy(gone, place / f"somebody.{gone.name.partition('.')[2]}")
    cache.refresh()
    gone.unlink()
    cache.refresh()
    assert small_cache.read(cache, LOADER) == truth


def test_a_disk_that_cannot_be_read_is_named(damaged, monkeypatch):
    place, truth = damaged

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    cache = dk.SignalCache(place)
    len(cache)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken, raising=False)
        with pytest.raises(CacheError, match="cannot be read: Input/output error"):
            small_cache.read(cache, LOADER)
        assert len(cache.verify()) == len(small_cache.shards(place))
    assert small_cache.read(cache, LOADER) == truth


# ------------------------------------------------------------------------- a disk without room


def goes_on(place, truth):
    """What was stored is right, and the next fill completes it."""
    if (place / "cache.json").exists():
        cache = dk.SignalCache(place)
        there = small_cache.stored(cache, LOADER)
        assert len(there) == len(cache)
        assert all(x == truth[key] for key, x in small_cache.read(cache, there).items())
        assert cache.verify() == []
    cache = dk.SignalCache(place, small_cache.RECIPE)
    fill(cache, LOADER, shard_bytes=700)
    assert small_cache.read(cache, LOADER) == truth
    assert small_cache.unfinished(place) == []


def test_any_call_that_fails_leaves_what_was_stored(whole, memory):
    """No space, quota and a broken device, in turn."""
    codes = itertools.cycle([errno.ENOSPC, errno.EDQUOT, errno.EIO])
    code = next(codes)

    def fails():
        raise OSError(code, os.strerror(code))

    def fill_watched(place, steps):
        with steps.watched():
            fill(dk.SignalCache(place, small_cache.RECIPE), LOADER, shard_bytes=700)

    steps = Steps(None, fails)
    fill_watched(memory / "whole", steps)
    refused = 0
    for at, name in enumerate(steps.names):
        place, code = memory / str(at), next(codes)
        try:
            fill_watched(place, Steps(at, fails))
        except CacheError as error:
            problem = str(error)
        else:
            problem = None
        if problem is None:
            assert name in ("mkdir", "unlink", "link")  # done otherwise, or not needed
        else:
            assert os.strerror(code) in problem
            assert str(place) in problem
            refused += 1
        assert name == "unlink" or small_cache.unfinished(place) == [], (at, name)
        goes_on(place, whole[1])
    assert refused > len(steps.names) / 2


def test_a_full_disk_leaves_what_was_stored(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (disk / "else").write_bytes(bytes(48 * 1024))
        cache = dk.SignalCache(disk / "cache", small_cache.RECIPE)
        with pytest.raises(CacheError, match="cannot be written .No space left on device.*goes on"):
            fill(cache, iter(LOADER), shard_bytes=700)
        assert small_cache.unfinished(disk / "cache") == []
        assert 0 < len(cache) < len(whole[1])
        (disk / "else").unlink()
        goes_on(disk / "cache", whole[1])
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_grows_too_large_leaves_what_was_stored(whole, tmp_path):
    """The system itself stops a write half-way."""
    resource = pytest.importorskip("resource")
    place = tmp_path / "cache"
    cache = dk.SignalCache(place, small_cache.RECIPE)
    fill(cache, LOADER[:3], shard_bytes=700)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(CacheError, match="cannot be written .File too large"):
            fill(cache, LOADER, shard_bytes=700)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert small_cache.unfinished(place) == []
    assert len(cache) == 6
    goes_on(place, whole[1])


# ------------------------------------------------------------------------- a fill that is stopped


def modes(backbone):
    return [module.training for module in backbone.model.modules()]


@pytest.mark.parametrize("where", ["the model", "the loader", "a write"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, MemoryError, RuntimeError("broken")], ids=repr
)
def test_what_stops_a_fill_leaves_cache_and_model_whole(error, where, whole, tmp_path):
    backbone = small_cache.teacher()
    backbone.model.train()
    backbone.model.encoder.eval()
    before = modes(backbone)
    calls = itertools.count()

    def stop(*_):
        if next(calls) == 4:
            raise error

    def loader():
        for batch in LOADER:
            if where == "the loader":
                stop()
            yield batch

    with ExitStack() as stack:
        if where == "the model":
            handle = backbone.model.register_forward_pre_hook(stop)
            stack.callback(handle.remove)
        if where == "a write":
            stack.enter_context(mock.patch.object(os, "fsync", stop))
        cache = dk.SignalCache(tmp_path, small_cache.RECIPE)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            cache.fill(backbone, loader(), shard_bytes=700, progress=False)
    assert modes(backbone) == before
    assert small_cache.unfinished(tmp_path) == []
    assert 0 < len(cache) < len(whole[1])
    goes_on(tmp_path, whole[1])


@forks
def test_a_worker_that_dies_leaves_cache_and_model_whole(found):
    result = found("a_worker_dies")
    assert "worker" in result["error"]
    assert result["modes_as_before"]
    assert result["stored"] > 0


# ------------------------------------------------------------- copies, workers, threads, handles


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_reads_the_same(copied, whole):
    place, truth = whole
    cache = dk.SignalCache(place, small_cache.RECIPE)
    assert small_cache.read(cache, LOADER) == truth
    other = copied(cache)
    assert small_cache.read(other, LOADER) == truth
    assert small_cache.read(cache, LOADER) == truth


@pytest.mark.parametrize("context", [pytest.param("fork", marks=[forks, may_fork]), "spawn"])
def test_workers_join_the_signals(context, whole):
    place, truth = whole
    cache = dk.SignalCache(place)
    loader = DataLoader(
        LOADER, batch_size=1, collate_fn=cache.joining(small_cache.only), num_workers=1,
        multiprocessing_context=context,
    )  # fmt: skip
    found = {}
    for batch in loader:
        found |= small_cache.bits(batch["teacher_signals"], batch["id"])
    assert found == truth


@pytest.fixture(scope="module")
def hundreds(tmp_path_factory):
    """More shards than a process may have open files."""
    place = tmp_path_factory.mktemp("hundreds") / "cache"
    loader = small_cache.batches(150)
    with mock.patch.object(os, "fsync"):
        fill(dk.SignalCache(place, small_cache.RECIPE), loader, shard_bytes=1)
    assert len(small_cache.shards(place)) == 300
    return place, loader


def test_threads_read_hundreds_of_shards_at_once(hundreds):
    place, loader = hundreds
    cache = dk.SignalCache(place)
    truth = small_cache.read(cache, loader)
    cache._index._may_open = 3  # so that files are closed under other threads

    def work(seed):
        mixed = random.Random(seed).sample(loader, 40)
        return all(x == truth[key] for key, x in small_cache.read(cache, mixed).items())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def handles():
    return [int(one.name) for one in Path("/dev/fd").iterdir()]


def test_few_handles_are_enough(hundreds):
    resource = pytest.importorskip("resource")
    place, loader = hundreds
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(handles()) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * used + 8, before[1]))
    try:
        cache = dk.SignalCache(place)
        found = small_cache.read(cache, loader)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(found) == 300
    assert found == small_cache.read(dk.SignalCache(place), loader)


def test_files_are_let_go(hundreds):
    place, loader = hundreds
    cache = dk.SignalCache(place)
    small_cache.read(cache, loader)
    opened = len(handles())
    cache.verify()
    assert len(handles()) == opened
    del cache
    gc.collect()
    assert len(handles()) < opened - 100


def test_every_event_of_the_table_is_tested():
    for event in EVENTS:
        for name in event.tests.split():
            assert callable(globals()[name]), name
