"""Decoders that learn from decoders: LLaVAs of unequal depth, width and number of heads."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cosine_similarity, kl_div

from .. import families
from .trial import Batch, Trial

IMAGE_TOKEN, WORDS = 99, 9
MIDDLE = {1: (2,), 2: (3, 4)}  # layers of 4, and their shares of 2 to 4 of 6


def llava_of(width: int, depth: int, heads: int) -> hf.LlavaForConditionalGeneration:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **families.IMAGE},
        text_config={"model_type": "llama", **families.LLAMA, **sizes},
        image_token_id=IMAGE_TOKEN, vision_feature_layer=-1,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config)


def prompts() -> tuple[dict[str, Tensor], Tensor]:
    """Two prompts, padded on the left and on the right, and where their responses are."""
    images = torch.full((2, 16), IMAGE_TOKEN)
    ids = torch.cat([families.words(2), images, families.words(WORDS - 2)], 1)
    ids[0] = ids[0].roll(2)
    seen = torch.ones_like(ids)
    seen[0, :2] = 0
    seen[1, -2:] = 0
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[0, -3:] = True
    response[1, -6:-2] = True
    batch = {"input_ids": ids * seen, "attention_mask": seen, "pixel_values": families.pixels()}
    return batch, response


@torch.no_grad()
def answered(teacher: nn.Module) -> Batch:
    """Prompts with the responses that the teacher prefers, so that both losses agree."""
    batch, response = prompts()
    ids = batch["input_ids"]
    for place in range(1, ids.shape[1]):
        best = 5 + teacher.eval()(**batch).logits[:, place - 1, 5:90].argmax(-1)
        ids[:, place] = torch.where(response[:, place], best, ids[:, place])
    return {**batch, "labels": torch.where(response, ids, -100)}


def small_and_large() -> tuple[nn.Module, nn.Module, Batch]:
    student, teacher = llava_of(32, 4, 4), families.spread(llava_of(48, 6, 6))
    with torch.no_grad():
        teacher.lm_head.weight.mul_(10)  # fresh models are sure of nothing
    return student, teacher, answered(teacher)


class Seen(NamedTuple):
    """One forward: the output, the last layer's states before the norm, queries and keys."""

    out: Any
    states: Tensor
    pairs: list[tuple[Tensor, Tensor]]


def run(model: nn.Module, batch: Batch) -> Seen:
    """One forward alone: the norms of these models round to float32, forward and backward."""
    states: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    plain = functional.scaled_dot_product_attention

    def recorded(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        pairs.append((query, key))
        return plain(query, key, value, **more)

    layers = model.model.language_model.layers
    hook = layers[-1].register_forward_hook(lambda _module, _inputs, found: states.append(found))
    with mock.patch.object(functional, "scaled_dot_product_attention", recorded):
        out = model(**batch)
    hook.remove()
    return Seen(out, states[0], pairs[-len(layers) :])  # the image's tower comes first


def both(student: nn.Module, teacher: nn.Module, batch: Batch) -> tuple[Seen, Seen]:
    with torch.no_grad():
        wanted = run(teacher, batch)
    return run(student, batch), wanted


def predicting(batch: Batch) -> Tensor:
    """Boolean ``(b, n)``: the positions before the tokens of the response."""
    asked = batch["labels"] != -100
    return torch.cat([asked[:, 1:], torch.zeros_like(asked[:, :1])], 1)


def kl_at(places: Tensor, student: Seen, teacher: Seen) -> Tensor:
    """KL(teacher || student) at these positions, the mean over all of them."""
    log_q, log_p = (side.out.logits[places].log_softmax(-1) for side in (student, teacher))
    return kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def vlm_response(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    ours, theirs = both(student, teacher, batch)
    return ours.out.loss + kl_at(predicting(batch), ours, theirs)


def vlm_kd(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    ours, theirs = both(student, teacher, batch)
    image = batch["input_ids"] == IMAGE_TOKEN
    relations = []
    for side in (ours, theirs):
        tokens = side.states[image].unflatten(0, (len(image), -1))
        relations.append((tokens @ tokens.mT).flatten(1))
    return (
        ours.out.loss
        + kl_at(predicting(batch), ours, theirs)
        + kl_at(image, ours, theirs)
        + (1 - cosine_similarity(*relations)).mean()
    )


def among_image(query: Tensor, key: Tensor, image: Tensor) -> Tensor:
    """Probabilities ``(b, 16, 16)`` among the image's tokens, heads averaged."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    blocks = [one[:, at][..., at] for one, at in zip(scores, image, strict=True)]
    earlier = torch.ones(16, 16, dtype=torch.bool).tril()
    return torch.stack(blocks).masked_fill(~earlier, -torch.inf).softmax(-1).mean(1)


def vlm_attention(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    ours, theirs = both(student, teacher, batch)
    image = batch["input_ids"] == IMAGE_TOKEN
    distances = []
    for layer, group in MIDDLE.items():
        wanted = torch.stack([among_image(*theirs.pairs[i], image) for i in group]).mean(0)
        distances.append(1 - cosine_similarity(among_image(*ours.pairs[layer], image), wanted, -1))
    attention = torch.stack(distances).mean()  # as many rows in each example
    return ours.out.loss + kl_at(predicting(batch), ours, theirs) + attention


def on_policy(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """The mean over sequences of the mean over the tokens of each."""
    ours, theirs = both(student, teacher, batch)
    values = []
    for at, one, other in zip(predicting(batch), ours.out.logits, theirs.out.logits, strict=True):
        log_q, log_p = one[at].log_softmax(-1), other[at].log_softmax(-1)
        log_m = (0.5 * log_p.exp() + 0.5 * log_q.exp()).log()
        divergences = [(side.exp() * (side - log_m)).sum(-1) for side in (log_p, log_q)]
        values.append((0.5 * divergences[0] + 0.5 * divergences[1]).mean())
    return torch.stack(values).mean()


TRIALS = {
    "on_policy": Trial(small_and_large, on_policy),
    "vlm_attention": Trial(small_and_large, vlm_attention),
    "vlm_kd": Trial(small_and_large, vlm_kd),
    "vlm_response": Trial(small_and_large, vlm_response),
}
