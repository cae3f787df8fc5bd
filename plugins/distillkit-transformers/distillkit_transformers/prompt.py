"""What an example says: passages of text, and images at their places among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distillkit.errors import SignalError, did_you_mean

IMAGE = "<image>"  # where an image stands in a text, whatever a model's own token is


@dataclass(frozen=True)
class Passage:
    """A piece of text, and the place of its first character in what the example says.

    Student and teacher write an example with different words around it. Places are the same for
    both, so they are what the extents of their tokens are counted in.
    """

    text: str
    place: int


Part = Passage | Literal["image"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``fields`` is what the message has beside its content."""

    fields: Mapping[str, Any]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Prompt:
    """One example: a conversation, or one text with the answer that may follow it."""

    number: int
    column: str
    pictured: str  # the column of the images
    images: list[Any]
    several: bool  # a list of images, also where it holds one
    parts: tuple[Part, ...] = ()
    answer: Passage | None = None
    messages: tuple[Message, ...] = ()

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"example {self.number}, entry {self.column!r}"

    @property
    def answered(self) -> bool:
        """Whether there is something to learn: an answer, or a message of the assistant."""
        turns = (message.fields.get("role") for message in self.messages)
        return self.answer is not None or "assistant" in turns


@dataclass(frozen=True)
class Columns:
    """The keys under which examples hold what a prompt is made of."""

    text: str
    image: str
    messages: str
    answer: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        own = (self.text, self.image, self.messages)
        return own if self.answer is None else (*own, self.answer)

    def read(self, number: int, example: Mapping[str, Any]) -> Prompt:
        """The prompt of an example.

        Raises:
            SignalError: a column is missing, or images and placeholders do not agree.
        """
        if example.get(self.messages) is not None:
            return self._conversation(number, example)
        return self._text(number, example)

    def _text(self, number: int, example: Mapping[str, Any]) -> Prompt:
        text = self._required(number, example, self.text, "text")
        images, several = _images_of(example.get(self.image))
        pieces = text.split(IMAGE)
        if len(pieces) > 1:
            _check_count(f"example {number}, entry {self.text!r}", len(pieces) - 1, len(images))
        parts: list[Part] = []
        place = 0
        for index, piece in enumerate(pieces):
            parts += ["image"] if index else []
            parts.append(Passage(piece, place))
            place += len(piece) + len(IMAGE)
        answer = None
        if self.answer is not None:
            reply = self._required(number, example, self.answer, "answer")
            answer = Passage(reply, len(text) + 1)
        return Prompt(number, self.text, self.image, images, several, tuple(parts), answer)

    def _required(self, number: int, example: Mapping[str, Any], column: str, argument: str) -> str:
        value = example.get(column)
        if isinstance(value, str):
            return value
        if value is None:
            missing = f"has no {column!r}; it has {', '.join(map(repr, example)) or 'nothing'}"
            raise SignalError(
                f"example {number} {missing} ({did_you_mean(column, example)}): name the column "
                f"that holds it, Collator(..., {argument}=...), or give {self.messages!r}"
            )
        raise SignalError(
            f"example {number}, entry {column!r}, is to be a string; got "
            f"{type(value).__name__}: convert it to the text that the models are to read"
        )

    def _conversation(self, number: int, example: Mapping[str, Any]) -> Prompt:
        name = f"example {number}, entry {self.messages!r}"
        given, several = _images_of(example.get(self.image))
        reader = _Reader(name, given)
        messages = tuple(
            reader.message(message) for message in _as_list(name, example[self.messages])
        )
        if not messages:
            raise SignalError(f"{name}, holds no message: leave the example out")
        _check_count(name, reader.open, len(given))
        several = several or len(reader.images) != 1
        return Prompt(number, self.messages, self.image, reader.images, several, messages=messages)


@dataclass
class _Reader:
    """Reads a conversation message by message; images without a place of their own are in order."""

    name: str
    given: Sequence[Any]
    images: list[Any] = field(default_factory=list)
    open: int = 0  # placeholders that take the next of the given images
    place: int = 0

    def message(self, message: Any) -> Message:
        if not isinstance(message, Mapping) or "role" not in message:
            raise SignalError(
                f"{self.name}: a message is a mapping with 'role' and 'content'; got {message!r}"
            )
        fields = {
            key: value for key, value in message.items() if key != "content" and value is not None
        }
        content = message.get("content")
        if content is None:
            content = []
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        return Message(fields, tuple(part for item in content for part in self._parts(item)))

    def _parts(self, item: Any) -> Iterable[Part]:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "image":
            self._take(item.get("image"))
            return ["image"]
        if kind == "text" and isinstance(item.get("text"), str):
            return self._split(item["text"])
        raise SignalError(
            f'{self.name}: a part of a message is {{"type": "text", "text": ...}} or '
            f'{{"type": "image"}}; got {item!r}: load other media, and give images as images'
        )

    def _split(self, text: str) -> list[Part]:
        pieces = text.split(IMAGE)
        parts: list[Part] = []
        for index, piece in enumerate(pieces):
            if index:
                self._take(None)
                parts.append("image")
            # a template writes its own line breaks around an image
            shown = piece.lstrip("\n") if index else piece
            shown = shown.rstrip("\n") if index + 1 < len(pieces) else shown
            if shown:
                parts.append(Passage(shown, self.place))
                self.place += len(shown) + 1
        return parts

    def _take(self, image: Any) -> None:
        if image is None:
            if self.open < len(self.given):
                self.images.append(self.given[self.open])
            self.open += 1
        else:
            self.images.append(image)


def _as_list(name: str, messages: Any) -> Sequence[Any]:
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        return messages
    raise SignalError(
        f"{name}, is to be a list of messages; got {type(messages).__name__}: give "
        '[{"role": "user", "content": ...}, ...]'
    )


def _images_of(value: Any) -> tuple[list[Any], bool]:
    if value is None:
        return [], True
    if isinstance(value, (list, tuple)):
        return list(value), True
    return [value], False


def _check_count(name: str, placeholders: int, images: int) -> None:
    if placeholders != images:
        raise SignalError(
            f"{name}: {placeholders} image placeholder{'s' * (placeholders != 1)} and {images} "
            f"image{'s' * (images != 1)}: write {IMAGE!r}, in messages also "
            '{"type": "image"}, once for every image of the example'
        )
