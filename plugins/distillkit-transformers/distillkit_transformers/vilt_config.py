"""The configuration of two towers that start from one ViLT checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformers import ViltConfig

from distillkit.errors import OptionError, did_you_mean

Task = Literal["vqa", "ve", "nlvr2", "retrieval", "pretraining"]

CLASSES: dict[str, int] = {"vqa": 3129, "ve": 3, "nlvr2": 2, "retrieval": 1, "pretraining": 2}
"""Task -> its number of classes, where the configuration says nothing else.

Pre-training predicts words: its number is not used.
"""


class ViltDualEncoderConfig(ViltConfig):  # type: ignore[no-untyped-call]
    """What a :class:`ViltDualEncoder` is made of: ViLT's own configuration, and the task.

    Args:
        task: ``"vqa"`` (3129 answers), ``"ve"`` (3 relations), ``"nlvr2"`` (2 answers about two
            images), ``"retrieval"`` (a score), ``"pretraining"`` (masked words).
        hidden_dropout_prob: of embeddings, attention outputs and both layers of every MLP. ViLT
            was trained with 0.1, which is the default here; transformers' ViLT has 0.
        config: the other fields of ``ViltConfig``. ``num_labels`` or ``id2label`` change the
            number of classes.

    Raises:
        OptionError: a task that does not exist; several classes for retrieval.

    Examples:
        >>> ViltDualEncoderConfig(task="ve").num_labels
        3
        >>> ViltDualEncoderConfig(task="nlvr2").image_types
        2
    """

    model_type = "vilt_dual_encoder"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["text_embeds", "image_embeds"]

    def __init__(self, task: str = "vqa", hidden_dropout_prob: float = 0.1, **config: Any) -> None:
        if task not in CLASSES:
            raise OptionError(
                f"task is one of {', '.join(map(repr, CLASSES))}; got {task!r}; "
                f"{did_you_mean(task, CLASSES)}"
            )
        if config.get("id2label") is None:
            config.setdefault("num_labels", CLASSES[task])
        super().__init__(hidden_dropout_prob=hidden_dropout_prob, **config)
        self.task = task
        if task == "retrieval" and self.num_labels != 1:
            raise OptionError(
                f"retrieval has one score for a pair; got num_labels = {self.num_labels}"
            )

    @property
    def image_types(self) -> int:
        """How many images an example has, each with a token type of its own."""
        return 2 if self.task == "nlvr2" else 1
