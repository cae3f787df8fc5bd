"""From texts and images to one flat batch for two models that see them differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import OptionError, SignalError

from .picture import shown_boxes, size_of
from .prompt import Columns, Prompt
from .rendering import Rendering, render, writes_images

__all__ = ["Collator", "shown_boxes", "size_of", "without_spaces"]

_TOKENIZED = (
    "input_ids", "attention_mask", "position_ids", "seq_idx", "seq_lengths", "cu_seq_lens_q",
    "cu_seq_lens_k", "max_length_q", "max_length_k",
)  # fmt: skip


class Collator:
    """Texts and images through the processors of student and teacher, with every token's extent.

    With one processor, the batch holds its entries under their own names. With two, each side's
    stand under ``student_`` and ``teacher_``, where the distiller looks for them first. Beside what
    the processors return there are ``offset_mapping`` (b, n, 2), the characters of every token, and
    ``image_boxes`` (b, 4), the part of every raw image that is shown: what the aligner ``overlap``
    needs.

    An example has a text or a conversation. ``<image>`` in either stands for an image, in messages
    also ``{"type": "image"}``; each processor writes its own tokens there, and its own chat
    template. Characters are counted in what the example says, so that both sides agree.

    Where an example has an answer (the last argument, or an assistant's message) there are
    ``labels`` and, with two processors, ``teacher_labels``: -100 but for the answer and its end.

    Args:
        student: a processor with a fast ``tokenizer`` and an ``image_processor``.
        teacher: the teacher's, where it is another.
        text: the key of an example's text.
        image: the key of its image, or of its list of images.
        messages: the key of its conversation, which stands before the text.
        answer: the key of the answer to the text; None: there is none to learn.
        labels: False leaves labels out.
        max_length: cut texts after this many tokens; None: after what each tokenizer says.

    Every other key of the examples becomes an entry, stacked into a tensor where it can be.

    Raises:
        ValueError: a slow tokenizer, or a processor that does not say where it writes image tokens.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        *,
        text: str = "text",
        image: str = "image",
        messages: str = "messages",
        answer: str | None = None,
        labels: bool = True,
        max_length: int | None = None,
    ) -> None:
        self._sides = {"": student}
        if teacher is not None:
            self._sides = {"student_": student, "teacher_": teacher}
        self._columns = Columns(text, image, messages, answer)
        self._labels, self._max_length = labels, max_length
        for prefix, processor in self._sides.items():
            _check_processor(_side_of(prefix), processor)

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys of an example that it reads itself, for a Trainer that drops unused ones."""
        return self._columns.names

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of these examples.

        Raises:
            SignalError: an example that cannot be read; its number, the entry and the fix.
        """
        others = _other_columns(examples, self.columns)
        prompts = [self._columns.read(number, row) for number, row in enumerate(examples)]
        _check_one_kind(prompts)
        labelled = self._labels and _all_answered(prompts)
        batch: dict[str, Any] = {}
        for prefix, processor in self._sides.items():
            entries = self._side(_side_of(prefix), processor, prompts)
            labels = entries.pop("labels")
            batch |= {f"{prefix}{name}": value for name, value in entries.items()}
            if labelled:
                batch["teacher_labels" if prefix == "teacher_" else "labels"] = labels
        for name in others:
            if name in batch:
                raise SignalError(
                    f"example 0, entry {name!r}: the collator makes an entry of that name: rename "
                    "or remove the column, or leave out its own with Collator(..., labels=False)"
                )
            batch[name] = _stacked([example[name] for example in examples])
        return batch

    def transform(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """One batch of columns, for ``with_transform`` of a dataset that is read in batches.

        Rows of different examples are padded alike, so the dataset has to be asked for a whole
        batch: ``DataLoader(dataset, batch_size=None, sampler=BatchSampler(...))``.
        """
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise SignalError(f"columns are to have one length; got {lengths}")
        rows = zip(*columns.values(), strict=True)
        return self([dict(zip(columns, row, strict=True)) for row in rows])

    def _side(self, side: str, processor: Any, prompts: list[Prompt]) -> dict[str, Any]:
        renderings = [render(side, processor, prompt) for prompt in prompts]
        options = {
            "padding": True,
            "truncation": self._max_length is not None or _limit(processor.tokenizer) is not None,
            "max_length": self._max_length or _limit(processor.tokenizer),
            "return_offsets_mapping": True,
            "return_tensors": "pt",
        }
        bos = processor.tokenizer.bos_token
        if prompts[0].messages and bos is not None and renderings[0].text.startswith(bos):
            options["add_special_tokens"] = False  # the template wrote them
        if writes_images(processor):
            entries, renderings = _joint(side, processor, prompts, renderings, options)
        else:
            entries = _apart(side, processor, prompts, renderings, options)
        ids, offsets = entries["input_ids"], entries["offset_mapping"]
        mask = entries.get("attention_mask")
        if mask is None:  # SigLIP's tokenizer makes none; padding has no characters
            mask = offsets[..., 0] < offsets[..., 1]
        end = processor.tokenizer.eos_token_id
        rows = zip(renderings, ids, offsets, mask, strict=True)
        labels = torch.stack(
            [text.labels(row, where, real, end) for text, row, where, real in rows]
        )
        trimmed = without_spaces(offsets, [rendering.text for rendering in renderings])
        places = zip(renderings, trimmed, strict=True)
        extents = torch.stack([text.extents(row) for text, row in places])
        return {**entries, "offset_mapping": extents, "labels": labels}


def _apart(
    side: str,
    processor: Any,
    prompts: list[Prompt],
    renderings: list[Rendering],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Text and images apart (CLIP, ViLT, BLIP ...): every example has equally many images."""
    words = processor.tokenizer([rendering.text for rendering in renderings], **options)
    wanted = len(prompts[0].images)
    for prompt in prompts:
        if len(prompt.images) != wanted or not wanted:
            raise SignalError(
                f"example {prompt.number}, entry {prompt.pictured!r}, has {len(prompt.images)} "
                f"images, and example 0 has {wanted}: the {side}'s processor, "
                f"{type(processor).__name__}, takes the same number, at least one, for "
                "every example of a batch: fill up or leave out"
            )
    images = [image for prompt in prompts for image in prompt.images]
    sizes = torch.tensor([size_of(image) for image in images])
    shown = {
        **processor.image_processor(images, return_tensors="pt"),
        "image_boxes": shown_boxes(processor.image_processor, sizes),
    }
    if any(prompt.several for prompt in prompts):
        shape = (len(prompts), wanted)
        shown = {name: value.unflatten(0, shape) for name, value in shown.items()}
    return {**words, **shown}


def _joint(
    side: str,
    processor: Any,
    prompts: list[Prompt],
    renderings: list[Rendering],
    words: dict[str, Any],
) -> tuple[dict[str, Any], list[Rendering]]:
    """Images inside the text (LLaVA, Qwen-VL ...): any number for each example."""
    token = processor.image_token
    for prompt, rendering in zip(prompts, renderings, strict=True):
        places = rendering.text.count(token)
        if places != len(prompt.images):
            raise SignalError(
                f"{prompt.name}: the {side}'s text has {places} of {token!r} for "
                f"{len(prompt.images)} images: write '<image>' once for every image, and not the "
                "model's own token; a chat template has to write each image"
            )
    images = [prompt.images for prompt in prompts]
    texts = [rendering.text for rendering in renderings]
    options = {**words, "return_text_replacement_offsets": True}
    given = images if any(images) else None
    try:
        entries = dict(processor(text=list(texts), images=given, **options))
    except ValueError as error:
        if not options["truncation"] or "token count" not in str(error):
            raise
        cut = next((prompt for prompt, text in zip(prompts, texts, strict=True)
                    if not _fits(processor, text, prompt.images, options)), prompts[0])  # fmt: skip
        raise SignalError(
            f"{cut.name}: max_length={options['max_length']} cuts through the {side}'s image "
            "tokens: raise max_length, or give smaller or fewer images"
        ) from error
    replaced = entries.pop("text_replacement_offsets", None) or [()] * len(prompts)
    pairs = zip(renderings, replaced, strict=True)
    expanded = [rendering.expanded(row) for rendering, row in pairs]
    # some processors also change the text, as PaliGemma's, which puts the images before it
    again = processor.tokenizer([rendering.text for rendering in expanded], **words)
    if not torch.equal(again["input_ids"], entries["input_ids"]):
        raise OptionError(_UNSAID.format(side, type(processor).__name__))
    if given is not None:
        sizes = torch.tensor([size_of(image) for row in images for image in row])
        entries["image_boxes"] = shown_boxes(processor.image_processor, sizes)
    return entries, expanded


def _fits(processor: Any, text: str, images: list[Any], options: dict[str, Any]) -> bool:
    """Whether no image token of this example is cut off."""
    try:
        processor(text=[text], images=[images] if images else None, **options)
    except ValueError:
        return False
    return True


def without_spaces(offsets: Tensor, texts: Sequence[str]) -> Tensor:
    """Character intervals that neither start nor end with white space.

    Tokenizers differ in whether a word's piece owns the space before it; what two of them share
    are the words.

    Args:
        offsets: ``(b, n, 2)``, as a fast tokenizer returns them.
        texts: the b texts.
    """
    trimmed = offsets.clone()
    for row, text in zip(trimmed, texts, strict=True):
        for token, (start, stop) in enumerate(row.tolist()):
            piece = text[start:stop]
            left = len(piece) - len(piece.lstrip())
            right = len(piece) - len(piece.rstrip())
            if left or right:
                end = stop - right if left < len(piece) else start + left
                row[token] = torch.tensor([start + left, max(end, start + left)])
    return trimmed


def _side_of(prefix: str) -> str:
    return prefix.strip("_") or "student"


def _other_columns(examples: Sequence[Mapping[str, Any]], own: Sequence[str]) -> list[str]:
    """Keys that are carried along; every example has to have them."""
    if not examples:
        raise SignalError("a batch has at least one example; got none")
    others = [name for name in examples[0] if name not in own]
    for name in others:
        if name in _TOKENIZED:
            raise SignalError(
                f"example 0, entry {name!r}: packed or tokenized examples are not taken. Two "
                "tokenizers cut a text into unequal numbers of tokens, so packs of the two sides "
                "would not hold the same examples: give one example's text and images each"
            )
    for number, example in enumerate(examples):
        unequal = set(others) ^ {name for name in example if name not in own}
        if unequal:
            name = min(unequal)
            raise SignalError(
                f"example {number}, entry {name!r}: it is in only one of this example and example "
                "0: give it to every example of a batch, or remove the column"
            )
    return others


def _check_one_kind(prompts: list[Prompt]) -> None:
    """Refuse texts beside conversations, whose templates write special tokens themselves."""
    for prompt in prompts:
        if prompt.column != prompts[0].column:
            raise SignalError(
                f"{prompt.name}: example 0 has {prompts[0].column!r} instead: give one of them in "
                "all examples of a batch"
            )


def _all_answered(prompts: list[Prompt]) -> bool:
    """Whether every example has an answer; all or none of a batch."""
    for prompt in prompts:
        if prompt.answered != prompts[0].answered:
            lacking = prompt if not prompt.answered else prompts[0]
            raise SignalError(
                f"{lacking.name}: it has no answer, and others of the batch have one: add the "
                "assistant's message or the answer, or leave labels out: Collator(..., "
                "labels=False)"
            )
    return prompts[0].answered


def _limit(tokenizer: Any) -> int | None:
    length = int(tokenizer.model_max_length)
    return length if length < 1_000_000 else None  # "very large" stands for "none"


def _stacked(values: list[Any]) -> Any:
    try:
        return torch.stack([torch.as_tensor(value) for value in values])
    except (TypeError, ValueError, RuntimeError):
        return values


_UNSAID = (
    "the {}'s processor, {}, writes image tokens into the text, which moves its characters, and "
    "does not say where (text_replacement_offsets): call it yourself and take the offsets of the "
    "text"
)


def _check_processor(side: str, processor: Any) -> None:
    missing = [name for name in ("tokenizer", "image_processor") if not hasattr(processor, name)]
    if missing:
        raise ValueError(
            f"the {side}'s processor, {type(processor).__name__}, has no {' and no '.join(missing)}"
        )
    if writes_images(processor) and not hasattr(processor, "get_text_with_replacements"):
        raise OptionError(_UNSAID.format(side, type(processor).__name__))
    if not getattr(processor.tokenizer, "is_fast", False):
        raise OptionError(
            f"the {side}'s tokenizer, {type(processor.tokenizer).__name__}, is a slow one: only "
            "fast tokenizers say which characters a token stands for"
        )
