"""One training: the student, its teacher or a cache of the teacher's signals, and Trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers as hf
from distillkit_transformers import DistillationTrainer, ViltDualEncoder
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset

import distillkit as dk
from distillkit.errors import OptionError

from .answers import split_by_image, votes_of, vqa_scores
from .augment import Augmented, RandAugment
from .collate import PaperCollator
from .data import Captioned, Examples, captions_of, columns_of, label_order, open_data
from .labels import names_of_model
from .negatives import mine
from .optimizer import make_optimizer
from .retrieval import Scorer
from .tasks import LEARNING_RATE, WARM_UP, Task


def processor_of(source: str) -> Any:
    """The processor of a checkpoint."""
    return hf.ViltProcessor.from_pretrained(source)


def make_student(task: Task, start: str, names: tuple[str, ...] | None) -> ViltDualEncoder:
    """The student of a task, with the teacher's classes."""
    if names is None:
        return ViltDualEncoder.from_vilt(start, task=task.name)
    labels = dict(enumerate(names))
    return ViltDualEncoder.from_vilt(start, task=task.name, id2label=labels)


def class_names(task: Task, teacher: Any, given: list[str] | None) -> tuple[str, ...] | None:
    """The names of the teacher's classes; None: the task has none."""
    if task.is_drawn:
        return None
    return names_of_model(teacher.config, given, exact=task.name == "vqa")


def make_distiller(
    task: Task, student: ViltDualEncoder, teacher: Any, recipe: str | Path | None = None
) -> dk.Distiller:
    """The distiller of a task; its teacher is a model or a cache of one's signals."""
    recipe = dk.load_recipe(task.recipe if recipe is None else recipe)
    cached = isinstance(teacher, dk.SignalCache)
    return dk.Distiller(student, teacher, recipe, ignore=["id"] if cached else [])


def examples_of(
    task: Task, options: Any, names: tuple[str, ...] | None, source: str, split: str
) -> Any:
    """The examples of one split of one data set."""
    data = open_data(source, split, options.data_config if source == options.data else None)
    columns = columns_of(task.name, data.column_names, options.columns)
    if names is None:
        captions = [captions_of(value) for value in data[columns["text"][0]]]
        return Captioned(data, columns, captions, false=task.candidates - 1)
    order = options.data_labels
    if order is None and task.name != "vqa":
        order = label_order(source, data, columns["label"][0])
    return Examples(task.name, data, columns, names, order, key=f"{source}/{split}/")


def training_examples(task: Task, options: Any, names: tuple[str, ...] | None) -> tuple[Any, Any]:
    """The examples to learn from, and those of the last images, or None.

    Of VQA's questions those are left out of whose answers the teacher knows none.
    """
    sources = [(options.data, options.train_split), *options.also]
    parts, held = [], None
    for place, (source, split) in enumerate(sources):
        examples = examples_of(task, options, names, source, split)
        kept = _answered(examples, names) if task.name == "vqa" else range(len(examples))
        if options.hold_out and place == len(sources) - 1:
            before, after = split_by_image(_image_names(examples, options), options.hold_out)
            kept = sorted(set(kept) & set(before))
            held = Subset(examples, after)
        parts.append(examples if len(kept) == len(examples) else Subset(examples, list(kept)))
    train = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    return (Augmented(train, RandAugment()) if options.augment else train), held


def _answered(examples: Any, names: tuple[str, ...] | None) -> list[int]:
    known = set(names or ())
    answers = examples.rows[examples.columns["answers"][0]]
    return [i for i, votes in enumerate(answers) if known & set(votes_of(votes))]


def _image_names(examples: Any, options: Any) -> Any:
    there = examples.rows.column_names
    if options.image_column not in there:
        raise OptionError(
            f"--hold-out counts images by the column {options.image_column!r}; the data has "
            f"{', '.join(there)}: --image-column NAME"
        )
    return examples.rows[options.image_column]


def mine_negatives(examples: Any, student: ViltDualEncoder, processor: Any) -> None:
    """Draw the false captions from those that the student takes for an image's."""
    captioned = examples.examples if isinstance(examples, Augmented) else examples
    column = captioned.columns["image"][0]
    scorer = Scorer(student, processor, captioned.rows, column, captioned.captions)
    captioned.hard = mine(scorer, captioned.captions, captioned.false)


