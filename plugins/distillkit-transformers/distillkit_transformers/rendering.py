"""A prompt as one processor writes it, and where its passages and answers stand in that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import SignalError

from .prompt import Message, Passage, Prompt

Span = tuple[int, int]
IGNORED = -100  # the label that no loss counts


@dataclass(frozen=True)
class Rendering:
    """One text for a tokenizer.

    ``passages`` are (start in this text, passage): what lies in none of them, roles and separators,
    is the model's own. ``answers`` are the intervals to learn.
    """

    text: str
    passages: tuple[tuple[int, Passage], ...]
    answers: tuple[Span, ...] = ()

    def expanded(self, replacements: Sequence[Mapping[str, Any]]) -> Rendering:
        """The same once the processor has written its image tokens over the placeholders."""
        pieces: list[str] = []
        end = 0
        grown: list[tuple[int, int]] = []  # (end of the placeholder, characters gained)
        for replacement in replacements:
            start, stop = replacement["span"]
            pieces += [self.text[end:start], replacement["replacement"]]
            grown.append((stop, len(replacement["replacement"]) - (stop - start)))
            end = stop

        def moved(position: int) -> int:
            return position + sum(gain for stop, gain in grown if stop <= position)

        return Rendering(
            "".join([*pieces, self.text[end:]]),
            tuple((moved(start), passage) for start, passage in self.passages),
            tuple((moved(start), moved(stop)) for start, stop in self.answers),
        )

    def extents(self, trimmed: Tensor) -> Tensor:
        """Token intervals ``(n, 2)`` of this text as places that both sides share.

        Tokens outside of the passages lie nowhere, which is written (0, 0).
        """
        places = [self._place(start, stop) for start, stop in trimmed.tolist()]
        return torch.tensor(places, dtype=trimmed.dtype).view_as(trimmed)

    def _place(self, start: int, stop: int) -> Span:
        for first, passage in self.passages:
            left = max(start, first)
            right = min(stop, first + len(passage.text))
            if left < right:
                shift = passage.place - first
                return left + shift, right + shift
        return 0, 0

    def labels(self, ids: Tensor, offsets: Tensor, mask: Tensor, eos: int | None) -> Tensor:
        """Token ids where an answer stands, -100 elsewhere.

        A token belongs to an answer if its characters do; the space before a word does not decide.
        The tokenizer's end-of-sequence token right behind an answer is learned too.
        """
        labels = torch.full_like(ids, IGNORED)
        ended = False  # the token before was the last of an answer
        for token, (start, stop) in enumerate(offsets.tolist()):
            if not mask[token]:
                ended = False
                continue
            if start == stop == 0:  # the tokenizer's own, which stands for no character
                if ended and ids[token] == eos:
                    labels[token] = ids[token]
                ended = False
                continue
            piece = self.text[start:stop]
            space = len(piece) - len(piece.lstrip())
            first = start if space == len(piece) else start + space
            # a word's leading space may be a token of its own and of no width; it has a next word
            ended = any(left <= first < right and stop <= right for left, right in self.answers)
            if ended:
                labels[token] = ids[token]
        return labels


def writes_images(processor: Any) -> bool:
    """Whether a processor writes image tokens into the text."""
    return getattr(processor, "image_token", None) is not None


def render(side: str, processor: Any, prompt: Prompt) -> Rendering:
    """A prompt in a processor's own words.

    Raises:
        SignalError: there is no chat template, or it does not show where an answer starts.
    """
    if prompt.messages:
        return _render_conversation(side, processor, prompt)
    return _render_text(processor, prompt)


def _render_text(processor: Any, prompt: Prompt) -> Rendering:
    placeholder = image_placeholder(processor) if writes_images(processor) else ""
    text, passages = "", []
    for part in prompt.parts:
        if isinstance(part, Passage):
            passages.append((len(text), part))
        text += part.text if isinstance(part, Passage) else placeholder
    if prompt.answer is None:
        return Rendering(text, tuple(passages))
    start = len(text)
    passages.append((start + 1, prompt.answer))
    text += f" {prompt.answer.text}{_missing_end(processor.tokenizer)}"
    return Rendering(text, tuple(passages), ((start, len(text)),))


def _missing_end(tokenizer: Any) -> str:
    """The token that ends a text, where the tokenizer has one and does not write it itself."""
    end = tokenizer.eos_token
    if end is None or tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:
        return ""
    return str(end)


def image_placeholder(processor: Any) -> str:
    """What stands for an image in a text: as the chat template writes it, else the image token.

    Qwen-VL wraps its image token between two others; only its template says so.
    """
    token = str(processor.image_token)
    if not has_template(processor):
        start = getattr(processor, "vision_start_token", None) or ""
        end = getattr(processor, "vision_end_token", None) or ""
        return f"{start}{token}{end}"
    text = {"type": "text", "text": "a"}
    without = _apply(processor, [{"role": "user", "content": [text]}])
    shown = _apply(processor, [{"role": "user", "content": [{"type": "image"}, text]}])
    before = _shared_start(without, shown)
    after = _shared_start(without[before:][::-1], shown[before:][::-1])
    written = shown[before : len(shown) - after].strip()
    return written if token in written else token


def _shared_start(one: str, other: str) -> int:
    """How many characters two texts start with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def has_template(processor: Any) -> bool:
    """Whether a processor can write conversations."""
    return getattr(processor, "chat_template", None) is not None


