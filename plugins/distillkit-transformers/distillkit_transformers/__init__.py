"""Adapters of distillkit for vision-language models of transformers."""
