"""Written for a distillkit of the future."""

DISTILLKIT_API = 99
