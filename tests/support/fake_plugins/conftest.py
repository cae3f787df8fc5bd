"""Distributions for the plugin tests, many of them broken: nothing here is a test."""

collect_ignore_glob = ["*"]
