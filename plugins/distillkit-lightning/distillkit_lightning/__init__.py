"""Lightning for distillkit: a module that trains a student, ready for ``Trainer.fit``."""

from .module import DistillationModule

__all__ = ["DistillationModule"]
