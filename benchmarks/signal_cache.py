"""What a teacher's signals take on disk, and how fast they are written and read there.

    python benchmarks/signal_cache.py --json signal_cache.json

A ViLT-B/32 that has learned nothing gives the signals that the recipe "dide" compares: its scores
are spread to a standard deviation of 2 and its logits to one of 4, as learned ones roughly are.
To be filled quickly it has one block with a small MLP, which changes no shape; what a forward costs
is measured on all twelve. Files are brought to the disk by every format (fsync), and are read from
the operating system's memory.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import arguments, report, table, timed
from signal_formats import FORMATS, PER_FILE, Format, Numbers, Reader, bring_to_disk
from torch import Tensor
from torch.utils.data import DataLoader

import distillkit as dk

# the benchmark gives one writer and one index the same ready numbers as other formats have
from distillkit._cache.filling import Writer
from distillkit._cache.identity import HEADER, Header
from distillkit._cache.index import Index
from distillkit._cache.shard import Example
from distillkit._cache.store import Store

BATCH, TEXT, IMAGE, HEADS, CLASSES = 64, 40, 145, 12, 3129
SHORTEST, LONGEST = 4, 14  # real words of a question: 9 in the mean
WORKERS = 2
FLIPS, FLIPPED_EXAMPLES = 40, 16
INDEXED = 100_000
SIGNALS = {"attention.text_to_image": "t2i", "attention.image_to_text": "i2t", "logits": "logits"}
OURS = "distillkit"


def teacher(depth: int, mlp: int) -> transformers.ViltForQuestionAnswering:
    torch.manual_seed(0)
    config = transformers.ViltConfig(
        num_hidden_layers=depth, intermediate_size=mlp, num_labels=CLASSES, max_image_length=-1
    )
    model = transformers.ViltForQuestionAnswering(config).eval()
    for block in model.vilt.encoder.layer:
        for projection in (block.attention.attention.query, block.attention.attention.key):
            torch.nn.init.normal_(projection.weight, std=(2 / config.hidden_size) ** 0.5)
    with torch.no_grad():
        model.classifier[-1].weight.mul_(8)
    return model


def batches(examples: int) -> list[dict[str, Tensor]]:
    """Questions of their own; the images of all batches are the same, which changes no cost."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH, 3, 384, 384, generator=generator)
    found = []
    for start in range(0, examples, BATCH):
        lengths = torch.randint(SHORTEST, LONGEST + 1, (BATCH, 1), generator=generator)
        mask = (torch.arange(TEXT) < lengths).long()
        words = torch.randint(1000, 30_000, (BATCH, TEXT), generator=generator)
        whole = {
            "id": torch.arange(start, start + BATCH),
            "input_ids": words * mask,
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(mask),
            "pixel_values": pixels,
            "pixel_mask": torch.ones(BATCH, 384, 384, dtype=torch.long),
        }
        found.append({name: x[: examples - start] for name, x in whole.items()})
    return found


# how many bytes


CHOICES = {
    "attention": {
        "map": "map, float32",
        "map:float16": "map, float16",
        "uint8": "map, logarithms in uint8",
        "exact": "queries and keys, float32",
        "bfloat16": "queries and keys, bfloat16",
        "float16": "queries and keys, float16",
        "int8": "queries and keys, int8",
    },
    "logits": {
        "exact": "float32",
        "bfloat16": "bfloat16",
        "float16": "float16",
        "int8": "int8",
        **{f"top_k:{k}": f"{k} most probable, and the rest" for k in (8, 16, 32, 64, 128, 256)},
    },
}
ALLOWED = (0.0, 1e-4, 1e-3, 1e-2)


