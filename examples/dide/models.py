"""A fusion encoder and a dual encoder in plain PyTorch; neither knows of distillation.

Both are small pre-norm transformers over the words of a question and the nine cells of a scene.
``FusionEncoder`` lets them attend to each other in one sequence: accurate, but it runs once for
every pair. ``DualEncoder`` encodes them apart, so that every question and scene is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from data import ANSWERS, CELL_SIZE, COLORS, GRID, LENGTH, VOCABULARY, colored, split_scans
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, RATIO = 64, 4, 2, 2
PIXEL_SCALE = 0.35  # about the standard deviation of a lit cell
EMBEDDING_STD = 0.5


class Answer(NamedTuple):
    """What both models return."""

    logits: Tensor  # (p, answers)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, _ = x.shape
        query, key, value = self.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        keep = None if mask is None else mask[:, None, None, :]  # (b, 1, 1, n)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        return self.out(mixed.transpose(1, 2).reshape(b, n, WIDTH))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = SelfAttention()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, RATIO * WIDTH), nn.GELU(), nn.Linear(RATIO * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    """Blocks, and the first token as the summary of all."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.pool = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return torch.tanh(self.pool(self.norm(x)[:, 0]))  # (b, d)


class Words(nn.Module):
    """A question's tokens: word, position and modality."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), WIDTH)
        self.position = nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.modality = nn.Parameter(torch.empty(1, WIDTH))

    def forward(self, questions: Tensor) -> Tensor:
        return self.norm(self.words(questions) + self.position) + self.modality  # (m, 8, d)


class Cells(nn.Module):
    """A scene's tokens: a summary token, then one for each cell with its row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem()
        self.norm = nn.LayerNorm(WIDTH)  # without it the positions drown
        self.summary = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.row_position = nn.Parameter(torch.empty(GRID, 1, WIDTH))
        self.column_position = nn.Parameter(torch.empty(1, GRID, WIDTH))
        self.modality = nn.Parameter(torch.empty(1, WIDTH))

    def forward(self, scenes: Tensor) -> Tensor:
        position = (self.row_position + self.column_position).flatten(0, 1)
        cells = self.norm(self.stem(scenes / PIXEL_SCALE)) + position
        summary = self.summary.expand(len(scenes), -1, -1)
        return torch.cat([summary, cells], 1) + self.modality  # (n, 10, d)


class FusionEncoder(nn.Module):
    """The teacher: one sequence of text and image tokens for every pair."""

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        self.words, self.cells = Words(), Cells()
        self.encoder = Encoder(depth)
        self.classifier = head(WIDTH, len(ANSWERS))
        self.apply(initialize)

    def forward(
        self,
        questions: Tensor,
        question_mask: Tensor,
        scenes: Tensor,
        question: Tensor,
        scene: Tensor,
    ) -> Answer:
        """Pair i is question ``question[i]`` of (m, 8) with scene ``scene[i]`` of (n, 9, 192)."""
        words, cells = self.words(questions)[question], self.cells(scenes)[scene]
        mask = torch.cat([question_mask[question], question_mask.new_ones(cells.shape[:2])], 1)
        return Answer(self.classifier(self.encoder(torch.cat([words, cells], 1), mask)))


class Tower(nn.Module):
    """One modality of the dual encoder: its embedding and its encoder."""

    def __init__(self, embedding: Words | Cells, depth: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.encoder = Encoder(depth)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(self.embedding(tokens), mask)


class DualEncoder(nn.Module):
    """The student: a text tower and an image tower that meet in a shallow head."""

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        self.text, self.image = Tower(Words(), depth), Tower(Cells(), depth)
        self.fusion = head(2 * WIDTH, WIDTH)
        self.classifier = head(WIDTH, len(ANSWERS))
        self.apply(initialize)

    def forward(
        self,
        questions: Tensor,
        question_mask: Tensor,
        scenes: Tensor,
        question: Tensor,
        scene: Tensor,
    ) -> Answer:
        """As the fusion encoder's; every question and every scene is encoded once."""
        text, image = self.text(questions, question_mask), self.image(scenes)
        return Answer(self.answer(text[question], image[scene]))

    def answer(self, text: Tensor, image: Tensor) -> Tensor:
        """Logits of pairs of encodings, ``(p, d)`` each: all that a new pair costs."""
        return self.classifier(self.fusion(torch.cat([text, image], -1)))


def stem() -> nn.Sequential:
    """What sees a cell's pixels; it is trained on single digits first, as ViLT's is on ImageNet."""
    return nn.Sequential(nn.Linear(CELL_SIZE, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


def head(width: int, out: int) -> nn.Sequential:
    hidden = 2 * WIDTH
    return nn.Sequential(
        nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out)
    )


def initialize(module: nn.Module) -> None:
    """Xavier for maps, and embeddings large enough not to drown (std 0.05 stalls)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)
    for parameter in module.parameters(recurse=False):
        if isinstance(module, Words | Cells):
            nn.init.normal_(parameter, std=EMBEDDING_STD)


def pretrain_stem(seed: int, steps: int = 300) -> dict[str, Tensor]:
    """The weights of a stem that tells digit and colour of single training scans."""
    torch.manual_seed(seed)
    scans, digits = split_scans("train")
    cells = torch.stack(
        [torch.stack([torch.from_numpy(colored(s, c)).flatten() for c in COLORS]) for s in scans]
    )  # (n, colours, 192)
    labels = torch.from_numpy(digits)
    model = nn.ModuleDict(
        {"stem": stem(), "digit": nn.Linear(WIDTH, 10), "color": nn.Linear(WIDTH, len(COLORS))}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        scan = torch.randint(len(cells), (256,))
        color = torch.randint(len(COLORS), (256,))
        seen = model["stem"](cells[scan, color] / PIXEL_SCALE)
        loss = F.cross_entropy(model["digit"](seen), labels[scan])
        loss = loss + F.cross_entropy(model["color"](seen), color)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model["stem"].state_dict()


def load_stem(model: FusionEncoder | DualEncoder, weights: Mapping[str, Tensor]) -> None:
    """Start a model from a trained stem."""
    cells = model.cells if isinstance(model, FusionEncoder) else model.image.embedding
    cells.stem.load_state_dict(weights)  # type: ignore[union-attr]