def accumulation(batch: int, device_batch: int) -> int:
    """How many batches make a step of ``batch`` examples, of all processes together.

    Raises:
        OptionError: they do not add up.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    parts, rest = divmod(batch, device_batch * processes)
    if rest or not parts:
        raise OptionError(
            f"a step of {batch} examples is no number of batches of {device_batch} on "
            f"{processes} processes: change --batch or --device-batch"
        )
    return parts


def arguments_of(task: Task, options: Any, *, evaluates: bool) -> hf.TrainingArguments:
    """The paper's schedule: 10 % warm-up, then down to 0 in a line; no clipping."""
    batch = options.batch or task.batch
    device_batch = options.device_batch or batch
    epochs = options.epochs or task.epochs
    if epochs is None and options.max_steps <= 0:
        raise OptionError("how long to pre-train is not known: --epochs or --max-steps")
    return hf.TrainingArguments(
        output_dir=options.out, per_device_train_batch_size=device_batch,
        per_device_eval_batch_size=device_batch,
        gradient_accumulation_steps=accumulation(batch, device_batch),
        num_train_epochs=epochs or 1, max_steps=options.max_steps, learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear", warmup_steps=WARM_UP, max_grad_norm=0.0, bf16=options.bf16,
        fp16=options.fp16, use_cpu=options.cpu, seed=options.seed,
        dataloader_num_workers=options.workers, remove_unused_columns=False, report_to=[],
        logging_steps=options.log_steps, save_strategy=options.save,
        save_steps=options.save_steps, save_total_limit=2,
        eval_strategy="epoch" if evaluates else "no",
        ddp_find_unused_parameters=task.name == "pretraining",
        disable_tqdm=options.quiet,
    )  # fmt: skip


def make_trainer(
    task: Task, options: Any, distiller: dk.Distiller, train: Any, held_out: Any, processor: Any
) -> DistillationTrainer:
    """Trainer with the official optimizer, and the task's metric on ``held_out``."""
    student: Any = distiller.student
    metric = "score" if task.name == "vqa" else "accuracy"
    evaluates = held_out is not None and not task.is_drawn
    return DistillationTrainer(
        distiller=distiller,
        args=arguments_of(task, options, evaluates=evaluates),
        data_collator=PaperCollator(task, processor, mask=options.mask, ids=bool(options.cache)),
        train_dataset=train,
        eval_dataset=held_out if evaluates else None,
        processing_class=processor,
        optimizers=(make_optimizer(student, head_rate=task.head_rate), None),
        preprocess_logits_for_metrics=successes,
        compute_metrics=lambda found: {metric: float(found.predictions.mean())},
    )


def successes(logits: Tensor, labels: Tensor) -> Tensor:
    """What each example counts, ``(b,)``: VQA's score of the first answer, or whether it is right.

    Examples:
        >>> import torch
        >>> successes(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, 1]))
        tensor([1., 0.])
    """
    if labels.is_floating_point():
        return vqa_scores(logits, labels)
    return (logits.argmax(1) == labels).float()


def fill_cache(task: Task, options: Any, teacher: Any, train: Any, processor: Any) -> Any:
    """The teacher's signals of all examples, computed once; a cache that is full is only opened."""
    if options.augment:
        raise OptionError(
            "a cache holds the signals of fixed pictures, and RandAugment changes them in every "
            "epoch: --no-augment with --cache"
        )
    if task.is_drawn or task.images > 1:
        why = (
            "draws captions or words anew each time"
            if task.is_drawn
            else ("has two pairs in an example, and a cache stores one row for each")
        )
        raise OptionError(f"the task {task.name!r} {why}: it takes no --cache")
    cache = dk.SignalCache(options.cache, dk.load_recipe(options.recipe or task.recipe))
    collate = PaperCollator(task, processor, ids=True)
    loader = DataLoader(
        train, batch_size=options.device_batch or 32, collate_fn=collate,
        num_workers=options.workers,
    )  # fmt: skip
    cache.fill(teacher, loader)
    return cache