def sizes(backbone: dk.Backbone, batch: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Signal -> coding -> bytes of an example and mean error in nats; what is chosen by itself."""
    found: dict[str, Any] = {name: {} for name in SIGNALS}

    def estimate(**how: Any) -> Any:
        return dk.SignalCache(folder / "estimated", "dide", **how).estimate(backbone, [batch])

    rounds = max(map(len, CHOICES.values()))
    for i in range(rounds):
        codings = {}
        for name in SIGNALS:
            choices = list(CHOICES["logits" if name == "logits" else "attention"])
            codings[name] = choices[i % len(choices)]
        # a coding that was chosen may have any finite error
        for one in estimate(codings=codings).signals:
            found[one.name][codings[one.name]] = {"bytes": one.bytes, "error": one.error}
    chosen = {}
    for error in ALLOWED:
        made = estimate(error=error)
        chosen[error] = {
            "bytes": made.bytes_per_example,
            "codings": {one.name: f"{one.form}, {one.coding}" for one in made.signals},
            "errors": {one.name: one.error for one in made.signals},
        }
    return {"signals": found, "chosen": chosen}


def tables_of_sizes(found: Mapping[str, Any]) -> dict[str, str]:
    rows = []
    for name, codings in found["signals"].items():
        words = CHOICES["logits" if name == "logits" else "attention"]
        first = next(iter(codings.values()))["bytes"]
        for coding, one in codings.items():
            part, error = one["bytes"] / first, one["error"]
            rows.append([f"`{name}`", f'`"{coding}"`', words[coding], f"{one['bytes']:,.0f}",
                         f"{part:.2f}", f"{error:.1e}" if error else "0"])  # fmt: skip
    chosen = [
        [
            f"{error:g}",
            f"{one['bytes']:,.0f}",
            *[f"{one['codings'][name]} ({one['errors'][name]:.0e})" for name in SIGNALS],
        ]
        for error, one in found["chosen"].items()
    ]
    return {
        "Bytes of an example, and the mean KL divergence of what is read from what was given": table(
            ["signal", "coding", "what is written", "bytes", "part of the first", "nats"], rows
        ),
        "What is chosen for `error=`, with all that is kept beside the numbers": table(
            ["error", "bytes", *[f"`{name}` (nats)" for name in SIGNALS]], chosen
        ),
    }


# files


def example_numbers(cache: dk.SignalCache, batch: Mapping[str, Tensor]) -> list[Numbers]:
    """What a cache holds of a batch's examples, as plain arrays without padding."""
    signals = cache.signals(batch["id"])
    lengths = batch["attention_mask"].sum(-1).tolist()
    text, image = (
        signals[f"attention.{name}"][-1].scores().transpose(1, 2).numpy()
        for name in ("text_to_image", "image_to_text")
    )
    logits = signals["logits"].numpy()
    # of its own: a view of a batch would be saved with the whole batch
    return [
        {
            "t2i": text[i, :n].reshape(-1).copy(),
            "i2t": image[i, :, :, :n].reshape(-1).copy(),
            "logits": logits[i].copy(),
        }
        for i, n in enumerate(lengths)
    ]


def padded(examples: Sequence[Numbers]) -> dict[str, Tensor]:
    """The batch that a cache gives, from the arrays of its examples."""
    b = len(examples)
    text = torch.full((b, TEXT, HEADS, IMAGE), -torch.inf)
    image = torch.full((b, IMAGE, HEADS, TEXT), -torch.inf)
    logits = torch.empty((b, CLASSES))
    for i, one in enumerate(examples):
        rows = one["t2i"].reshape(-1, HEADS, IMAGE)
        text.numpy()[i, : len(rows)] = rows
        image.numpy()[i, ..., : len(rows)] = one["i2t"].reshape(IMAGE, HEADS, -1)
        logits.numpy()[i] = one["logits"]
    return {"t2i": text.transpose(1, 2), "i2t": image.transpose(1, 2), "logits": logits}


def ours(cache: dk.SignalCache, count: int) -> Format:
    """A cache's writer, given the numbers that other formats are given."""
    header = cache.header
    parts = [part for signal in header.signals for part in signal.every_part()]
    index = Index(Store(cache.place, None, {}))
    index.refresh()
    ready = index.examples([str(i) for i in range(count)], parts)

    def write(folder: Path, examples: Sequence[Numbers]) -> None:
        store = Store(folder, None, {})
        store.write(HEADER, header.to_bytes())
        writer = Writer(store, "rank-0", 0, header, 1 << 62, lambda _: None)
        for start in range(0, len(examples), PER_FILE):
            writer.add(ready[start : min(start + PER_FILE, len(examples))])
            writer.flush()

    def open_folder(folder: Path) -> Reader:
        store = Store(folder, None, {})
        Header.from_bytes(store.read(HEADER), str(folder))
        index = Index(store)
        index.refresh()
        short = {part.name: SIGNALS[part.name.partition("/")[0]] for part in parts}
        return lambda rows: [
            {short[name]: x.view(np.float32) for name, x in one.arrays.items()}
            for one in index.examples([str(row) for row in rows], parts)
        ]

    return Format(OURS, "safetensors", write, open_folder)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Joined:
    """A collate function of a DataLoader's workers: each opens the files for itself."""

    def __init__(self, one: Format, folder: Path) -> None:
        self._format, self._folder = one, folder
        self._read: Reader | None = None

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        if self._read is None:
            self._read = self._format.open(self._folder)
        return padded(self._read(rows))


def with_ids(rows: list[int]) -> dict[str, Tensor]:
    return {"id": torch.tensor(rows)}


def through_workers(collate: Callable[[list[int]], Any], order: Sequence[int]) -> float:
    """Examples in a second through the workers of a DataLoader, once they are at work."""
    loader = DataLoader(
        list(order), BATCH, collate_fn=collate, num_workers=WORKERS, persistent_workers=True,
        multiprocessing_context="fork", timeout=120,
    )  # fmt: skip
    rates = []
    for _ in range(4):
        began = time.perf_counter()
        count = sum(1 for _ in loader) * BATCH
        rates.append(min(count, len(order)) / (time.perf_counter() - began))
    return statistics.median(rates[1:])


class Timed:
    """Rounds of one step: their clock and CPU seconds."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def add(self, step: Callable[[], object]) -> None:
        wall, cpu = timed(step, "cpu")
        self.wall.append(wall)
        self.cpu.append(cpu)

    def medians(self) -> tuple[float, float]:
        return statistics.median(self.wall), statistics.median(self.cpu)


def compare(
    formats: Sequence[Format], examples: Sequence[Numbers], rounds: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Each format: bytes, files, and the seconds of filling and of reading in random order."""
    order = random.Random(0).sample(range(len(examples)), len(examples))
    folders, filling = fill_all(formats, examples, rounds, folder)
    opening, reading = read_all(formats, examples, rounds, folders, order)
    gc.collect()
    return {
        one.name: {
            "bytes": size_of(folders[one.name]) / len(examples),
            "files": sum(path.is_file() for path in folders[one.name].rglob("*")),
            "fill": filling[one.name].medians(),
            "fills": filling[one.name].wall,
            "read": reading[one.name].medians(),
            "reads": reading[one.name].cpu,
            "opened": opening[one.name].wall[0],
            "workers": through_workers(Joined(one, folders[one.name]), order),
        }
        for one in formats
    }


def fill_all(
    formats: Sequence[Format], examples: Sequence[Numbers], rounds: int, folder: Path
) -> tuple[dict[str, Path], dict[str, Timed]]:
    """Where each format's last files are, and how long each round took."""
    folders: dict[str, Path] = {}
    filling = {one.name: Timed() for one in formats}
    for number in range(rounds):
        for i, one in enumerate(formats):
            place = folders[one.name] = folder / f"{number}-{i}"
            place.mkdir()

            def write(one: Format = one, place: Path = place) -> None:
                one.write(place, examples)
                bring_to_disk(place)

            filling[one.name].add(write)
    return folders, filling


def read_all(
    formats: Sequence[Format],
    examples: Sequence[Numbers],
    rounds: int,
    folders: Mapping[str, Path],
    order: Sequence[int],
) -> tuple[dict[str, Timed], dict[str, Timed]]:
    """How long it takes to open each format's files, and to read them in an order."""
    opening, reading = ({one.name: Timed() for one in formats} for _ in range(2))
    readers: dict[str, Reader] = {}
    for one in formats:

        def open_it(one: Format = one) -> None:
            readers[one.name] = one.open(folders[one.name])
            readers[one.name](order[:1])

        opening[one.name].add(open_it)
        check_same(one.name, padded(readers[one.name](order[:BATCH])), examples, order[:BATCH])
    for _ in range(rounds):
        for one in formats:

            def read(one: Format = one) -> None:
                for start in range(0, len(order), BATCH):
                    padded(readers[one.name](order[start : start + BATCH]))

            reading[one.name].add(read)
    return opening, reading


def check_same(
    name: str, batch: Mapping[str, Tensor], examples: Sequence[Numbers], rows: Sequence[int]
) -> None:
    """The same numbers, or the comparison means nothing."""
    wanted = padded([examples[row] for row in rows])
    for signal, x in batch.items():
        assert torch.equal(x, wanted[signal]), (name, signal)


def flips(one: Format, examples: Sequence[Numbers], folder: Path) -> dict[str, int]:
    """A byte is changed, everything is read: noticed, wrong numbers, or nothing changed."""
    folder.mkdir()
    few = examples[:FLIPPED_EXAMPLES]
    one.write(folder, few)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    ends = np.cumsum([path.stat().st_size for path in files])
    found = {"noticed": 0, "wrong": 0, "unchanged": 0}
    for at in np.linspace(0, ends[-1] - 1, FLIPS).astype(int):
        file = int(np.searchsorted(ends, at, side="right"))
        offset = int(at - (ends[file - 1] if file else 0))
        with flipped(files[file], offset):
            found[outcome(one, few, folder)] += 1
    return found


@contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    """One byte of a file with one bit changed."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[offset] ^= 0x10
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)


def outcome(one: Format, examples: Sequence[Numbers], folder: Path) -> str:
    try:
        read = one.open(folder)(range(len(examples)))
    except Exception:  # any error tells that something is wrong
        return "noticed"
    same = all(
        np.array_equal(x.view(np.uint32), found[name].view(np.uint32))
        for example, found in zip(examples, read, strict=True)
        for name, x in example.items()
    )
    return "unchanged" if same else "wrong"


# distillkit's own


def filled(
    backbone: dk.Backbone, data: Sequence[Mapping[str, Tensor]], folder: Path, error: float
) -> tuple[dk.SignalCache, dict[str, Any]]:
    """A cache, and the CPU seconds of an example that are not the model's forward."""
    cache = dk.SignalCache(folder, "dide", error=error)
    moments: list[float] = []
    hooks = [
        backbone.model.register_forward_pre_hook(lambda *_: moments.append(time.process_time())),
        backbone.model.register_forward_hook(lambda *_: moments.append(time.process_time())),
    ]
    began = time.process_time()
    done = cache.fill(backbone, data, shard_bytes=1 << 25, progress=False)
    seconds = time.process_time() - began
    for hook in hooks:
        hook.remove()
    forward = sum(moments[1::2]) - sum(moments[::2])
    return cache, {
        "examples": done.stored,
        "bytes": done.bytes / done.stored,
        "seconds": (seconds - forward) / done.stored,
    }


def read_by_user(
    cache: dk.SignalCache, data: Sequence[Mapping[str, Tensor]], rounds: int
) -> dict[str, float]:
    """CPU seconds of an example, by what of the batch is compared with what the teacher saw."""
    names = {
        "by keys, nothing compared": {"id"},
        "words compared": {"id", "attention_mask", "input_ids", "token_type_ids"},
        "words and pixels compared": set(data[0]),
    }
    count = sum(len(batch["id"]) for batch in data)
    keys = torch.randperm(count)
    found = {}
    for what, entries in names.items():
        rounds_of_it = Timed()
        for _ in range(rounds):
            views = [{n: x for n, x in batch.items() if n in entries} for batch in data]
            if entries == {"id"}:
                views = [{"id": some} for some in keys.split(BATCH)]

            def read(views: Any = views) -> None:
                for view in views:
                    cache.signals(view["id"] if len(view) == 1 else view)

            rounds_of_it.add(read)
        found[what] = rounds_of_it.medians()[1] / count
    return found


def memory_of_index(cache: dk.SignalCache, folder: Path, per_shard: int) -> dict[str, float]:
    """What opening a large cache takes: the headers of shards as large as 64 MiB ones are.

    The examples have no tokens and no classes: the index holds none of their numbers.
    """
    header = cache.header
    parts = [part for signal in header.signals for part in signal.every_part()]
    axes = [axis.name for signal in header.signals for axis in signal.axes]
    nothing = {part.name: np.empty(0, np.uint32) for part in parts}
    folder.mkdir()
    store = Store(folder, None, {})
    writer = Writer(store, "rank-0", 0, header, 1 << 62, lambda _: None)
    zeros, none = dict.fromkeys(axes, 0), dict.fromkeys(axes)
    for start in range(0, INDEXED, per_shard):
        rows = range(start, min(start + per_shard, INDEXED))
        inputs = [dict.fromkeys(header.compared, hash(row)) for row in rows]
        writer.add([
            Example(str(row), nothing, zeros, zeros, none, one)
            for row, one in zip(rows, inputs, strict=True)
        ])  # fmt: skip
        writer.flush()
    rounds = Timed()
    for _ in range(3):
        rounds.add(Index(store).refresh)
    gc.collect()
    tracemalloc.start()  # which slows down what it watches
    index = Index(store)
    index.refresh()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(index) == INDEXED
    return {
        "memory": held / INDEXED,
        "header": size_of(folder) / INDEXED,
        "seconds": rounds.medians()[1] / INDEXED,
        "per_shard": per_shard,
    }


def forward_seconds() -> float:
    """CPU seconds of an example, in all twelve blocks."""
    model = teacher(12, 3072)
    batch = {name: x[:4] for name, x in batches(4)[0].items() if name != "id"}
    rounds = Timed()
    with torch.no_grad():
        for _ in range(3):
            rounds.add(lambda: model(**batch))
    return rounds.medians()[1] / 4


# tables


def tables_of_formats(
    found: Mapping[str, Any], flipped_bytes: Mapping[str, Any], missing: Sequence[str], count: int
) -> dict[str, str]:
    first = next(iter(found.values()))
    writing, reading = [], []
    for name, one in found.items():
        wall, cpu = one["fill"]
        ratio = statistics.median(a / b for a, b in zip(first["fills"], one["fills"], strict=True))
        writing.append([
            name, f"{one['bytes']:,.0f}", str(one["files"]),
            f"{one['bytes'] * count / wall / 1e6:,.0f}", f"{count / wall:,.0f}", f"{ratio:.2f}",
            f"{1e6 * cpu / count:,.0f}",
        ])  # fmt: skip
        wall, cpu = one["read"]
        ratio = statistics.median(a / b for a, b in zip(first["reads"], one["reads"], strict=True))
        flips_of_it = flipped_bytes[name]
        reading.append([
            name, f"{count / wall:,.0f}", f"{1e6 * cpu / count:,.0f}", f"{ratio:.2f}",
            f"{one['workers']:,.0f}", f"{one['workers'] / first['workers']:.2f}",
            f"{1000 * one['opened']:,.0f}",
            f"{flips_of_it['noticed']} of {FLIPS}", str(flips_of_it["wrong"]),
        ])  # fmt: skip
    for name in missing:
        writing.append([name, *["not installed"] * 6])
        reading.append([name, *["not installed"] * 8])
    return {
        f"Writing {count} examples that are ready, fsync included": table(
            ["format", "bytes of an example", "files", "MB/s", "examples/s", "times the first",
             "CPU µs an example"], writing
        ),
        f"Reading them in random order, {BATCH} at a time, padded; a bit flipped in each of "
        f"{FLIPS} places": table(
            ["format", "examples/s", "CPU µs an example", "times the first (CPU)",
             f"examples/s, {WORKERS} workers", "times the first", "opened in ms", "noticed",
             "wrong numbers"], reading
        ),
    }  # fmt: skip


def tables_of_ours(found: Mapping[str, Any]) -> dict[str, str]:
    model = found["teacher"]
    rows = [["the teacher's forward, 12 blocks", f"{1 / model:,.2f}", f"{1000 * model:,.2f}", "1"]]
    for name, seconds in found["steps"].items():
        rows.append([name, f"{1 / seconds:,.0f}", f"{1000 * seconds:,.3f}",
                     f"{seconds / model:.1e}"])  # fmt: skip
    index = found["index"]
    return {
        "`SignalCache` against the teacher itself, CPU time of one thread": table(
            ["step", "examples/s", "ms an example", "part of the forward"], rows
        ),
        f"Opening a cache of {INDEXED:,} examples, {index['per_shard']} in a shard": table(
            ["what", "an example"],
            [
                ["memory of a process", f"{index['memory']:,.0f} bytes"],
                ["headers that are read", f"{index['header']:,.0f} bytes"],
                ["time (CPU)", f"{1e6 * index['seconds']:,.1f} µs"],
            ],
        ),
    }


def steps_of_ours(
    data: Sequence[Mapping[str, Tensor]],
    caches: Mapping[float, tuple[dk.SignalCache, dict[str, Any]]],
    rounds: int,
) -> dict[str, float]:
    """CPU seconds of an example in each use of a cache."""
    steps: dict[str, float] = {}
    order = random.Random(1).sample(range(len(data) * BATCH), len(data) * BATCH)
    for error, (cache, done) in caches.items():
        few = data[: -(-done["examples"] // BATCH)]
        of = f"error={error:g}, {done['bytes']:,.0f} bytes an example"
        steps[f"fill without the forward; {of}"] = done["seconds"]
        for what, seconds in read_by_user(cache, few, rounds).items():
            steps[f"read, {what}; {of}"] = seconds
        known = [row for row in order if row < done["examples"]]
        cache_of_keys = dk.SignalCache(cache.place, inputs=())
        rate = through_workers(cache_of_keys.joining(with_ids), known)
        steps[f"read by {WORKERS} workers, `joining`, by the clock; {of}"] = 1 / rate
    return steps


def main() -> None:
    options = arguments(__doc__.splitlines()[0], examples=512)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
    if options.examples % BATCH:
        raise SystemExit(f"--examples is a multiple of {BATCH}; got {options.examples}")
    rounds = options.rounds or (1 if options.quick else 3)
    data = batches(options.examples)
    backbone = dk.Backbone(teacher(1, 64))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
        folder = Path(place)
        began = time.perf_counter()

        def say(what: str) -> None:
            print(f"{time.perf_counter() - began:5.0f} s: {what}", flush=True)

        say("sizes")
        some = {name: x[:16] for name, x in data[0].items()}
        found: dict[str, Any] = {"sizes": sizes(backbone, some, folder)}
        say("filling")
        half = data[: max(1, len(data) // 2)]
        caches = {
            0.0: filled(backbone, data, folder / "exact", 0.0),
            1e-3: filled(backbone, half, folder / "coded", 1e-3),
        }
        cache = caches[0.0][0]
        examples = [one for batch in data for one in example_numbers(cache, batch)]
        formats = [one for one in FORMATS if one.is_installed and options.only in one.name]
        missing = [one.name for one in FORMATS if not one.is_installed]
        formats.append(ours(cache, options.examples))
        say(f"{len(formats)} formats; not installed: {', '.join(missing) or 'none'}")
        (folder / "formats").mkdir()
        found["formats"] = compare(formats, examples, rounds, folder / "formats")
        say("flipped bytes")
        found["flips"] = {
            one.name: flips(one, examples, folder / f"flips-{i}") for i, one in enumerate(formats)
        }
        say("distillkit's own steps")
        found["steps"] = steps_of_ours(data, caches, rounds)
        say("an index")
        per_shard = int((1 << 26) / found["formats"][OURS]["bytes"])
        found["index"] = memory_of_index(cache, folder / "index", per_shard)
        say("the teacher")
        found["teacher"] = forward_seconds()
        say("done")
    tables = {
        **tables_of_sizes(found["sizes"]),
        **tables_of_formats(found["formats"], found["flips"], missing, options.examples),
        **tables_of_ours(found),
    }
    report(options, "signal_cache", tables, found)


if __name__ == "__main__":
    main()
