"""What a page is made of: distillers in wrappers, kept signals, several teachers, every relation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import distillkit as dk
from distillkit.errors import CaptureError, OptionError, SignalError, UnknownNameError
from tests.support import shown, tiny
from tests.support.shown import TO_IMAGE, TO_TEXT

TERMS = [{"loss": "attention_kl", "on": TO_IMAGE, "layers": "last"}]
FUSION = dk.DeclarativeAdapter(**tiny.FUSION_TABLES)
DUAL = dk.DeclarativeAdapter(**tiny.DUAL_TABLES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def distiller_of(student, teacher, terms=TERMS, **options):
    recipe = dk.Recipe(name="attention", terms=terms)
    options = {"student_adapter": DUAL, "ignore": ["labels"], **options}
    return dk.Distiller(student, teacher, recipe, **options)


def plain():
    return distiller_of(tiny.Dual(), tiny.Fusion(), teacher_adapter=FUSION)


def names(page):
    return [one["name"] for one in shown.facts_of(page.html)["signals"]]


def maps(page, side):
    return [shown.maps_of(page.html, 0, layer, side)[0] for layer in range(2)]


def assert_same(page, expected):
    for side in ("student", "teacher"):
        for one, other in zip(maps(page, side), maps(expected, side), strict=True):
            assert np.abs(one - other).max() <= page.tolerance + expected.tolerance


@pytest.mark.parametrize(
    "wrap",
    [
        DistributedDataParallel,
        lambda distiller: torch.compile(distiller, backend="eager"),
        fully_shard,
    ],
    ids=["ddp", "compile", "fsdp2"],
)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_a_wrapped_distiller_shows_what_is_inside(one_process, wrap):
    distiller = plain()
    expected = dk.view(distiller, batch=tiny.batch())
    wrapped = wrap(distiller)
    assert_same(dk.view(wrapped, batch=tiny.batch()), expected)
    assert distiller.training
    distiller(tiny.batch()).loss.backward()  # it trains on


@pytest.mark.parametrize(
    "wrap",
    [
        DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
        fully_shard,
    ],
    ids=["ddp", "average", "fsdp2"],
)
def test_a_wrapped_student_shows_what_is_inside(one_process, wrap):
    distiller = plain()
    expected = dk.view(distiller, batch=tiny.batch())
    distiller.student = wrap(distiller.student)
    assert_same(dk.view(distiller, batch=tiny.batch()), expected)


@pytest.mark.filterwarnings("ignore:.*NO_SHARD")
def test_fsdp1_is_refused_by_name(one_process):
    whole = ShardingStrategy.NO_SHARD  # all that one process has
    cpu = torch.device("cpu")
    wrapped = FullyShardedDataParallel(plain(), sharding_strategy=whole, device_id=cpu)
    with pytest.raises(OptionError, match=r"FSDP1.*fully_shard \(FSDP2\)"):
        dk.view(wrapped, batch=tiny.batch())


def test_a_student_in_pieces_is_refused():
    distiller = plain()
    pieces = nn.DataParallel(distiller.student)
    pieces.device_ids = [0, 1]
    distiller.student = pieces
    with pytest.raises(CaptureError, match="DataParallel over 2 devices"):
        dk.view(distiller, batch=tiny.batch())


def test_a_model_alone_says_how_its_signals_are_got():
    with pytest.raises(
        OptionError, match=r"the model Dual.*distillkit\.Backbone\(model\)\.signals"
    ):
        dk.view(tiny.Dual(), batch=tiny.batch())


def batches():
    for start in (0, 3):
        yield {**tiny.batch(3, seed=start), "id": list(range(start, start + 3))}


def test_a_kept_teacher_shows_the_layers_that_were_kept(tmp_path):
    teacher = tiny.Fusion()
    recipe = dk.Recipe(name="attention", terms=TERMS)
    cache = dk.SignalCache(tmp_path / "signals", recipe)
    cache.fill(dk.Backbone(teacher, FUSION), batches())
    distiller = distiller_of(tiny.Dual(), cache, ignore=["labels", "id"])
    batch = next(batches())
    page = dk.view(distiller, batch=batch)
    facts = shown.facts_of(page.html)
    assert [one["label"] for one in facts["signals"][0]["layers"]] == ["2"]
    assert any("layer 1, is not shown" in note for note in facts["notes"])
    numbers, *_ = shown.maps_of(page.html, 0, 0, "teacher")
    exact = dk.Backbone(teacher, FUSION).signals(batch)[TO_IMAGE][1].probabilities()
    keys = exact.shape[-1]
    assert np.abs(numbers[..., :keys] - exact.detach().numpy()).max() <= page.tolerance + 1e-6


def test_signals_that_a_batch_brings_are_shown():
    teacher = dk.Backbone(tiny.Fusion().eval(), FUSION)
    batch = tiny.batch()
    with torch.no_grad():
        batch["teacher_signals"] = teacher.signals(batch)
    page = dk.view(distiller_of(tiny.Dual(), None), batch=batch)
    numbers, *_ = shown.maps_of(page.html, 0, 1, "teacher")
    exact = batch["teacher_signals"][TO_IMAGE][1].probabilities().numpy()
    assert np.abs(numbers - exact).max() <= page.tolerance
    with pytest.raises(SignalError, match="has no teacher"):
        dk.view(distiller_of(tiny.Dual(), None), batch=tiny.batch())


def test_one_of_several_teachers_is_named():
    teachers = {"large": tiny.Fusion(), "small": tiny.Fusion()}
    terms = [{**TERMS[0], "teacher": "all", "options": {"temperature": 1.0}}]
    distiller = distiller_of(
        tiny.Dual(), teachers, terms, teacher_adapter=dict.fromkeys(teachers, FUSION)
    )
    for name, teacher in teachers.items():
        page = dk.view(distiller, name, batch=tiny.batch())
        exact = dk.Backbone(teacher, FUSION).signals(tiny.batch())[TO_IMAGE]
        for layer, numbers in enumerate(maps(page, "teacher")):
            off = np.abs(numbers - exact[layer].probabilities().detach().numpy())
            assert off.max() <= page.tolerance
    with pytest.raises(OptionError, match="'large', 'small'; name the one to look at"):
        dk.view(distiller, batch=tiny.batch())
    with pytest.raises(UnknownNameError, match="large"):
        dk.view(distiller, "lage", batch=tiny.batch())
    with pytest.raises(OptionError, match="one teacher, without a name; got 'large'"):
        dk.view(plain(), "large", batch=tiny.batch())


def test_every_relation_of_two_dual_encoders_is_shown():
    ours, theirs = (dk.Backbone(tiny.Dual(), DUAL).signals(tiny.batch()) for _ in range(2))
    page = dk.view(ours, theirs, signals="all")
    assert names(page) == [TO_IMAGE, TO_TEXT, "attention.text", "attention.image"]
    facts = shown.facts_of(page.html)
    for number, name in enumerate(names(page)):
        modalities = [
            facts["axes"][facts["signals"][number][end]]["modality"] for end in ("rows", "keys")
        ]
        within = name.removeprefix("attention.")
        assert modalities == (within.split("_to_") if "_to_" in within else [within, within])
        exact = ours[name][1].probabilities().detach().numpy()
        numbers, *_ = shown.maps_of(page.html, number, 1, "student")
        assert np.abs(numbers - exact).max() <= page.tolerance
    assert names(dk.view(ours, theirs)) == [TO_IMAGE, TO_TEXT]


def test_within_a_joint_stream_derived_signals_are_shown():
    ours, theirs = (dk.Backbone(tiny.Fusion(), FUSION).signals(tiny.batch()) for _ in range(2))
    page = dk.view(ours, theirs, signals="all")
    derived = ["attention.text_to_text", "attention.image_to_image"]
    assert names(page) == [TO_IMAGE, TO_TEXT, *derived]
    asked = dk.view(ours, theirs, signals=derived[:1])
    assert names(asked) == derived[:1]
    numbers, *_ = shown.maps_of(asked.html, 0, 0, "teacher")
    exact = theirs[derived[0]][0].probabilities().detach().numpy()
    assert np.abs(numbers - exact).max() <= asked.tolerance
    with pytest.raises(SignalError, match="shows attention"):
        dk.view(ours, signals=["attention_mass.text_to_image"])
