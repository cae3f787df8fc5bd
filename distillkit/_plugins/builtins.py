"""The core's own losses, aligners, recipes and operations, through everybody's hooks."""

from __future__ import annotations

from .hookspecs import hookimpl
from .specs import AlignerSpec, LossSpec, OperationSpec, RecipeSpec


@hookimpl
def distillkit_losses() -> list[LossSpec]:
    return [
        LossSpec(
            "attention_cosine",
            "distillkit.losses:attention_cosine",
            signature="attention",
            tags=("nonnegative", "zero_at_identity", "symmetric"),
            summary="One minus the cosine of attention probabilities.",
            reference="",
        ),
        LossSpec(
            "attention_jsd",
            "distillkit.losses:attention_jsd",
            signature="attention",
            tags=("nonnegative", "zero_at_identity"),
            summary="Jensen-Shannon divergence of attention probabilities.",
            reference="agarwal-etal-2024-gkd",
        ),
        LossSpec(
            "attention_kl",
            "distillkit.losses:attention_kl",
            signature="attention",
            tags=("nonnegative", "zero_at_identity"),
            summary="Forward KL of attention probabilities, one value per query row.",
            reference="wang-etal-2022-distilled",
        ),
        LossSpec(
            "attention_mse",
            "distillkit.losses:attention_mse",
            signature="attention",
            tags=("nonnegative", "zero_at_identity", "symmetric"),
            summary="Mean squared difference of attention probabilities.",
            reference="jiao-etal-2020-tinybert",
        ),
        LossSpec(
            "attention_reverse_kl",
            "distillkit.losses:attention_reverse_kl",
            signature="attention",
            tags=("nonnegative", "zero_at_identity"),
            summary="Reverse KL of attention probabilities.",
            reference="wang-etal-2022-distilled",
        ),
        LossSpec(
            "attention_transfer",
            "distillkit.losses:attention_transfer",
            signature="(c,h,w),(d,h,w)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="Squared difference of feature maps' spatial attention.",
            reference="zagoruyko-komodakis-2017-paying",
        ),
        LossSpec(
            "cka_distance",
            "distillkit.losses:cka_distance",
            signature="(n,d),(n,e)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="One minus linear centred kernel alignment of the batch.",
            reference="kornblith-etal-2019-similarity",
        ),
        LossSpec(
            "contrastive_relational",
            "distillkit.losses:contrastive_relational",
            signature="(n,d),(n,d),(n,e),(n,e)->(n)",
            tags=("nonnegative", "zero_at_identity"),
            summary="KL of both models' image-text matching over the batch.",
            reference="yang-etal-2024-clipkd",
        ),
        LossSpec(
            "cosine_distance",
            "distillkit.losses:cosine_distance",
            signature="(d),(d)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="One minus the cosine similarity of two vectors.",
            reference="sanh-etal-2019-distilbert",
        ),
        LossSpec(
            "decoupled_kl_divergence",
            "distillkit.losses:decoupled_kl_divergence",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "shift_invariant"),
            summary="Forward KL with target and other classes weighted apart.",
            reference="zhao-etal-2022-decoupled",
        ),
        LossSpec(
            "info_nce",
            "distillkit.losses:info_nce",
            signature="(n,d),(n,d)->(n)",
            tags=("nonnegative", "scale_invariant"),
            summary="Finding one's own teacher embedding among the batch's.",
            reference="oord-etal-2018-cpc",
        ),
        LossSpec(
            "interactive_contrastive",
            "distillkit.losses:interactive_contrastive",
            signature="(n,d),(n,d),(n,d),(n,d)->(n)",
            tags=("nonnegative", "scale_invariant"),
            summary="Finding the partner among the teacher's embeddings.",
            reference="yang-etal-2024-clipkd",
        ),
        LossSpec(
            "intra_class_pearson_distance",
            "distillkit.losses:intra_class_pearson_distance",
            signature="(n,v),(n,v)->(v)",
            tags=("nonnegative", "zero_at_identity", "symmetric"),
            summary="One minus the correlation of each class over the batch.",
            reference="huang-etal-2022-dist",
        ),
        LossSpec(
            "jensen_shannon_divergence",
            "distillkit.losses:jensen_shannon_divergence",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "shift_invariant", "bounded"),
            summary="Jensen-Shannon divergence of softened logits.",
            reference="agarwal-etal-2024-gkd",
        ),
        LossSpec(
            "kl_divergence",
            "distillkit.losses:kl_divergence",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "shift_invariant"),
            summary="Forward KL of softened logits: soft labels.",
            reference="hinton-etal-2015-distilling",
        ),
        LossSpec(
            "mse",
            "distillkit.losses:mse",
            signature="(d),(d)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric"),
            summary="Mean squared difference over the width.",
            reference="romero-etal-2015-fitnets",
        ),
        LossSpec(
            "nkd",
            "distillkit.losses:nkd",
            signature="(v),(v)->()",
            tags=("nonnegative", "shift_invariant"),
            summary="Label weighted by the teacher, other classes normalised.",
            reference="yang-etal-2023-nkd",
        ),
        LossSpec(
            "normalized_mse",
            "distillkit.losses:normalized_mse",
            signature="(d),(d)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="Mean squared difference of vectors of length 1.",
            reference="yang-etal-2024-clipkd",
        ),
        LossSpec(
            "pearson_distance",
            "distillkit.losses:pearson_distance",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "shift_invariant"),
            summary="One minus the correlation of softened rows.",
            reference="huang-etal-2022-dist",
        ),
        LossSpec(
            "pkt",
            "distillkit.losses:pkt",
            signature="(n,d),(n,e)->(n)",
            tags=("nonnegative", "zero_at_identity", "scale_invariant"),
            summary="KL of each example's similarities to the batch.",
            reference="passalis-tefas-2018-pkt",
        ),
        LossSpec(
            "relation_kl",
            "distillkit.losses:relation_kl",
            signature="attention",
            tags=("nonnegative", "zero_at_identity"),
            summary="KL of relations between queries, keys or values.",
            reference="wang-etal-2021-minilmv2",
        ),
        LossSpec(
            "reverse_kl_divergence",
            "distillkit.losses:reverse_kl_divergence",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "shift_invariant"),
            summary="Reverse KL of softened logits.",
            reference="gu-etal-2024-minillm",
        ),
        LossSpec(
            "rkd_angle",
            "distillkit.losses:rkd_angle",
            signature="(n,d),(n,e)->(n,n,n)",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="Huber loss of the angles between three examples.",
            reference="park-etal-2019-rkd",
        ),
        LossSpec(
            "rkd_distance",
            "distillkit.losses:rkd_distance",
            signature="(n,d),(n,e)->(n,n)",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="Huber loss of distances between examples.",
            reference="park-etal-2019-rkd",
        ),
        LossSpec(
            "similarity_preserving",
            "distillkit.losses:similarity_preserving",
            signature="(n,d),(n,e)->(n,n)",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="Squared difference of the examples' similarities.",
            reference="tung-mori-2019-similarity",
        ),
        LossSpec(
            "smooth_l1",
            "distillkit.losses:smooth_l1",
            signature="(d),(d)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric"),
            summary="Squared near zero, absolute beyond.",
            reference="girshick-2015-fast",
        ),
        LossSpec(
            "soft_binary_cross_entropy",
            "distillkit.losses:soft_binary_cross_entropy",
            signature="(v),(v)->()",
            tags=("nonnegative",),
            summary="Binary cross-entropy of each class with soft labels.",
            reference="wang-etal-2022-distilled",
        ),
        LossSpec(
            "soft_cross_entropy",
            "distillkit.losses:soft_cross_entropy",
            signature="(v),(v)->()",
            tags=("nonnegative", "shift_invariant"),
            summary="Cross-entropy with the teacher's soft labels.",
            reference="hinton-etal-2015-distilling",
        ),
        LossSpec(
            "top_k_jensen_shannon_divergence",
            "distillkit.losses:top_k_jensen_shannon_divergence",
            signature="(v),(k),(k)->()",
            tags=("nonnegative",),
            summary="Jensen-Shannon divergence to k stored classes.",
            reference="agarwal-etal-2024-gkd",
        ),
        LossSpec(
            "top_k_kl_divergence",
            "distillkit.losses:top_k_kl_divergence",
            signature="(v),(k),(k)->()",
            tags=("nonnegative",),
            summary="Forward KL to k stored classes and a bucket for the rest.",
            reference="hinton-etal-2015-distilling",
        ),
        LossSpec(
            "total_variation",
            "distillkit.losses:total_variation",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "shift_invariant", "bounded"),
            summary="Total variation distance of softened logits.",
            reference="wen-etal-2023-fdivergence",
        ),
        LossSpec(
            "universal_logit_distance",
            "distillkit.losses:universal_logit_distance",
            signature="(v),(w)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "shift_invariant", "bounded"),
            summary="Distance of sorted probabilities, for unrelated vocabularies.",
            reference="boizard-etal-2024-uld",
        ),
    ]


