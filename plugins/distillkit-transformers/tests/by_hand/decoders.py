"""Decoders that learn from larger decoders, by answers, visual tokens and attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from .. import families
from .trial import Batch, Trial

IMAGE = 99  # the placeholder of a patch
RESPONSE = 3  # words of each response, before padding


def llava_of(width: int, depth: int, heads: int) -> nn.Module:
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth}
    text = {**families.LLAMA, **sizes, "num_attention_heads": heads, "num_key_value_heads": 2}
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **families.IMAGE},
        text_config={"model_type": "llama", **text},
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    model = hf.LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # so that it returns its attention
    return model


def small_and_large() -> tuple[nn.Module, nn.Module, Batch]:
    """Prompts of one image and words, of which the last are the response; one is padded."""
    batch = families.prompted(families.prompt(IMAGE, 16))
    ids, seen = batch["input_ids"], batch["attention_mask"].bool()
    asked = torch.zeros_like(seen)
    asked[:, -RESPONSE:] = True
    labels = torch.where(asked & seen, ids, -100)
    teacher = families.spread(llava_of(64, 4, 8))
    learn(teacher, {**batch, "labels": labels})
    return llava_of(32, 2, 4), teacher, {**batch, "student_labels": labels}


def learn(teacher: nn.Module, batch: Batch) -> None:
    """Let a teacher know the answers, so that no term pulls away from another."""
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(30):
        teacher(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def outputs(model: nn.Module, batch: Batch) -> Any:
    """The model's output, and what its last layer returns before the norm, as ``last_layer``."""
    inputs = {k: v for k, v in batch.items() if not k.startswith("student_")}
    found: list[Tensor] = []
    hook = model.model.language_model.layers[-1].register_forward_hook(
        lambda _module, _inputs, output: found.append(output)
    )
    out = model(**inputs, output_attentions=True)
    hook.remove()
    out.last_layer = found[0]
    return out


def both(student: nn.Module, teacher: nn.Module, batch: Batch) -> tuple[Any, Any]:
    with torch.no_grad():
        wanted = outputs(teacher, batch)
    return outputs(student, batch), wanted


def predicting(batch: Batch) -> Tensor:
    """Boolean (b, n): where the next token is one of the response."""
    asked = batch["student_labels"] != -100
    return torch.cat([asked[:, 1:], torch.zeros_like(asked[:, :1])], 1)


def task(out: Any, batch: Batch) -> Tensor:
    return cross_entropy(  # transformers computes it in float32
        out.logits[:, :-1].flatten(0, 1).float(),
        batch["student_labels"][:, 1:].flatten(),
        ignore_index=-100,
    )


def kl(out: Any, wanted: Any, places: Tensor) -> Tensor:
    log_q, log_p = (x.logits[places].log_softmax(-1) for x in (out, wanted))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def jsd(out: Any, wanted: Any, places: Tensor) -> Tensor:
    q, p = (x.logits[places].softmax(-1) for x in (out, wanted))
    middle = ((p + q) / 2).log()
    halves = [(x * (x.log() - middle)).sum(-1) for x in (p, q)]
    return ((halves[0] + halves[1]) / 2).mean()


def vlm_response(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    out, wanted = both(student, teacher, batch)
    return task(out, batch) + kl(out, wanted, predicting(batch))


def on_policy(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    return jsd(*both(student, teacher, batch), predicting(batch))


def vlm_kd(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    out, wanted = both(student, teacher, batch)
    response, image = predicting(batch), batch["input_ids"] == IMAGE
    visual = image & ~response
    relations = []
    for ours, theirs, places in zip(out.last_layer, wanted.last_layer, image, strict=True):
        one, other = ((x[places] @ x[places].T).flatten() for x in (ours, theirs))
        relations.append(1 - cosine_similarity(one, other, dim=0))
    return (
        task(out, batch) + kl(out, wanted, response) + kl(out, wanted, visual)
        + torch.stack(relations).mean()
    )  # fmt: skip


def vlm_attention(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    out, wanted = both(student, teacher, batch)
    image = batch["input_ids"] == IMAGE
    words = ~image & batch["attention_mask"].bool()
    after = words & (torch.arange(image.shape[1]) > image.int().argmax(-1, keepdim=True))
    layers = []
    for places in ((0, 1), (1, 2)):  # the middle of two layers and of four
        values = []
        for i, keys in enumerate(image):
            sides = zip((out, wanted), places, strict=True)
            blocks = [x.attentions[layer][i][:, after[i]][..., keys] for x, layer in sides]
            rows = [(x / x.sum(-1, keepdim=True)).mean(0) for x in blocks]
            values.append(1 - cosine_similarity(*rows, dim=-1).mean())
        layers.append(torch.stack(values).mean())
    return task(out, batch) + kl(out, wanted, predicting(batch)) + torch.stack(layers).mean()


TRIALS = {
    "on_policy": Trial(small_and_large, on_policy),
    "vlm_attention": Trial(small_and_large, vlm_attention, close=1e-6),
    "vlm_kd": Trial(small_and_large, vlm_kd),
    "vlm_response": Trial(small_and_large, vlm_response),
}
