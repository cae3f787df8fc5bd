"""The cost model of the kernels against what the interpreter counts while it runs them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton (pip install triton)")

from distillkit.losses._tiled._triton import attention, support
from distillkit.losses._tiled._triton.geometry import Geometry
from distillkit.losses._tiled.comparison import Kind, Leaves, Pair, Side, Sides

ROOT = Path(__file__).parents[3]
TILES = {
    "values": Geometry(32, 16, 4, 1),
    "queries": Geometry(16, 32, 4, 1),
    "keys": Geometry(16, 16, 4, 1),
}


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("roofline")


@pytest.fixture
def counted(monkeypatch):
    """What the interpreter does: products' operations, powers, bytes read and written."""
    from triton.runtime import interpreter

    builder, found = interpreter.interpreter_builder, {}

    def count(name, measure):
        original = getattr(builder, name)

        def counting(*args, **kwargs):
            key, number = measure(*args)
            found[key] = found.get(key, 0) + number
            return original(*args, **kwargs)

        monkeypatch.setattr(builder, name, counting)

    def size(handle):
        return handle.dtype.scalar.element_ty.primitive_bitwidth // 8

    count("create_dot", lambda a, b, *_: ("operations", 2 * a.data.size * b.data.shape[1]))
    count("create_exp2", lambda x: ("powers", x.data.size))
    count("create_masked_load", lambda at, mask, *_: ("read", int(mask.data.sum()) * size(at)))
    count(
        "create_masked_store", lambda at, x, mask, *_: ("written", int(mask.data.sum()) * size(at))
    )
    return found


@pytest.mark.skipif(not support.IS_INTERPRETED, reason="kernels are interpreted here alone")
@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
@pytest.mark.parametrize("step", ["values", "queries", "keys"])
@pytest.mark.parametrize("shape", [(1, 2, 50, 70, 16), (2, 1, 16, 20, 24)])
def test_the_model_counts_what_the_interpreter_does(step, shape, roofline, counted):
    b, h, n, m, d = shape
    dtype = torch.float16
    sides = [
        Side(*(torch.randn(b, h, x, d, dtype=dtype) for x in (n, m)), None, None, 1.0)
        for _ in range(2)
    ]
    pair = Pair(*sides, None, Kind("kl"))
    value, statistics = torch.zeros(b, h, n), torch.ones(6 * b * h * n)
    if step == "values":
        launches = attention.value_launches(pair, value, statistics, TILES[step])
    else:
        gradients = Leaves(
            torch.empty(b, h, n, d, dtype=dtype) if step == "queries" else None,
            torch.empty(b, h, m, d, dtype=dtype) if step == "keys" else None,
            None,
        )
        found = Sides(gradients, Leaves(None, None, None))
        launches = attention.slope_launches(pair, statistics, value, found, TILES[step])
    for launch in launches:
        launch.run(value)
    expected = roofline.kernel_counts(roofline.Shape(*shape), dtype.itemsize, TILES)[step]
    assert counted == {x: getattr(expected, x) for x in ("operations", "powers", "read", "written")}
    assert expected.memory <= expected.read + expected.written


def test_the_textbook_is_counted_by_its_operations(roofline):
    """Two maps of scores are written by products of 2 d operations each, and read by many more."""
    shape = roofline.Shape(1, 1, 64, 64, 8)
    operations, forward = roofline.naive_work(shape, torch.float32)
    products = [x for _, x in operations if x]
    assert products == [2 * 64 * 64 * 8] * 4
    assert [x for _, x in operations[:forward] if x] == products[:2]
    maps = sum(size for size, _ in operations) / (64 * 64 * 4)
    assert 20 < maps < 40


def test_the_documents_show_what_the_model_says(roofline):
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for one in roofline.tables().values():
        assert one in text, (
            "python benchmarks/roofline.py --json build/roofline.json; python -m tools.performance_tables build/roofline.json"
        )
