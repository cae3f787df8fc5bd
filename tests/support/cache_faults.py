"""What is done to a signal cache in the tests, and what must come of it: a table of the documents."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import distillkit as dk
from tests.support import small_cache
from tests.support.small_cache import shards

FoundBy = Literal["opening", "any reading", "reading the example", "nobody: it changes nothing"]

SHARD = "the examples of that shard, until the next fill"
NOTHING = "nothing"
REFUSAL = "an error that names the shard"


class Damage(NamedTuple):
    """Files that are changed behind a cache's back.

    Attributes:
        what: was done.
        change: does it to the folder of a cache with several shards.
        found_by: whoever notices first.
        lost: what has to be computed again.
        returned: what a reader gets.
        verified: how many shards ``verify`` names.
    """

    what: str
    change: Callable[[Path], None]
    found_by: FoundBy = "any reading"
    lost: str = SHARD
    returned: str = REFUSAL
    verified: int = 1


class Event(NamedTuple):
    """Something that happens to processes.

    Attributes:
        what: happens.
        lost: what has to be computed again.
        returned: what a reader gets.
        found_by: whoever notices first.
        tests: functions of ``tests/cache/test_faults.py``.
    """

    what: str
    lost: str
    returned: str
    found_by: str
    tests: str


def flipped(path: Path, at: int) -> None:
    """One bit of one byte is another."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


def regions(path: Path) -> dict[str, tuple[int, int]]:
    """Where the parts of a shard's file begin and end."""
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:size])
    metadata = data.index(b"__metadata__")
    found = {"length": (0, 8), "header": (8, metadata), "metadata": (metadata, size)}
    for name, entry in table.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            found[name] = (size + start, size + stop)
    return found


def second(place: Path) -> Path:
    """The shard that is damaged: neither the first nor the last."""
    return shards(place)[1]


