"""A fusion encoder and a dual encoder over words and cells; neither knows of distillation.

Both read words and cells as vectors of one space, that of ``perception.py``, so that a word and
what it names begin alike. ``FusionEncoder`` lets them attend to each other in one sequence and
runs once for every pair; ``DualEncoder`` encodes them apart, so that each is encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING_STD = 0.5  # smaller ones drown beside the vectors
APART = 6.0  # words and cells, at first
MATCH = 1.7  # how strongly like attends to like at first
MLP_RATIO = 2


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        answers: classes; 1: a score of the pair.
        features: of the vector of a cell or of a word.
        length: tokens of the longest text.
        grid: rows and columns of a scene.
        scenes: of one example, 2 where a text is about two.
        width: of a token.
        heads: of each attention.
        depth: blocks of each encoder.
    """

    answers: int
    features: int
    length: int
    grid: tuple[int, int]
    scenes: int = 1
    width: int = 64
    heads: int = 4
    depth: int = 2


class Answer(NamedTuple):
    """What both models return."""

    logits: Tensor  # (p // scenes, answers)


class SelfAttention(nn.Module):
    """Queries and keys begin as one map: like attends to like before any training."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, width = x.shape
        query, key, value = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        keep = None if mask is None else mask[:, None, None, :]  # (b, 1, 1, n)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        return self.out(mixed.transpose(1, 2).reshape(b, n, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    """Blocks and a last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class Words(nn.Module):
    """A text's tokens: word, position and modality. Token 0 is padding."""

    def __init__(self, shape: Shape, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Embedding.from_pretrained(vectors.clone(), freeze=False)
        self.project = nn.Linear(shape.features, shape.width, bias=False)
        self.norm = nn.LayerNorm(shape.width)
        self.position = nn.Parameter(torch.empty(shape.length, shape.width))
        self.modality = nn.Parameter(torch.empty(1, shape.width))

    def forward(self, words: Tensor) -> Tensor:
        found = self.norm(self.project(self.vectors(words)))
        return found + self.position[: words.shape[1]] + self.modality  # (m, n, d)


class Cells(nn.Module):
    """A scene's tokens: a summary token, then one for each cell with its row and column."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        rows, columns = shape.grid
        self.project = nn.Linear(shape.features, shape.width, bias=False)
        self.norm = nn.LayerNorm(shape.width)  # without it the positions drown
        self.summary = nn.Parameter(torch.empty(1, 1, shape.width))
        self.row_position = nn.Parameter(torch.empty(rows, 1, shape.width))
        self.column_position = nn.Parameter(torch.empty(1, columns, shape.width))
        self.modality = nn.Parameter(torch.empty(shape.scenes, shape.width))

    def forward(self, cells: Tensor, place: Tensor) -> Tensor:
        position = (self.row_position + self.column_position).flatten(0, 1)
        seen = self.norm(self.project(cells)) + position
        summary = self.summary.expand(len(cells), -1, -1)
        return torch.cat([summary, seen], 1) + self.modality[place][:, None]  # (n, 1 + cells, d)


class FusionEncoder(nn.Module):
    """The teacher: one sequence of words and cells for every pair.

    Args:
        shape: sizes.
        words: ``(vocabulary, features)``: the vectors that words begin as.
    """

    def __init__(self, shape: Shape, words: Tensor) -> None:
        super().__init__()
        self.scenes = shape.scenes
        self.words, self.cells = Words(shape, words), Cells(shape)
        self.encoder = Encoder(shape)
        self.classifier = head(2 * shape.scenes * shape.width, shape.answers, shape.width)
        initialize(self)

    def forward(
        self, words: Tensor, word_mask: Tensor, cells: Tensor, place: Tensor, text: Tensor,
        image: Tensor,
    ) -> Answer:  # fmt: skip
        """Answers of examples, each of ``scenes`` pairs one after another.

        Args:
            words: ``(m, n)`` tokens of texts.
            word_mask: ``(m, n)``, False where a text is padded.
            cells: ``(s, c, features)`` vectors of the cells of scenes.
            place: ``(s,)``: which scene of its example each is.
            text: ``(p,)``: the text of each pair.
            image: ``(p,)``: its scene.
        """
        read, seen = self.words(words)[text], self.cells(cells, place)[image]
        mask = torch.cat([word_mask[text], word_mask.new_ones(seen.shape[:2])], 1)
        tokens = self.encoder(torch.cat([read, seen], 1), mask)
        count = words.shape[1]
        both = torch.cat([mean(tokens[:, :count], word_mask[text]), tokens[:, count:].mean(1)], -1)
        return Answer(self.classifier(both.view(-1, self.scenes * both.shape[-1])))


class TextTower(nn.Module):
    def __init__(self, shape: Shape, words: Tensor) -> None:
        super().__init__()
        self.embedding, self.encoder = Words(shape, words), Encoder(shape)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return mean(self.encoder(self.embedding(words), mask), mask)  # (m, d)


class ImageTower(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding, self.encoder = Cells(shape), Encoder(shape)

    def forward(self, cells: Tensor, place: Tensor) -> Tensor:
        return self.encoder(self.embedding(cells, place)).mean(1)  # (s, d)


class DualEncoder(nn.Module):
    """The student: a text tower and an image tower that meet in a shallow head."""

    def __init__(self, shape: Shape, words: Tensor) -> None:
        super().__init__()
        self.scenes = shape.scenes
        self.text, self.image = TextTower(shape, words), ImageTower(shape)
        self.fusion = head(2 * shape.width, shape.width, shape.width)
        self.classifier = head(shape.scenes * shape.width, shape.answers, shape.width)
        initialize(self)

    def forward(
        self, words: Tensor, word_mask: Tensor, cells: Tensor, place: Tensor, text: Tensor,
        image: Tensor,
    ) -> Answer:  # fmt: skip
        """As the fusion encoder's; every text and every scene is encoded once."""
        texts, images = self.text(words, word_mask), self.image(cells, place)
        return Answer(self.answer(texts[text], images[image]))

    def answer(self, text: Tensor, image: Tensor) -> Tensor:
        """Logits of pairs of encodings, ``(p, d)`` each: all that a new pair costs."""
        fused = self.fusion(torch.cat([text, image], -1))
        return self.classifier(fused.view(-1, self.scenes * fused.shape[-1]))


def mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens that are no padding, ``(b, n, d)`` to ``(b, d)``."""
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def head(inputs: int, outputs: int, width: int) -> nn.Sequential:
    hidden = 2 * width
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Xavier for maps, embeddings large enough not to drown, and attention across modalities.

    Words and cells begin on opposite sides of one direction, and queries and keys as one map but
    for that direction, which is turned round: a word attends to cells that are like it before any
    training, rather than to itself.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Words | Cells):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=EMBEDDING_STD)
    (width,) = {module.out.in_features for module in model.modules() if _attends(module)}
    side = F.normalize(torch.randn(width), dim=0)
    project = next(m.project.weight.clone() for m in model.modules() if isinstance(m, Words))
    for module in model.modules():
        if isinstance(module, Words | Cells):
            module.project.weight.copy_(project)
            module.modality += APART * (side if isinstance(module, Words) else -side)
        elif isinstance(module, SelfAttention):
            keys = MATCH * nn.init.orthogonal_(torch.empty(width, width))
            queries = keys - 2 * (keys @ side)[:, None] * side
            module.qkv.weight[: 2 * width] = torch.cat([queries, keys])


def _attends(module: nn.Module) -> bool:
    return isinstance(module, SelfAttention)
