"""Needs a spec of a distillkit of the future."""

from distillkit import SpecOfTheFuture  # noqa: F401
