"""Fingerprints of batches that are too large to be computed at once."""

import torch

from distillkit._cache import inputs


def test_a_large_batch_has_the_fingerprints_of_its_examples_alone():
    torch.manual_seed(0)
    images = torch.randn(5, 3, 260, 260)
    assert images[0].numel() > inputs._AT_ONCE
    seen = torch.ones(5, 300, 300, dtype=torch.long)
    batch = {"pixel_values": images, "pixel_mask": seen, "id": torch.arange(5)}
    whole = inputs.fingerprints(batch, batch, batch)
    alone = [inputs.fingerprints({k: x[i : i + 1] for k, x in batch.items()}, batch, batch)
             for i in range(5)]  # fmt: skip
    for name, numbers in whole.items():
        assert numbers == [one[name][0] for one in alone]
    assert len(set(whole["pixel_values"])) == 5


def test_examples_that_are_computed_together_keep_their_order():
    small = torch.arange(3 * inputs._AT_ONCE, dtype=torch.float32).view(-1, 64)
    batch = {"pixel_values": small}
    found = inputs.fingerprints(batch, batch, batch)["pixel_values"]
    for i in (0, 1, len(small) // 2, len(small) - 1):
        assert inputs.fingerprints({"pixel_values": small[i : i + 1]}, batch, batch) == {
            "pixel_values": [found[i]]
        }