def in_region(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        start, stop = regions(second(place))[name]
        flipped(second(place), (start + stop) // 2)

    return change


def _last_byte(place: Path) -> None:
    flipped(second(place), -1)


def _name(place: Path) -> None:
    writer, number, digest, ending = second(place).name.split(".")
    other = ("0" if digest[0] != "0" else "1") + digest[1:]
    second(place).rename(place / f"{writer}.{number}.{other}.{ending}")


def _number(place: Path) -> None:
    _, _, digest, ending = second(place).name.split(".")
    second(place).rename(place / f"somebody.000777.{digest}.{ending}")


def _names_swapped(place: Path) -> None:
    one, other = shards(place)[1:3]
    aside = place / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _of_another_teacher(place: Path) -> None:
    other = place.parent / "other"
    cache = dk.SignalCache(other, small_cache.RECIPE)
    batches = small_cache.batches(6)
    cache.fill(small_cache.teacher(seed=1), batches, shard_bytes=700, progress=False)
    second(place).unlink()
    second(other).rename(place / second(other).name)


def cut(kept: Callable[[Path], int]) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        os.truncate(second(place), kept(second(place)))

    return change


def _appended(place: Path) -> None:
    with second(place).open("ab") as file:
        file.write(b"\0")


def _deleted(place: Path) -> None:
    second(place).unlink()


def _doubled(place: Path) -> None:
    _, _, digest, ending = second(place).name.split(".")
    (place / f"copy.000000.{digest}.{ending}").write_bytes(second(place).read_bytes())


def _header(replaced: bytes, by: bytes) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        data = (place / "cache.json").read_bytes()
        assert data.count(replaced) >= 1
        (place / "cache.json").write_bytes(data.replace(replaced, by, 1))

    return change


def _empty_header(place: Path) -> None:
    (place / "cache.json").write_bytes(b"")


def _no_header(place: Path) -> None:
    (place / "cache.json").unlink()


def _length(path: Path) -> int:
    return regions(path)["length"][1]


BY_EXAMPLE = {"found_by": "reading the example"}
HARMLESS = {
    "found_by": "nobody: it changes nothing",
    "lost": NOTHING,
    "returned": "everything, as it was",
    "verified": 0,
}
OF_THE_HEADER = {
    "found_by": "opening",
    "lost": "nothing: without the file, the next fill writes the same header again",
    "returned": "an error that names `cache.json`",
    "verified": 0,
}
NUMBERS = {
    **BY_EXAMPLE,
    "returned": "an error that names shard, array and example; all other examples as they were",
}

DAMAGES = (
    Damage("a bit of a shard's length field", in_region("length")),
    Damage("a bit of a shard's header: an array's name, type or place", in_region("header")),
    Damage("a bit of a shard's metadata: keys, lengths, checksums", in_region("metadata")),
    Damage("a bit of a shard's logits", in_region("logits"), **NUMBERS),
    Damage("a bit of a shard's attention", in_region("attention.text_to_image/1/log_p"), **NUMBERS),
    Damage("a bit of a shard's last byte", _last_byte, **NUMBERS),
    Damage("the checksum in a shard's name", _name),
    Damage("writer and number in a shard's name", _number, **HARMLESS),
    Damage(
        "the names of two shards swapped",
        _names_swapped,
        lost="the examples of both shards, until the next fill",
        verified=2,
    ),
    Damage("a shard cut to nothing", cut(lambda _: 0)),
    Damage("a shard cut within its length field", cut(lambda _: 5)),
    Damage("a shard cut after its length field", cut(_length)),
    Damage("a shard cut within its header", cut(lambda _: 100)),
    Damage("a shard cut within its numbers", cut(lambda path: path.stat().st_size - 40)),
    Damage("a shard without its last byte", cut(lambda path: path.stat().st_size - 1)),
    Damage("a byte appended to a shard", _appended),
    Damage("a shard of another teacher in the place of one", _of_another_teacher),
    Damage(
        "a shard deleted",
        _deleted,
        **BY_EXAMPLE,
        returned="an error that names the examples; all others as they were",
        verified=0,
    ),
    Damage("a shard copied under another name", _doubled, **HARMLESS),
    Damage("a value in `cache.json`", _header(b'"exact"', b'"int8"'), **OF_THE_HEADER),
    Damage("the checksum in `cache.json`", _header(b'sum": "', b'sum": "0'), **OF_THE_HEADER),
    Damage("`cache.json` emptied", _empty_header, **OF_THE_HEADER),
    Damage(
        "`cache.json` deleted",
        _no_header,
        **{**OF_THE_HEADER, "returned": "an error that says to fill it"},
    ),
)

EVENTS = (
    Event(
        "a process killed at 50 random moments (`kill -9`)",
        "at most the shard being written",
        "everything before, to the bit",
        "the next fill, which goes on",
        "test_fifty_kills_at_random_lose_a_shard_each_at_most",
    ),
    Event(
        "a process killed before each call that changes a file, and half-way through each write",
        "at most the shard being written",
        "everything before, to the bit",
        "the next fill, which goes on and removes what is unfinished",
        "test_a_kill_at_any_step_of_writing_loses_a_shard_at_most",
    ),
    Event(
        "a disk that is full (a file system of 64 kB; a limit for a file's size)",
        "at most the shard being written",
        "everything before, to the bit",
        "fill, with an error that says so",
        "test_a_full_disk_leaves_what_was_stored test_a_file_that_grows_too_large_leaves_what_was_stored",
    ),
    Event(
        "each call that changes a file fails, one after the other: no space, quota, device",
        "at most the shard being written",
        "everything before, to the bit",
        "fill, with an error that says so",
        "test_any_call_that_fails_leaves_what_was_stored",
    ),
    Event(
        "reading fails: the device, a shard cut short or deleted while it is open",
        NOTHING,
        REFUSAL,
        "reading the example",
        "test_a_disk_that_cannot_be_read_is_named test_a_shard_that_vanishes_under_a_reader_is_named "
        "test_a_file_that_changes_under_a_reader_is_an_error_and_no_end",
    ),
    Event(
        "Ctrl-C, an error in the model or the loader, no memory, a dead worker of the loader",
        "at most the shard being written",
        "everything before; the model in its modes",
        "fill, with that error",
        "test_what_stops_a_fill_leaves_cache_and_model_whole test_a_worker_that_dies_leaves_cache_and_model_whole",
    ),
    Event(
        "a second writer of one name",
        NOTHING,
        "everything",
        "the second fill, which is refused",
        "test_two_writers_of_one_name_are_refused",
    ),
    Event(
        "ranks side by side, with shares of their own or the same examples",
        NOTHING,
        "everything, to any number of processes",
        "nobody: it is allowed",
        "test_ranks_fill_side_by_side_and_any_number_of_processes_reads "
        "test_ranks_that_fill_the_same_examples_do_no_harm",
    ),
    Event(
        "reading while another process writes",
        NOTHING,
        "whole examples, or an error that names those that are not there yet",
        "nobody: it is allowed",
        "test_a_reader_sees_whole_examples_while_a_writer_writes",
    ),
    Event(
        "a worker that outlives its killed writer",
        "at most the shard being written",
        "everything before, to the bit",
        "nobody: it holds no lock",
        "test_a_worker_that_outlives_a_killed_writer_keeps_nobody_out",
    ),
)
