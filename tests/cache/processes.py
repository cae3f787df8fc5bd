"""Real processes that fill one cache and are killed, or get in each other's way.

    python -m tests.cache.processes FOLDER

Every process is forked from this one, which has imported torch already and runs no thread. What
each scenario found is written as JSON, or the traceback of its failure.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import distillkit as dk
from distillkit.errors import CacheError
from tests.support import small_cache
from tests.support.failing_steps import Steps
from tests.support.small_cache import Batch, Bits

KILLS = 50
SHARD_BYTES = 900  # a few examples
LOADER = small_cache.batches(12)
EXAMPLES = sum(len(batch["id"]) for batch in LOADER)


def forked(work: Callable[[], None], **environment: str) -> int:
    """The id of a process that does this work, and nothing else."""
    process = os.fork()
    if process:
        return process
    try:
        os.environ.update(environment)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def succeeded(*processes: int) -> bool:
    return all(os.waitpid(process, 0)[1] == 0 for process in processes)


def filling(place: Path, loader: Any = LOADER, **options: Any) -> Callable[[], None]:
    def work() -> None:
        cache = dk.SignalCache(place, small_cache.RECIPE)
        small_cache.fill(cache, loader, **{"shard_bytes": SHARD_BYTES, **options})

    return work


class Counted:
    """Batches; how many of them were used up is known to other processes."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    def __iter__(self) -> Iterator[Batch]:
        for i, batch in enumerate(LOADER):
            yield batch
            self._shared[:8] = (i + 1).to_bytes(8, "little")

    def reset(self) -> None:
        self._shared[:8] = bytes(8)

    @property
    def used(self) -> list[Batch]:
        return LOADER[: int.from_bytes(self._shared[:8], "little")]


def check_after_a_kill(place: Path, truth: Bits, used: list[Batch]) -> dict[str, int]:
    """The cache opens, says nothing wrong, and lacks no more than one shard of what was used."""
    files = small_cache.shards(place)
    found = {"shards": len(files), "unfinished": len(small_cache.unfinished(place))}
    if not (place / "cache.json").exists():
        assert not files
        assert not used
        return {**found, "stored": 0, "lost": 0}
    cache = dk.SignalCache(place)
    there = small_cache.stored(cache, LOADER)
    assert len(there) == len(cache)
    for key, bits in small_cache.read(cache, there).items():
        assert bits == truth[key], key
    assert cache.verify() == []
    lost = cache.missing([key for batch in used for key in batch["id"]])
    size = [_bytes_of(key) for key in range(EXAMPLES)]
    assert sum(size[key] for key in lost) < SHARD_BYTES + max(size), lost
    return {**found, "stored": len(there), "lost": len(lost)}


