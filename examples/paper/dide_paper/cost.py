"""What a training costs by count: operations, memory and disk, from sizes alone.

Nothing here was measured. Operations are those of the matrix products, two for each multiplication
and addition, and a backward is two forwards. Activations are Korthikanti et al., *Reducing
Activation Recomputation in Large Transformer Models*, 2022, https://arxiv.org/abs/2205.05198,
equation 1, in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers as hf
from distillkit_transformers import ViltDualEncoder, ViltDualEncoderConfig

from .tasks import TASKS, TEXT_LENGTH, Task
from .teachers import KINDS

EXAMPLES = {
    "vqa": 444_000, "ve": 529_527, "nlvr2": 86_373, "retrieval": 29_000, "pretraining": 113_293,
}  # fmt: skip
"""Of VQAv2_train, snli-ve-shuffled, NLVR2's own training set, Flickr30k and MS-COCO-unique."""

PATCHES = 12 * 16
"""Of a picture of 640 x 480."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a transformer; by default those of ViLT-B/32."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    patch: int = 32 * 32 * 3


BASE = Sizes()


def operations(tokens: int, sizes: Sizes = BASE) -> int:
    """Of one sequence through all layers."""
    d = sizes.width
    products = tokens * (8 * d * d + 4 * d * sizes.inner)
    attention = 4 * tokens * tokens * d
    return sizes.layers * (products + attention)


def activations(tokens: int, sizes: Sizes = BASE) -> int:
    """Bytes that one sequence keeps for its backward, attention maps included."""
    d = sizes.width
    return sizes.layers * (34 * tokens * d + 5 * sizes.heads * tokens * tokens)


def embedding(patches: int, sizes: Sizes = BASE) -> int:
    """Operations of turning an image's patches into tokens."""
    return 2 * patches * sizes.patch * sizes.width


@dataclass(frozen=True)
class Cost:
    """The cost of one task.

    Attributes:
        student: parameters.
        teacher: parameters.
        forward: operations of the student's forward, of one example.
        beside: operations of the teacher's forward, of one example.
        kept: bytes of activations of one example.
        signals: bytes of the teacher's queries and keys of one example, in float32.
        examples: of an epoch.
        epochs: of the training.
    """

    student: int
    teacher: int
    forward: int
    beside: int
    kept: int
    signals: int
    examples: int
    epochs: int

    @property
    def operations(self) -> int:
        """Of the whole training: the student three times, the teacher once."""
        return self.examples * self.epochs * (3 * self.forward + self.beside)

    def hours(self, rate: float) -> float:
        """On a device that does ``rate`` operations a second."""
        return self.operations / rate / 3600

    def memory(self, batch: int) -> int:
        """Bytes on a device: weights, gradients and AdamW in float32, the teacher, activations."""
        return 16 * self.student + 4 * self.teacher + batch * self.kept

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint to resume from: weights and AdamW's two means."""
        return 12 * self.student


def cost_of(task: Task, patches: int = PATCHES) -> Cost:
    """The cost of a task with pictures of so many patches."""
    image, joint = patches + 1, TEXT_LENGTH + patches + 1
    texts, images = task.candidates, task.images
    passes = max(texts, images)  # of the teacher: every text with every image
    student, teacher = _parameters(task)
    return Cost(
        student=student,
        teacher=teacher,
        forward=texts * operations(TEXT_LENGTH) + images * (operations(image) + embedding(patches)),
        beside=passes * (operations(joint) + embedding(patches)),
        kept=texts * activations(TEXT_LENGTH) + images * activations(image),
        signals=passes * 2 * joint * BASE.width * 4,
        examples=EXAMPLES[task.name],
        epochs=task.epochs or 1,
    )


def _parameters(task: Task) -> tuple[int, int]:
    config = ViltDualEncoderConfig(task=task.name)
    of_teacher = hf.ViltConfig(
        num_labels=config.num_labels, num_images=task.images,
        modality_type_vocab_size=1 + task.images,
    )  # fmt: skip
    with torch.device("meta"):
        student, teacher = ViltDualEncoder(config), KINDS[task.name](of_teacher)
    return sum(p.numel() for p in student.parameters()), sum(
        p.numel() for p in teacher.parameters()
    )


def table(rate: float = 100e12, batch: int = 32) -> str:
    """The costs of all tasks, in Markdown.

    Args:
        rate: operations that a device does in a second: its peak times the part that is reached.
        batch: examples at a time on a device.
    """
    head = (
        "task", "examples", "epochs", "parameters, student and teacher", "operations",
        f"hours at {rate / 1e12:g} TFLOP/s", f"memory at {batch} examples", "checkpoint",
        "signal cache",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for task in TASKS.values():
        cost = cost_of(task)
        is_stored = not task.is_drawn and task.images == 1
        rows.append((
            task.name,
            f"{cost.examples:,}",
            f"{cost.epochs}" if task.epochs else "unknown; 1 here",
            f"{cost.student / 1e6:.0f} M, {cost.teacher / 1e6:.0f} M",
            f"{cost.operations:.1e}",
            f"{cost.hours(rate):.1f}",
            f"{cost.memory(batch) / 1e9:.0f} GB",
            f"{cost.checkpoint / 1e9:.1f} GB",
            f"{cost.examples * cost.signals / 1e9:,.0f} GB" if is_stored else "none",
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
