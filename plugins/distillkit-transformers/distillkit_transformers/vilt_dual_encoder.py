"""DiDE's student: two towers from one ViLT, which meet only in what is left of them, a vector each.

Source: Wang et al., *Distilled Dual-Encoder Model for Vision-Language Understanding*, 2022,
https://arxiv.org/abs/2112.08723, and its official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViltForMaskedLM, ViltModel
from transformers.models.vilt.modeling_vilt import ViltMLMHead, ViltPreTrainedModel
from transformers.utils.generic import ModelOutput

from distillkit.errors import OptionError, ShapeError

from .vilt_config import ViltDualEncoderConfig
from .vilt_towers import Encoding, ImageTower, TextTower
from .vilt_weights import load_towers

_TIED = {"mlm_score.decoder.weight": "text.embeddings.word_embeddings.weight"}


@dataclass
class ViltDualEncoderOutput(ModelOutput):
    """What a :class:`ViltDualEncoder` returns.

    Attributes:
        loss: the task's own, where labels are given.
        logits: ``(b, classes)``; of pre-training ``(b, n, words)``.
        text_embeds: pooled texts, ``(t, d)``.
        image_embeds: pooled images, ``(i, d)``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


class ViltDualEncoder(ViltPreTrainedModel):
    """Two towers that start from one ViLT and share nothing, a fusion MLP and a head.

    The text tower reads words, the image tower patches, and neither sees the other: a text or an
    image is encoded once (:meth:`encode_text`, :meth:`encode_image`) and answered about many times
    (:meth:`answer`). The tokens of images are the [CLS] and the patches row by row; ViLT draws
    them in a random order, which has no meaning, and where it draws some of them only
    (``max_image_length``), ``patches`` says which.

    Args:
        config: the sizes and the task.

    Examples:
        >>> from distillkit_transformers import ViltDualEncoderConfig
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> image = {"intermediate_size": 16, "image_size": 32, "patch_size": 16}
        >>> config = ViltDualEncoderConfig(task="ve", vocab_size=20, **sizes, **image)
        >>> model = ViltDualEncoder(config).eval()
        >>> image = model.encode_image(torch.zeros(1, 3, 32, 32))
        >>> questions = model.encode_text(torch.randint(20, (4, 6)))
        >>> model.answer(questions, image).shape
        torch.Size([4, 3])

    Source: Wang et al. 2022 (DiDE), https://arxiv.org/abs/2112.08723, and the official code, for
    the sizes of fusion and heads.
    """

    config_class = ViltDualEncoderConfig
    config: ViltDualEncoderConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ["ViltLayer", "TextEmbeddings", "ImageEmbeddings"]  # noqa: RUF012

    def __init__(self, config: ViltDualEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.text = TextTower(config)
        self.image = ImageTower(config)
        if config.task == "pretraining":
            self.mlm_score = ViltMLMHead(config)  # type: ignore[no-untyped-call]
            self._tied_weights_keys = dict(_TIED)
        else:
            self.fusion = _mlp(2 * width, 2 * width, width)
            if config.task == "retrieval":
                self.rank_output = nn.Linear(width, 1)
            else:
                joined = width * config.image_types
                self.classifier = _mlp(joined, 2 * width, int(config.num_labels or 0))
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_vilt(
        cls, source: Any, *, task: str = "vqa", dropout: float = 0.1, **config: Any
    ) -> ViltDualEncoder:
        """A student whose towers start with the weights of a ViLT.

        Both get its layers, norm and pooler, the text tower its words, the image tower its patches
        and positions. The token types of both images start as that of ViLT's first image. Fusion
        and head start at random; the head of pre-training is the checkpoint's.

        Args:
            source: a ViLT of transformers, or the name or path of one.
            task: as of :class:`ViltDualEncoderConfig`.
            dropout: ``hidden_dropout_prob``; 0.1 as ViLT was trained.
            config: further fields of the configuration: ``id2label`` of the teacher, so that both
                sides' classes have one order, or ``num_labels``.

        Raises:
            OptionError: a source that is no ViLT, or lacks what a tower needs.

        Examples:
            >>> from transformers import ViltConfig, ViltModel
            >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
            >>> vilt = ViltModel(ViltConfig(vocab_size=20, intermediate_size=16, **sizes))
            >>> ViltDualEncoder.from_vilt(vilt, task="ve").config.num_labels
            3
        """
        model = cls._loaded(source, task) if isinstance(source, (str, Path)) else source
        sizes = _sizes_of(model)
        student = cls(ViltDualEncoderConfig(task, dropout, **{**sizes, **config}))
        load_towers(student, model)
        return student

    @classmethod
    def _loaded(cls, source: str | Path, task: str) -> nn.Module:
        """A ViLT, or a student of an earlier stage, from its files, every weight of it."""
        declared, _ = ViltDualEncoderConfig.get_config_dict(source)
        kind: Any = ViltForMaskedLM if task == "pretraining" else ViltModel
        if declared.get("model_type") == ViltDualEncoderConfig.model_type:
            kind = cls
        model, report = kind.from_pretrained(source, output_loading_info=True)
        missing = sorted(report["missing_keys"])
        if missing:
            raise OptionError(
                f"{str(source)!r} lacks {len(missing)} weights of a {kind.__name__}: "
                f"{', '.join(missing[:3])} ... They would start at random; take a checkpoint of "
                "transformers' ViLT, or load it yourself and pass the model"
            )
        return model  # type: ignore[no-any-return]

    def get_input_embeddings(self) -> nn.Module:
        return self.text.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        self.text.embeddings.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module | None:
        return self.mlm_score.decoder if self.config.task == "pretraining" else None

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Encoding:
        """Read texts ``(t, n)``; the mask is 1 for words, 0 for padding."""
        return self.text(input_ids, attention_mask)  # type: ignore[no-any-return]

    def encode_image(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> Encoding:
        """Read images ``(i, 3, height, width)``; for NLVR2 pairs of images, ``(i, 2, 3, ...)``.

        Args:
            pixel_values: the images, padded to one size with 0.
            pixel_mask: ``(i, height, width)`` or ``(i, 2, height, width)``, 1 for the image.
            patches: ``(i, n, 2)`` or ``(i, 2, n, 2)``: rows and columns of the patches to see, as
                a teacher drew them; None: all of them.

        Raises:
            ShapeError: one image where there are to be two, or two where there is to be one.
        """
        wanted = self.config.image_types
        found = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        if found != wanted or pixel_values.ndim not in (4, 5):
            raise ShapeError(
                f"the task {self.config.task!r} has pixel_values "
                f"{'(b, 2, 3, height, width)' if wanted == 2 else '(b, 3, height, width)'}; got "
                f"{tuple(pixel_values.shape)}"
            )
        if pixel_values.ndim == 4:
            return self.image(pixel_values, pixel_mask, patches)  # type: ignore[no-any-return]
        types = torch.arange(found, device=pixel_values.device).repeat(len(pixel_values))
        masked = (None if x is None else x.flatten(0, 1) for x in (pixel_mask, patches))
        pooled, states = self.image(pixel_values.flatten(0, 1), *masked, types)
        return Encoding(pooled.unflatten(0, (len(pixel_values), found)), states)

    def answer(self, text: Encoding, image: Encoding) -> Tensor:
        """Logits ``(b, classes)`` for texts and images that were encoded before.

        Args:
            text: b texts, or one about b images.
            image: b images, or one that b texts are about; pairs of images for NLVR2.

        Raises:
            OptionError: a student that was pre-trained and has no task yet.
            ShapeError: unequal numbers of texts and images, of which neither is one.
        """
        if self.config.task == "pretraining":
            raise OptionError(
                "a student with the task 'pretraining' predicts masked words and answers nothing: "
                "start a task with its towers, ViltDualEncoder.from_vilt(student, task='vqa')"
            )
        return self._score(text.pooled, image.pooled)

    def _score(self, text: Tensor, image: Tensor) -> Tensor:
        """Logits of pooled texts ``(t, d)`` with images ``(i, d)`` or ``(i, images, d)``."""
        counts = len(text), len(image)
        if counts[0] != counts[1] and 1 not in counts:
            raise ShapeError(
                f"{counts[0]} texts and {counts[1]} images are no pairs: give equally many, one of "
                "either for all of the others, or image_index, the image of every text"
            )
        of_images = image[:, None] if image.ndim == 2 else image
        pairs = counts[1] if counts[0] == 1 else counts[0]
        of_texts = text[:, None].expand(pairs, of_images.shape[1], -1)
        of_images = of_images.expand(pairs, -1, -1)
        both = torch.cat([of_texts, of_images], -1)
        fused = self.fusion(both).flatten(1)
        head = self.rank_output if self.config.task == "retrieval" else self.classifier
        return head(fused)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        patches: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ViltDualEncoderOutput:
        """Answer texts about images.

        Args:
            input_ids: ``(b, n)``.
            attention_mask: ``(b, n)``, 1 for words.
            pixel_values: ``(i, 3, height, width)``; for NLVR2 ``(b, 2, 3, height, width)``.
            pixel_mask: ``(i, height, width)``, 1 for pixels of the image.
            image_index: ``(b,)``: the image of every text, where one belongs to several; None:
                text and image of the same number.
            patches: ``(i, n, 2)``: rows and columns of the patches to see; None: all.
            labels: scores ``(b, classes)`` in [0, 1] for VQA; classes ``(b,)`` for VE and NLVR2;
                words ``(b, n)`` for pre-training, -100 where none is to be predicted.

        Raises:
            ShapeError: texts and images that are no pairs.
            OptionError: labels for retrieval, whose loss is one over candidates.
        """
        if pixel_values is None:
            raise ShapeError("forward takes texts and images; encode_text reads texts alone")
        task = self.config.task
        text = self.encode_text(input_ids, attention_mask)
        image = self.encode_image(pixel_values, pixel_mask, patches)
        pooled = image.pooled if image_index is None else image.pooled[image_index]
        if len(text.pooled) != len(pooled):
            raise ShapeError(
                f"{len(text.pooled)} texts and {len(pooled)} images are no pairs: say which image "
                "belongs to every text, image_index (b,)"
            )
        if task == "pretraining":
            logits = self.mlm_score(text.states)
        else:
            logits = self._score(text.pooled, pooled)
        loss = None if labels is None else _task_loss(task, logits, labels)
        return ViltDualEncoderOutput(loss, logits, text.pooled, image.pooled.flatten(0, -2))


def _task_loss(task: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The task's own loss, as ViLT is trained: no part of DiDE's fine-tuning."""
    if task == "retrieval":
        raise OptionError(
            "retrieval has no loss of a single pair: its scores are compared over candidates"
        )
    if task == "vqa":
        if labels.shape != logits.shape:
            raise ShapeError(
                f"labels of VQA are scores of every answer, {tuple(logits.shape)}; got "
                f"{tuple(labels.shape)}"
            )
        summed = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum")
        return summed / max(1, len(logits))
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _mlp(before: int, between: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, between), nn.LayerNorm(between), nn.GELU(), nn.Linear(between, after)
    )


def _sizes_of(model: Any) -> dict[str, Any]:
    """The fields of a ViLT's configuration that its towers keep."""
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in ("vilt", "vilt_dual_encoder"):
        raise OptionError(
            f"a student starts from a ViLT of transformers, its name or path; got "
            f"{type(model).__name__}"
        )
    return {name: getattr(config, name) for name in _SIZES}


_SIZES = (
    "vocab_size", "type_vocab_size", "max_position_embeddings", "hidden_size",
    "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "initializer_range", "layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias",
    "pad_token_id",
)  # fmt: skip
