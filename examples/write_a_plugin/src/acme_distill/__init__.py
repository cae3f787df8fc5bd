"""Acme's backbone for distillkit. Nothing is imported here: a listing imports this package."""