def _bytes_of(key: int) -> int:
    """Logits, and log-probabilities of each token of the text over four patches in four heads."""
    batch = LOADER[key // 2]
    return 4 * 3 + 4 * 4 * 4 * int(batch["mask"][key % 2].sum())


def check_filled(place: Path, truth: Bits, loader: list[Batch] = LOADER) -> None:
    """The next fill completes, and leaves nothing that is unfinished."""
    assert succeeded(forked(filling(place, loader)))
    assert small_cache.unfinished(place) == []
    cache = dk.SignalCache(place)
    assert cache.verify() == []
    assert small_cache.read(cache, loader) == {
        key: truth[key] for batch in loader for key in batch["id"]
    }


def killed_at_random(folder: Path, truth: Bits) -> dict[str, Any]:
    """Fifty kills: each cache is killed again and again until it is full."""
    draw, counted = random.Random(0), Counted()
    duration = min(_seconds(folder / f"timed-{i}") for i in range(3))
    kills: list[dict[str, int]] = []
    caches = 0
    while len(kills) < KILLS:
        place = folder / str(caches)
        counted.reset()
        process = forked(filling(place, counted))
        time.sleep(draw.uniform(0.05, 0.6) * duration)
        os.kill(process, signal.SIGKILL)
        if os.waitpid(process, 0)[1] == signal.SIGKILL:
            kills.append(check_after_a_kill(place, truth, counted.used))
            # other work makes a fill slower and faster: the moments follow it
            duration *= 1.0 if kills[-1]["shards"] else 1.1
            continue
        duration *= 0.8
        check_filled(place, truth)
        caches += 1
    check_filled(folder / str(caches), truth)
    return {
        "kills": len(kills),
        "lost_at_most": max(one["lost"] for one in kills),
        "with_shards": sum(one["shards"] > 0 for one in kills),
        "while_writing": sum(one["unfinished"] > 0 for one in kills),
    }


def _seconds(place: Path) -> float:
    """How long a fill takes that nobody kills."""
    began = time.perf_counter()
    assert succeeded(forked(filling(place)))
    return time.perf_counter() - began


def killed_at_every_step(folder: Path, truth: Bits) -> dict[str, Any]:
    """A kill before each call that changes a file, and half-way through each write."""
    loader = LOADER[:4]

    def fill_until(place: Path, step: int | None) -> Callable[[], None]:
        def work() -> None:
            steps = Steps(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
            with steps.watched():
                filling(place, loader)()
            (folder / "count").write_text(str(steps.count), encoding="utf-8")

        return work

    assert succeeded(forked(fill_until(folder / "whole", None)))
    count = int((folder / "count").read_text(encoding="utf-8"))
    unfinished = 0
    for step in range(count):
        place = folder / str(step)
        assert os.waitpid(forked(fill_until(place, step)), 0)[1] == signal.SIGKILL
        found = check_after_a_kill(place, truth, [])
        unfinished += found["unfinished"] > 0
        check_filled(place, truth, loader)
    return {"steps": count, "with_unfinished_files": unfinished}


def two_writers(folder: Path, truth: Bits) -> dict[str, Any]:
    """One name, two processes: the second is refused and changes nothing."""
    place, waits, gate = folder / "cache", folder / "waits", folder / "gate"

    def slowly() -> Iterator[Batch]:
        yield from LOADER[:6]
        waits.touch()
        _wait_for(gate.exists)
        yield from LOADER[6:]

    first = forked(filling(place, slowly()))
    _wait_for(waits.exists)
    being_written = place / ".unfinished-rank-0.0123"
    being_written.touch()
    before = sorted(place.iterdir())
    error = ""
    try:
        filling(place)()
    except CacheError as found:
        error = str(found)
    unchanged = before == sorted(place.iterdir())
    # "rank" is how the other's name starts; its unfinished files are not this one's
    another_name = succeeded(forked(filling(place, writer="rank")))
    still_there = being_written.exists()
    gate.touch()
    assert succeeded(first)
    check_filled(place, truth)
    return {
        "error": error,
        "unchanged": unchanged and still_there,
        "another_name": another_name,
    }


def ranks_side_by_side(folder: Path, truth: Bits) -> dict[str, Any]:
    """Two ranks with a share each; one and three processes read it."""
    place = folder / "cache"
    ranks = [
        forked(filling(place, LOADER[rank::2]), RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)
    ]
    assert succeeded(*ranks)
    shards = small_cache.shards(place)
    assert small_cache.read(dk.SignalCache(place), LOADER) == truth

    def reads(share: list[Batch]) -> Callable[[], None]:
        def work() -> None:
            for key, bits in small_cache.read(dk.SignalCache(place), share).items():
                assert bits == truth[key], key

        return work

    assert succeeded(*(forked(reads(LOADER[rank::3]), RANK=str(rank)) for rank in range(3)))
    writers = sorted({path.name.partition(".")[0] for path in shards})
    return {"writers": writers, "unfinished": small_cache.unfinished(place)}


def ranks_with_the_same_examples(folder: Path, truth: Bits) -> dict[str, Any]:
    """Both ranks fill everything: twice the work, and nothing wrong."""
    place = folder / "cache"
    assert succeeded(*(forked(filling(place), RANK=str(rank)) for rank in (0, 1)))
    cache = dk.SignalCache(place)
    assert small_cache.read(cache, LOADER) == truth
    return {"examples": len(cache), "damaged": len(cache.verify())}


def reading_while_writing(folder: Path, truth: Bits) -> dict[str, Any]:
    """A reader meets every example as soon as it is there, or is told that it is not yet."""
    place = folder / "cache"
    writer = forked(filling(place))
    _wait_for((place / "cache.json").exists)
    cache = dk.SignalCache(place)
    refused = others = early = 0
    found: Bits = {}
    deadline = time.monotonic() + 60
    while len(found) < EXAMPLES:
        assert time.monotonic() < deadline
        for batch in LOADER:
            try:
                found |= small_cache.read(cache, [batch])
            except CacheError as error:
                refused += "are not in" in str(error)
                others += "are not in" not in str(error)
        early += len(found) < EXAMPLES
    assert succeeded(writer)
    assert found == truth
    return {"refused": refused, "refused_for_else": others, "early": early}


def a_worker_outlives_its_writer(folder: Path, truth: Bits) -> dict[str, Any]:
    """A loader's worker lives for seconds after a kill; the next fill need not wait for it."""
    place = folder / "cache"
    pids = folder / "worker"

    def work() -> None:
        loader = DataLoader(
            _Examples(pids), batch_size=None, num_workers=1, multiprocessing_context="fork"
        )
        filling(place, loader)()

    writer = forked(work)
    _wait_for(pids.exists)
    _wait_for(lambda: small_cache.shards(place) != [])
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    worker = int(pids.read_text(encoding="utf-8"))
    os.kill(worker, 0)  # it is still there
    try:
        check_filled(place, truth)
    finally:
        os.kill(worker, signal.SIGKILL)
    return {}


def a_worker_dies(folder: Path, truth: Bits) -> dict[str, Any]:
    """As when the system takes its memory: torch raises wherever the writer is just then."""
    place = folder / "cache"

    def work() -> None:
        backbone = small_cache.teacher()
        backbone.model.train()
        backbone.model.encoder.eval()
        before = [module.training for module in backbone.model.modules()]
        loader = DataLoader(
            _Deadly(), batch_size=None, num_workers=1, multiprocessing_context="fork"
        )
        cache = dk.SignalCache(place, small_cache.RECIPE)
        error = ""
        try:
            cache.fill(backbone, loader, shard_bytes=SHARD_BYTES, progress=False)
        except RuntimeError as found:
            error = str(found)
        after = [module.training for module in backbone.model.modules()]
        result = {"error": error, "modes_as_before": before == after, "stored": len(cache)}
        (folder / "result").write_text(json.dumps(result), encoding="utf-8")

    assert succeeded(forked(work))
    result: dict[str, Any] = json.loads((folder / "result").read_text(encoding="utf-8"))
    check_after_a_kill(place, truth, [])
    check_filled(place, truth)
    return result


class _Deadly:
    """A data set whose worker dies at the last batch."""

    def __len__(self) -> int:
        return len(LOADER)

    def __getitem__(self, index: int) -> Batch:
        if index == len(LOADER) - 1:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return LOADER[index]


class _Examples:
    """A data set whose last batch takes forever."""

    def __init__(self, pids: Path) -> None:
        self._pids = pids

    def __len__(self) -> int:
        return len(LOADER)

    def __getitem__(self, index: int) -> Batch:
        unfinished = self._pids.with_suffix(".part")
        unfinished.write_text(str(os.getpid()), encoding="utf-8")
        unfinished.rename(self._pids)
        if index == len(LOADER) - 1:
            time.sleep(60)
        return LOADER[index]


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("another process did not get that far")
        time.sleep(0.001)


SCENARIOS = (
    killed_at_random,
    killed_at_every_step,
    two_writers,
    ranks_side_by_side,
    ranks_with_the_same_examples,
    reading_while_writing,
    a_worker_outlives_its_writer,
    a_worker_dies,
)


def main(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    truth = small_cache.undisturbed(folder / "truth", LOADER)
    results: dict[str, Any] = {}
    for scenario in SCENARIOS:
        own = folder / scenario.__name__
        own.mkdir()
        began = time.perf_counter()
        try:
            results[scenario.__name__] = scenario(own, truth)
        except Exception:
            results[scenario.__name__] = {"failure": traceback.format_exc()}
        sys.stderr.write(f"{scenario.__name__} {time.perf_counter() - began:.1f} s\n")
    return results


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