def _render_conversation(side: str, processor: Any, prompt: Prompt) -> Rendering:
    if not has_template(processor):
        raise SignalError(
            f"{prompt.name}: the {side}'s processor, {type(processor).__name__}, has no chat "
            "template: set its chat_template, or give texts without roles instead of messages"
        )
    messages = prompt.messages
    answering = messages[-1].fields.get("role") == "assistant"
    written = _write(messages, lambda _, passage: passage.text)
    text = _apply(processor, written, generate=not answering)
    passages = _passages(messages)
    marks = [f"\ue000{number}\ue001" for number in range(len(passages))]
    marked = _write(messages, lambda number, _: marks[number])
    skeleton = _apply(processor, marked, generate=not answering)
    located = _locate(prompt.name, side, text, skeleton, marks, passages)
    answers = [
        _answer(processor, text, written, turn, f"{prompt.name}, message {turn}", side)
        for turn, message in enumerate(messages)
        if message.fields.get("role") == "assistant"
    ]
    return Rendering(text, located, tuple(answers))


def _answer(
    processor: Any, text: str, written: list[dict[str, Any]], turn: int, name: str, side: str
) -> Span:
    """From where the assistant is to speak until its turn has ended, with the mark of the end."""
    before = _apply(processor, written[:turn], generate=True) if turn else ""
    through = text if turn + 1 == len(written) else _apply(processor, written[: turn + 1])
    if not (text.startswith(before) and text.startswith(through)):
        raise SignalError(
            f"{name}: the {side}'s chat template writes earlier messages otherwise once later ones "
            "follow, so where the answer starts is unclear: make every answer an example of its "
            "own, or correct the template"
        )
    stop = len(through.rstrip())  # a separator behind the end of the turn is nothing to learn
    return len(before), max(len(before), stop)


def _locate(
    name: str,
    side: str,
    text: str,
    skeleton: str,
    marks: Sequence[str],
    passages: Sequence[Passage],
) -> tuple[tuple[int, Passage], ...]:
    """Where a template put every passage.

    The template is rendered once more with marks instead of the passages. A search for the passages
    themselves would find the word "user" in the name of a role.
    """
    for trim in (False, True):  # some templates strip what they are given
        shown = [_stripped(passage) if trim else passage for passage in passages]
        rest, filled, found = skeleton, "", []
        for mark, passage in zip(marks, shown, strict=True):
            before, _, rest = rest.partition(mark)
            found.append((len(filled) + len(before), passage))
            filled += before + passage.text
        if filled + rest == text:
            return tuple(found)
    raise SignalError(
        f"{name}: the {side}'s chat template changes, moves or drops the messages' texts, so where "
        "a token lies is unknown: use a template that writes every text once, in order"
    )


def _stripped(passage: Passage) -> Passage:
    left = len(passage.text) - len(passage.text.lstrip())
    return Passage(passage.text.strip(), passage.place + left)


def _passages(messages: Sequence[Message]) -> list[Passage]:
    parts = (part for message in messages for part in message.parts)
    return [part for part in parts if isinstance(part, Passage)]


def _write(
    messages: Sequence[Message], show: Callable[[int, Passage], str]
) -> list[dict[str, Any]]:
    """Messages as templates take them; ``show`` says what stands for the numbered passage."""
    number = 0
    written = []
    for message in messages:
        content: list[dict[str, str]] = []
        for part in message.parts:
            if isinstance(part, Passage):
                content.append({"type": "text", "text": show(number, part)})
                number += 1
            else:
                content.append({"type": "image"})
        written.append({**message.fields, "content": content})
    return written


def _apply(processor: Any, messages: list[dict[str, Any]], *, generate: bool = False) -> str:
    return str(
        processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    )