@hookimpl
def distillkit_aligners() -> list[AlignerSpec]:
    return [
        AlignerSpec(
            "overlap",
            factory="distillkit._objective.overlap:aligner",
            summary="The teacher's attention on the student's tokens, by where both lie.",
        ),
        AlignerSpec(
            "projector",
            factory="distillkit._objective.align:Projector",
            summary="A trained linear map from the student's width to the teacher's.",
        ),
    ]


@hookimpl
def distillkit_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            "dide",
            resource="distillkit:recipes/dide.toml",
            summary="DiDE: soft labels and cross-modal attention of the last layer.",
        ),
        RecipeSpec(
            "dide_attention",
            resource="distillkit:recipes/dide_attention.toml",
            summary="DiDE's attention part, both directions, also where tokens differ.",
        ),
        RecipeSpec(
            "dide_text_to_image",
            resource="distillkit:recipes/dide_text_to_image.toml",
            summary="One direction, for teachers without image-to-text attention.",
        ),
    ]


@hookimpl
def distillkit_operations() -> list[OperationSpec]:
    return [
        OperationSpec(
            "scaled_dot_product_attention",
            target="torch.nn.functional:scaled_dot_product_attention",
            read="distillkit._capture.operations:read_scaled_dot_product_attention",
            summary="PyTorch's fused attention, whichever kernel runs it.",
        ),
        OperationSpec(
            "flex_attention",
            target="torch.nn.attention.flex_attention:flex_attention",
            read="distillkit._capture.operations:read_flex_attention",
            summary="PyTorch's attention with a score function and a block mask of one's own.",
        ),
    ]
