"""Listing this package stays light, and everything that it names is there."""

from distillkit import testing


def test_plugin():
    testing.assert_plugin("acme_distill.plugin")


def test_everything_was_looked_at():
    results = testing.check_plugin("acme_distill.plugin")
    assert [result.name for result in results] == [
        "loads",
        "light",
        "names",
        "adapter acme",
        "loss jeffreys_divergence",
        "recipe acme",
    ]
