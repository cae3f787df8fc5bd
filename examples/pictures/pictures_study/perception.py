"""One space for drawings and words, learned from single drawings of the training artists.

Two small maps, of the frozen features of drawings and of the frozen vectors of words, learn to
bring a drawing near to its name and to its classes. Teacher and students begin from this space, as
ViLT begins from weights of ImageNet and of BERT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 128  # of the space
HIDDEN = 512
DROPOUT, NOISE = 0.3, 0.2
BATCH = 256
RATE = 2e-3
DECAY = 0.05
CLASS_SHARPNESS, NAME_SHARPNESS = 12.0, 20.0  # of a cosine: low ones bring what fits near
CLASS_BIAS = -4.0  # a drawing is of few classes
CLASS_WEIGHT = 10.0  # of a mean over classes, of which a drawing has one or two
STEPS = 300


@dataclass(frozen=True)
class Singles:
    """Single drawings with what they show.

    Attributes:
        features: ``(n, f)``.
        is_of: ``(n, classes)``, 1 where a drawing is of a class.
        name: ``(n,)``: which of the names is its own.
        training: ``(k,)``: the drawings to learn from.
        words: ``(v, w)`` vectors of the vocabulary.
        classes: ``(classes,)``: the words of the classes.
        names: ``(names,)``: the words of the names.
    """

    features: Tensor
    is_of: Tensor
    name: Tensor
    training: Tensor
    words: Tensor
    classes: Tensor
    names: Tensor


@dataclass(frozen=True)
class Space:
    """Where everything lies.

    Attributes:
        drawings: ``(n, d)``.
        words: ``(v, d)``.
    """

    drawings: Tensor
    words: Tensor


class Maps(nn.Module):
    """From features and from vectors of words into the space."""

    def __init__(self, features: int, words: int) -> None:
        super().__init__()
        self.drawing = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Linear(features, HIDDEN), nn.GELU(),
            nn.Dropout(DROPOUT), nn.Linear(HIDDEN, WIDTH),
        )  # fmt: skip
        self.word = nn.Linear(words, WIDTH, bias=False)

    def see(self, features: Tensor) -> Tensor:
        return F.layer_norm(self.drawing(features), (WIDTH,))

    def read(self, words: Tensor) -> Tensor:
        return F.layer_norm(self.word(words), (WIDTH,))

    def class_logits(self, seen: Tensor, classes: Tensor) -> Tensor:
        return CLASS_SHARPNESS * cosine(seen, classes) + CLASS_BIAS

    def name_logits(self, seen: Tensor, names: Tensor) -> Tensor:
        return NAME_SHARPNESS * cosine(seen, names)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of all pairs of vectors of length ``sqrt(WIDTH)``, which layer norm makes."""
    return one @ other.T / WIDTH


def learn(singles: Singles, seed: int, steps: int = STEPS) -> Space:
    """The space, by two losses: which classes a drawing is of, and which name it has."""
    torch.manual_seed(seed)
    chosen = singles.features[singles.training]
    features = (singles.features - chosen.mean(0)) / (chosen.std(0) + 1e-3)
    words = singles.words * singles.words.shape[1] ** 0.5
    drawn = torch.unique(singles.name[singles.training])  # new concepts have no name yet
    place = torch.full((len(singles.names),), -1)
    place[drawn] = torch.arange(len(drawn))
    model = Maps(features.shape[1], words.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        index = singles.training[torch.randint(len(singles.training), (BATCH,))]
        seen = features[index]
        seen = model.see(seen + NOISE * torch.randn_like(seen))
        of_classes = model.class_logits(seen, model.read(words[singles.classes]))
        of_names = model.name_logits(seen, model.read(words[singles.names[drawn]]))
        loss = CLASS_WEIGHT * F.binary_cross_entropy_with_logits(of_classes, singles.is_of[index])
        loss = loss + F.cross_entropy(of_names, place[singles.name[index]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        drawings = torch.cat([model.see(part) for part in features.split(1000)])
        return Space(drawings, model.read(words))
