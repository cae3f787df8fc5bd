"""What a weighting costs: a DiDE step with three terms and each weighting, beside static weights.

    python benchmarks/weightings.py --json weightings.json

A step is the forward, the backward and an SGD step, since weights settle once for each step.
"""

from __future__ import annotations

import importlib.util
import tomllib

import torch
from distiller import ADAPTER, IMAGE, TEXT, Dual, Fusion, Size, setting
from measure import arguments, compare, report, table

import distillkit as dk

IMAGE_TO_TEXT = "attention_kl/attention.image_to_text"
TERMS = [
    {"loss": "kl_divergence", "on": "logits"},
    {"loss": "attention_kl", "on": "attention.text_to_image"},
    {"loss": "attention_kl", "on": "attention.image_to_text"},
]
RATIO = {
    "name": "gradient_ratio",
    "reference": "kl_divergence/logits",
    "ratios": {IMAGE_TO_TEXT: 0.5},
}


def weightings(size: Size) -> dict[str, str | dict]:
    last = f"*.blocks.{size.depth - 1}.qkv"
    found = {
        "static": "static",
        "uncertainty": "uncertainty",
        "dynamic_average": "dynamic_average",
        "gradnorm": "gradnorm",
        "gradnorm, at the last qkv": {"name": "gradnorm", "at": last},
        "gradient_ratio": RATIO,
        "gradient_ratio, at the last qkv": {**RATIO, "at": last},
    }
    if importlib.util.find_spec("torchjd"):
        found["torchjd, UPGrad"] = "torchjd"
        found["torchjd, UPGrad, at the last qkv"] = {"name": "torchjd", "at": last}
    return found


def adapter(*, fused: bool, size: Size) -> dk.DeclarativeAdapter:
    last = size.depth - 1
    one, other = ("joint", "joint") if fused else ("text", "image")
    two = f'{{ text = "text.blocks.{last}", image = "image.blocks.{last}" }}'
    streams = f'{{ joint = "encoder.blocks.{last}" }}' if fused else two
    text = ADAPTER.format(streams=streams) + TEXT.format(stream=one)
    return dk.DeclarativeAdapter(
        **tomllib.loads(text + IMAGE.format(stream=other, length=size.image))
    )


def step_of(weighting: str | dict, student: Dual, teacher: Fusion, batch: dict, size: Size):
    distiller = dk.Distiller(
        student,
        teacher,
        dk.Recipe(name="weighted", terms=TERMS, weighting=weighting),
        student_adapter=adapter(fused=False, size=size),
        teacher_adapter=adapter(fused=True, size=size),
    )
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.0)

    def step() -> None:
        distiller(batch).loss.backward()
        optimizer.step()

    return step


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    size = Size(16, 40, 145, 256, 4, 4)
    student, teacher, batch = setting(size, options.device)
    steps = {
        name: step_of(weighting, student, teacher, batch, size)
        for name, weighting in weightings(size).items()
        if options.only in name or name == "static"
    }
    rounds = options.rounds or (3 if options.quick else 15)
    figures = compare(steps, rounds, options.device, student.zero_grad)
    rows = [
        [name, f"{1000 * one['wall']:.1f} ms", f"{one['wall_ratio']:.2f}"]
        for name, one in figures.items()
    ]
    title = f"A step of three terms by its weighting: {size.batch} x ({size.text} + {size.image}) tokens, width {size.width}, {size.depth} blocks"
    head = ["weighting", "a step", "by static's"]
    report(options, "weightings", {title: table(head, rows)}, figures)


if __name__ == "__main__":
    main()
