"""Whether an example is what the teacher saw: no other example, and no false alarm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distillkit as dk
from distillkit._cache.inputs import fingerprints
from distillkit.errors import CacheError
from tests.support import cached
from tests.support.cached import ATTENTION, LOGITS, collate, distiller_of, recipe_of

RECIPE = recipe_of(LOGITS, ATTENTION)
FEW = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@pytest.fixture
def cache(tmp_path):
    return cached.filled(tmp_path, RECIPE, cached.examples())


def changed(entry, change):
    """The batch of four examples with one entry changed."""
    batch = collate(cached.examples()[:4])
    batch[entry] = change(batch[entry].clone())
    return batch


def one_number(x):
    x[2].flatten()[0] += 1
    return x


CHANGES = {
    "pixels of another size": ("pixels", lambda x: x[:, :3]),
    "pixels of another scale": ("pixels", lambda x: x * (1 + 1e-6)),
    "pixels turned around": ("pixels", lambda x: x.flip(1)),
    "pixels in half precision": ("pixels", lambda x: x.half()),
    "one pixel": ("pixels", one_number),
    "another word": ("ids", one_number),
    "words in another order": ("ids", lambda x: x[:, [1, 0, *range(2, x.shape[1])]]),
    "images of other texts": ("pixels", lambda x: x.roll(1, 0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_the_teacher_did_not_see_is_refused(name, cache):
    entry, change = CHANGES[name]
    batch = changed(entry, change)
    with pytest.raises(CacheError, match=f"'{entry}' is not what the teacher saw") as caught:
        cache.signals(batch)
    for fix in (
        "seed",
        "fill another cache",
        f"student_{entry}",
        "inputs=\\(\\)".replace("\\", ""),
    ):
        assert fix in str(caught.value)
    with pytest.raises(CacheError, match=f"'{entry}'"):
        distiller_of(cache, RECIPE)(batch)


def test_swapped_ids_are_refused(cache):
    batch = collate(cached.examples()[:4])
    batch["id"] = [batch["id"][i] for i in (1, 0, 2, 3)]
    with pytest.raises(
        CacheError, match=r"in 2 of 4 examples \(\"x0\", \"x1\"\)|\(\"x1\", \"x0\"\)"
    ):
        cache.signals(batch)


def test_another_number_of_words_is_refused_whatever_is_compared(tmp_path):
    some = cached.examples()
    cached.filled(tmp_path, RECIPE, some)
    cache = dk.SignalCache(tmp_path, inputs=())
    some[0]["ids"] = torch.tensor([1, 2, 3, 4, 5])
    with pytest.raises(CacheError, match="stored with 2 tokens, and 'mask' of the batch marks 5"):
        cache.signals(collate(some[:2]))


@pytest.mark.parametrize("padding", [{"length": 9}, {"left": True}, {"fill": 7, "length": 8}])
def test_padding_raises_no_alarm(padding, cache):
    cache.signals(collate(cached.examples()[1:5], **padding))


def test_the_dtype_of_whole_numbers_raises_no_alarm(cache):
    for dtype in (torch.int32, torch.int16, torch.uint8):
        cache.signals(changed("ids", lambda x, to=dtype: x.to(to)))
    cache.signals(changed("mask", lambda x: x.long()))


def test_entries_of_the_teachers_own_are_compared_in_place_of_the_shared_ones(cache):
    batch = collate(cached.examples()[:4])
    batch["teacher_pixels"], batch["pixels"] = batch["pixels"], torch.zeros(4, 4, 6)
    cache.signals(batch)
    batch["teacher_pixels"] = batch["teacher_pixels"] + 1
    with pytest.raises(CacheError, match="'pixels' is not what the teacher saw"):
        cache.signals(batch)


def test_entries_of_the_students_own_are_not_compared(cache):
    batch = collate(cached.examples()[:4])
    batch["student_pixels"] = torch.zeros(4, 4, 6)
    cache.signals(batch)
    distiller_of(cache, RECIPE)(batch)


def test_a_batch_without_anything_to_compare_is_refused(cache):
    ids = cached.examples()[0]["id"]
    with pytest.raises(CacheError, match=r"nothing shows .*'ids', 'mask', 'pixels'.*inputs=\(\)"):
        cache.signals({"id": [ids]})
    assert cache.signals([ids])["logits"].shape == (1, 3)


def test_inputs_may_be_chosen(tmp_path):
    cached.filled(tmp_path, RECIPE, cached.examples())
    other = changed("pixels", torch.zeros_like)
    dk.SignalCache(tmp_path, inputs=()).signals(other)
    dk.SignalCache(tmp_path, inputs=("ids",)).signals(other)
    with pytest.raises(CacheError, match="'ids' is not"):
        dk.SignalCache(tmp_path, inputs=("ids",)).signals(changed("ids", one_number))
    with pytest.raises(CacheError, match=r"'id_s' are not in .*'ids', 'mask', 'pixels'"):
        dk.SignalCache(tmp_path, inputs=("id_s",)).signals(other)
    with pytest.raises(CacheError, match="nothing shows"):
        dk.SignalCache(tmp_path, inputs=("ids",)).signals(
            {k: x for k, x in other.items() if k != "ids"}
        )


def test_a_mask_that_the_teacher_does_not_read_leaves_nothing_out(cache):
    """Whether it is there at filling, at reading or at both."""
    batch = changed("ids", one_number)
    words = torch.zeros_like(batch["mask"])
    words[:, 0] = True
    with pytest.raises(CacheError, match="'ids'"):
        cache.signals({"answer_mask": ~words, **batch})
    cache.signals({"answer_mask": words, **collate(cached.examples()[:4])})


# the fingerprint itself


def of(x, **masks):
    names = ["x", *masks]
    return fingerprints({"x": x, **masks}, names, names)["x"]


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)
DTYPES = st.sampled_from(
    [
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.uint8, torch.bool, torch.complex64,
    ]
)  # fmt: skip
ROUND = [0.0, 0.5, 1.0, 2.0, -1.0, -2.0, 4.0, 1e4]


@st.composite
def tensors(draw):
    """Of round numbers, which have few bits."""
    shape = [draw(st.integers(1, 3)), *draw(SHAPES)]
    count = torch.Size(shape).numel()
    values = draw(st.lists(st.sampled_from(ROUND), min_size=count, max_size=count))
    return torch.tensor(values).reshape(shape).to(draw(DTYPES))


@FEW
@given(tensors(), st.data())
def test_any_changed_element_changes_its_example_alone(x, data):
    place = data.draw(st.integers(0, x.numel() - 1))
    other = x.clone()
    flat = other.view(-1)
    if x.dtype == torch.bool:
        flat[place] = ~flat[place]
    else:
        flat[place] = 3
    before, after = of(x), of(other)
    example = place // x[0].numel()
    assert [a != b for a, b in zip(before, after, strict=True)] == [
        i == example for i in range(len(x))
    ]


@FEW
@given(tensors(), st.data())
def test_elements_that_change_places_change_the_fingerprint(x, data):
    first = x[:1]
    one, other = (data.draw(st.integers(0, first.numel() - 1)) for _ in range(2))
    swapped = first.clone()
    flat, given_ = swapped.view(-1), first.reshape(-1)
    flat[one], flat[other] = given_[other], given_[one]
    assert (of(first) == of(swapped)) == torch.equal(first, swapped)


@FEW
@given(tensors(), st.data())
def test_rows_that_change_places_change_the_fingerprint(x, data):
    axis = data.draw(st.integers(1, x.ndim - 1))
    order = data.draw(st.permutations(range(x.shape[axis])))
    swapped = x.index_select(axis, torch.tensor(order))
    assert (of(x) == of(swapped)) == torch.equal(x, swapped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64])
def test_rows_and_columns_that_change_places_change_the_fingerprint(dtype):
    image = torch.arange(16).reshape(1, 4, 4, 1).to(dtype)
    assert of(image) != of(image.transpose(1, 2))
    assert of(image) != of(image.transpose(2, 3))


@FEW
@given(tensors(), st.data())
def test_zeros_at_the_end_of_any_axis_change_nothing(x, data):
    more = [data.draw(st.integers(0, 2)) for _ in x.shape[1:]]
    padded = x.new_zeros([len(x), *(n + m for n, m in zip(x.shape[1:], more, strict=True))])
    padded[tuple(slice(n) for n in x.shape)] = x
    assert of(padded) == of(x)


@FEW
@given(st.lists(st.integers(-3, 9), min_size=1, max_size=6), st.data())
def test_what_a_mask_leaves_out_changes_nothing_at_either_end(words, data):
    before, after = (data.draw(st.integers(0, 3)) for _ in range(2))
    fill = data.draw(st.lists(st.integers(0, 9), min_size=before + after, max_size=before + after))
    row = torch.tensor([[*fill[:before], *words, *fill[before:]]])
    mask = torch.tensor([[0] * before + [1] * len(words) + [0] * after])
    plain = torch.tensor([words])
    ones = torch.ones_like(plain)
    assert of(row, x_mask=mask) == of(plain, x_mask=ones)
    place = data.draw(st.integers(0, len(words) - 1))
    plain[0, place] += 1
    assert of(row, x_mask=mask) != of(plain, x_mask=ones)
    longer = torch.tensor([[*words, 0]])
    assert of(row, x_mask=mask) != of(longer, x_mask=torch.ones_like(longer))


def test_a_mask_belongs_to_the_entries_of_its_name_whatever_their_lengths():
    """An encoder's text and a decoder's may have one length by chance."""
    names = ["input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"]
    mask = torch.tensor([[1, 1, 1, 0]])
    other = torch.tensor([[1, 1, 0, 0]])
    text = torch.tensor([[5, 6, 7, 1]])
    answer = torch.tensor([[8, 9, 1, 1]])
    alike = dict(zip(names, (text, mask, answer, other), strict=True))
    longer = {
        "input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3),
        "decoder_input_ids": torch.tensor([[8, 9]]), "decoder_attention_mask": torch.ones(1, 2),
    }  # fmt: skip
    for order in (names, names[::-1]):
        batch = {name: alike[name] for name in order}
        assert fingerprints(batch, names[::2], names) == fingerprints(longer, names[::2], names)
    # a decoder without a mask of its own does not take the encoder's
    lone = {name: alike[name] for name in names[:3]}
    wider = {**lone, "attention_mask": torch.ones(1, 9)}
    assert fingerprints(lone, names[2:3], names) == fingerprints(wider, names[2:3], names)


def test_whole_numbers_beyond_32_bits_are_told_apart():
    x = torch.tensor([[7, -1]])
    assert of(x) == of(x.int())
    assert of(x) != of(x + 2**32)
    assert of(torch.tensor([[2**40]])) != of(torch.tensor([[0]]))
