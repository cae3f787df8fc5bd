"""What the specs name: it needs torch, and is imported when it is used."""

import torch
from torch import nn

import distillkit as dk


def good_l1(student, teacher):
    return (student - teacher).abs().mean(-1)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attending()

    def forward(self, x):
        return {"logits": self.attention(x)[:, 0]}


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        split = x.unflatten(-1, (2, -1)).transpose(1, 2)
        return fused_attention(split * self.scale, split, split).transpose(1, 2).flatten(2)


def adapter(model):
    return dk.DeclarativeAdapter(streams={"joint": "attention"}, logits="logits")


class Halves:
    """Keeps every second entry of both sides."""

    def __call__(self, student, teacher):
        return student[..., ::2], teacher[..., ::2]


def fused_attention(query, key, value):
    """A kernel that no torch function shows; it asks for a reader as torch's functionals do."""
    if torch.overrides._is_torch_function_mode_enabled():
        return torch.overrides.handle_torch_function(fused_attention, (query,), query, key, value)
    weights = torch.exp((query @ key.mT) / query.shape[-1] ** 0.5)
    return (weights @ value) / weights.sum(-1, keepdim=True)


def read_fused_attention(query, key, value):
    return dk.Attention(query, key, value)


class Halved:
    """The terms that are larger than the others weigh half."""

    reads = "losses"

    def __init__(self, terms):
        self.terms = terms

    def start(self):
        return {"steps": torch.zeros(1)}

    def settle(self, step, state):
        larger = step.losses > step.losses.mean()
        return torch.where(larger, 0.5, 1.0), {"steps": state["steps"] + 1}
