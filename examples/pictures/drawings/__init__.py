"""Real drawings of named things, and four tasks on scenes of them, without a hub."""

from . import tasks
from .pictures import OUT, Concept, Pictures, load
from .scenes import COVERED, EMPTY, compose

__all__ = ["COVERED", "EMPTY", "OUT", "Concept", "Pictures", "compose", "load", "tasks"]
