"""The adapter says the truth about both models, at more than one image size."""

from acme_distill.models import DualEncoder, FusionEncoder, sample_batch

from distillkit import testing


def fusion():
    return FusionEncoder(), sample_batch()


def fusion_on_tall_images():
    return FusionEncoder(), sample_batch(height=16, width=4)


def dual():
    return DualEncoder(), sample_batch()


@testing.parametrize_with_adapter_checks([fusion, fusion_on_tall_images, dual])
def test_adapter(case, check):
    check(case)
