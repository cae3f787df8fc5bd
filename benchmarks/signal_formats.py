"""Ways to keep the signals of examples in files: what `signal_cache.py` compares."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

PER_FILE = 256

Numbers = dict[str, np.ndarray]
"""Name -> the numbers of one example."""

Reader = Callable[[Sequence[int]], list[Numbers]]


class Format(NamedTuple):
    """One way.

    Attributes:
        name: of the format, and how it is used.
        needs: the module that it comes from.
        write: folder, examples.
        open: folder -> a function that reads the examples at some positions.
    """

    name: str
    needs: str
    write: Callable[[Path, Sequence[Numbers]], None]
    open: Callable[[Path], Reader]

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


def bring_to_disk(folder: Path) -> None:
    """fsync of every file and folder, which most formats leave to whoever writes them."""
    for path in [folder, *folder.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _in_files(examples: Sequence[Numbers]) -> list[Sequence[Numbers]]:
    return [examples[i : i + PER_FILE] for i in range(0, len(examples), PER_FILE)]


def _tensors(example: Numbers) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(x) for name, x in example.items()}


def _arrays(example: dict[str, torch.Tensor]) -> Numbers:
    return {name: x.numpy() for name, x in example.items()}


# torch.save


def _write_dicts(folder: Path, examples: Sequence[Numbers]) -> None:
    for i, example in enumerate(examples):
        torch.save(_tensors(example), folder / f"{i}.pt")


def _open_dicts(folder: Path) -> Reader:
    return lambda rows: [_arrays(torch.load(folder / f"{i}.pt")) for i in rows]


def _write_lists(folder: Path, examples: Sequence[Numbers]) -> None:
    for i, some in enumerate(_in_files(examples)):
        torch.save([_tensors(one) for one in some], folder / f"{i}.pt")


def _open_lists(folder: Path) -> Reader:
    files: dict[int, list[dict[str, torch.Tensor]]] = {}

    def read(rows: Sequence[int]) -> list[Numbers]:
        for row in rows:
            file = row // PER_FILE
            if file not in files:
                files[file] = torch.load(folder / f"{file}.pt", mmap=True)
        # a copy: what is mapped would be read later, by somebody else's clock
        return [
            {name: x.numpy().copy() for name, x in files[row // PER_FILE][row % PER_FILE].items()}
            for row in rows
        ]

    return read


# safetensors, a tensor for each example and name


def _write_safetensors(folder: Path, examples: Sequence[Numbers]) -> None:
    from safetensors.numpy import save_file

    for i, some in enumerate(_in_files(examples)):
        named = {f"{row}/{name}": x for row, one in enumerate(some) for name, x in one.items()}
        save_file(named, folder / f"{i}.safetensors")


def _open_safetensors(folder: Path) -> Reader:
    from safetensors import safe_open

    files = {int(path.stem): safe_open(path, "np") for path in folder.iterdir()}
    names = sorted({key.partition("/")[2] for key in files[0].keys()})  # noqa: SIM118

    def read(rows: Sequence[int]) -> list[Numbers]:
        return [
            {n: files[row // PER_FILE].get_tensor(f"{row % PER_FILE}/{n}") for n in names}
            for row in rows
        ]

    return read


# zarr 3: an array for each name, end to end, with where each example ends


def _write_zarr(folder: Path, examples: Sequence[Numbers]) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    for name in examples[0]:
        flat = np.concatenate([one[name].reshape(-1) for one in examples])
        ends = np.cumsum([0, *(one[name].size for one in examples)])
        for end, values, chunk, per_file in (("", flat, 1 << 14, 256), ("-ends", ends, 1 << 14, 1)):
            array = zarr.create_array(
                folder / f"{name}{end}", shape=values.shape, dtype=values.dtype,
                chunks=(chunk,), shards=(chunk * per_file,),
                compressors=[ZstdCodec(), Crc32cCodec()],
            )  # fmt: skip
            array[:] = values


def _open_zarr(folder: Path) -> Reader:
    import zarr

    names = sorted(path.name for path in folder.iterdir() if not path.name.endswith("-ends"))
    arrays = {name: zarr.open_array(folder / name, mode="r") for name in names}
    ends = {name: zarr.open_array(folder / f"{name}-ends", mode="r")[:] for name in names}
    return lambda rows: [
        {name: x[ends[name][row] : ends[name][row + 1]] for name, x in arrays.items()}
        for row in rows
    ]


# Parquet and Arrow: a column of bytes for each name


def _columns(examples: Sequence[Numbers]) -> dict[str, list[bytes]]:
    return {name: [one[name].tobytes() for one in examples] for name in examples[0]}


def _write_parquet(folder: Path, examples: Sequence[Numbers]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for i, some in enumerate(_in_files(examples)):
        parquet.write_table(
            pa.table(_columns(some)), folder / f"{i}.parquet", row_group_size=1,
            use_dictionary=False, compression="none", write_page_checksum=True,
        )  # fmt: skip


def _open_parquet(folder: Path) -> Reader:
    from pyarrow import parquet

    files = {
        int(path.stem): parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        for path in folder.iterdir()
    }

    def one(row: int) -> Numbers:
        table = files[row // PER_FILE].read_row_group(row % PER_FILE, use_threads=False)
        return {
            name: np.frombuffer(table[name][0].as_buffer(), np.float32)
            for name in table.column_names
        }

    return lambda rows: [one(row) for row in rows]


def _write_datasets(folder: Path, examples: Sequence[Numbers]) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({name: datasets.Value("binary") for name in examples[0]})
    made = datasets.Dataset.from_dict(_columns(examples), features=features)
    made.save_to_disk(folder, num_shards=len(_in_files(examples)))


def _open_datasets(folder: Path) -> Reader:
    import datasets

    found = datasets.load_from_disk(folder)

    def read(rows: Sequence[int]) -> list[Numbers]:
        columns = found[list(rows)]
        return [
            {name: np.frombuffer(x[i], np.float32) for name, x in columns.items()}
            for i in range(len(rows))
        ]

    return read


FORMATS = (
    Format("torch.save, a dict for each example", "torch", _write_dicts, _open_dicts),
    Format("torch.save, 256 in a file, mapped", "torch", _write_lists, _open_lists),
    Format(
        "safetensors, 256 in a file, no checksums",
        "safetensors",
        _write_safetensors,
        _open_safetensors,
    ),
    Format("zarr 3, zstd and crc32c in shards", "zarr", _write_zarr, _open_zarr),
    Format(
        "Parquet, a row group for each example, page checksums",
        "pyarrow",
        _write_parquet,
        _open_parquet,
    ),
    Format(
        "Hugging Face datasets (Arrow), 256 in a file",
        "datasets",
        _write_datasets,
        _open_datasets,
    ),
)
