"""Compare every loss with independent implementations: make oracles.

Writes docs/reference/losses-oracles.md and fails where a value differs. An oracle that cannot be
imported is listed with its error.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit import losses

DOCUMENT = Path(__file__).parents[1] / "docs/reference/losses-oracles.md"
T = 1.7


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


S, E = 2 * normal(4, 6, seed=1), 2 * normal(4, 6, seed=2)
Q, P = (scipy.special.softmax(x.numpy() / T, -1) for x in (S, E))
ONE, OTHER = normal(5, 4, seed=3), normal(5, 4, seed=4)
WIDE = normal(5, 7, seed=5)
MAPS = normal(2, 3, 4, 5, seed=6), normal(2, 6, 4, 5, seed=7)

Pair = tuple[Tensor, object]
Comparison = Callable[[], Pair]


def trl_jsd(beta: float) -> Comparison:
    def compare() -> Pair:
        from trl.experimental.gkd.gkd_trainer import GKDTrainer

        labels = torch.zeros(1, 4, dtype=torch.long)
        theirs = GKDTrainer.generalized_jsd_loss(
            S[None], E[None], labels=labels, beta=beta, temperature=T
        )
        if beta in (0, 1):
            loss = losses.reverse_kl_divergence if beta else losses.kl_divergence
            return loss(S, E, temperature=T).mean() / T**2, theirs
        # TRL's mixture is beta teacher + (1 - beta) student, and so is its weight
        ours = losses.jensen_shannon_divergence(S, E, beta=beta, temperature=T)
        return ours.mean() / T**2, theirs

    return compare


def liger_jsd() -> Pair:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, temperature=T, compiled=False
    )
    weight = torch.eye(6)
    theirs = loss(S.float(), weight, E.float(), weight, torch.zeros(4, dtype=torch.long))
    return losses.jensen_shannon_divergence(S, E, temperature=T).mean() / T**2, theirs


def modelopt_kl() -> Pair:
    import modelopt.torch.distill as mtd

    theirs = mtd.LogitsDistillationLoss(temperature=T, reduction="batchmean")(S, E)
    return losses.kl_divergence(S, E, temperature=T).mean(), theirs


def torchmetrics_of(name: str) -> Comparison:
    def compare() -> Pair:
        from torchmetrics.functional import kl_divergence
        from torchmetrics.functional.regression import jensen_shannon_divergence

        p, q = torch.from_numpy(P), torch.from_numpy(Q)
        theirs = {"kl_divergence": kl_divergence,
                  "jensen_shannon_divergence": jensen_shannon_divergence}[name](p, q)  # fmt: skip
        return getattr(losses, name)(S, E, temperature=T).mean() / T**2, theirs

    return compare


def transport() -> Pair:
    import ot

    cost = 1 - np.eye(6)
    theirs = [ot.emd2(p, q, cost) for p, q in zip(P, Q, strict=True)]
    return losses.total_variation(S, E, temperature=T) / T**2, theirs


def sorted_transport() -> Pair:
    theirs = [6 * scipy.stats.wasserstein_distance(p, q) for p, q in zip(P, Q, strict=True)]
    return losses.universal_logit_distance(S, E, temperature=T) / T**2, theirs


def metric_learning() -> Pair:
    from pytorch_metric_learning.losses import NTXentLoss

    labels = torch.arange(5)
    theirs = NTXentLoss(temperature=0.2)(ONE, labels, ref_emb=OTHER, ref_labels=labels.clone())
    return losses.info_nce(ONE, OTHER, temperature=0.2).mean(), theirs


def torchdistill(name: str) -> Comparison:
    def compare() -> Pair:
        from torchdistill.losses import mid_level

        if name == "attention_transfer":
            loss = mid_level.ATLoss({}, "code")
            theirs = loss.compute_at_loss(*MAPS) * 20  # the mean over 4 x 5 positions
            return losses.attention_transfer(*MAPS).mean(), theirs
        if name.startswith("rkd"):
            loss = mid_level.RKDLoss("", "", 1.0, 1.0, reduction="mean")
            theirs = (
                loss.compute_rkd_distance_loss(WIDE, ONE)
                if name == "rkd_distance"
                else loss.compute_rkd_angle_loss(WIDE, ONE)
            )
            return getattr(losses, name)(ONE, WIDE).mean(), theirs
        if name == "pkt":
            loss = mid_level.PKTLoss("", "", "", "")
            # they average over n * n instead of the n examples
            return losses.pkt(ONE, WIDE).mean(), 5 * loss.cosine_similarity_loss(ONE, WIDE)
        q, p = torch.from_numpy(Q), torch.from_numpy(P)
        if name == "pearson_distance":
            theirs = 1 - mid_level.DISTLoss.pearson_correlation(q, p, 1e-12)
            return losses.pearson_distance(S, E, temperature=T) / T**2, theirs
        theirs = 1 - mid_level.DISTLoss.pearson_correlation(q.T, p.T, 1e-12)
        return losses.intra_class_pearson_distance(S, E, temperature=T) / T**2, theirs

    return compare


def cosines(one: Tensor, other: Tensor) -> np.ndarray:
    return 1 - scipy.spatial.distance.cdist(one.numpy(), other.numpy(), "cosine")


def stored(loss: Callable[..., Tensor]) -> Tensor:
    values, indices = E.log_softmax(-1).sort(-1, descending=True)
    return loss(S, values, indices, temperature=T)


JSD = T**2 * scipy.spatial.distance.jensenshannon(P, Q, axis=-1) ** 2
KL = T**2 * scipy.special.rel_entr(P, Q).sum(-1)

COMPARISONS: tuple[tuple[str, str, Comparison], ...] = (
    ("kl_divergence", "scipy", lambda: (losses.kl_divergence(S, E, temperature=T), KL)),
    ("kl_divergence", "torch", lambda: (
        losses.kl_divergence(S, E).mean(),
        F.kl_div(S.log_softmax(-1), E.log_softmax(-1), reduction="batchmean", log_target=True),
    )),
    ("kl_divergence", "torchmetrics", torchmetrics_of("kl_divergence")),
    ("kl_divergence", "trl", trl_jsd(0)),
    ("kl_divergence", "nvidia-modelopt", modelopt_kl),
    ("reverse_kl_divergence", "scipy", lambda: (
        losses.reverse_kl_divergence(S, E, temperature=T),
        T**2 * scipy.special.rel_entr(Q, P).sum(-1),
    )),
    ("reverse_kl_divergence", "trl", trl_jsd(1)),
    ("jensen_shannon_divergence", "scipy", lambda: (
        losses.jensen_shannon_divergence(S, E, temperature=T), JSD
    )),
    ("jensen_shannon_divergence", "torchmetrics", torchmetrics_of("jensen_shannon_divergence")),
    ("jensen_shannon_divergence", "trl", trl_jsd(0.3)),
    ("jensen_shannon_divergence", "liger-kernel", liger_jsd),
    ("total_variation", "POT", transport),
    ("soft_cross_entropy", "torch", lambda: (
        losses.soft_cross_entropy(S, E, temperature=T) / T**2,
        F.cross_entropy(S / T, torch.from_numpy(P), reduction="none"),
    )),
    ("soft_binary_cross_entropy", "torch", lambda: (
        losses.soft_binary_cross_entropy(S, E),
        F.binary_cross_entropy_with_logits(S, E.sigmoid(), reduction="none").sum(-1),
    )),
    ("universal_logit_distance", "scipy", sorted_transport),
    ("top_k_kl_divergence", "scipy", lambda: (stored(losses.top_k_kl_divergence), KL)),
    ("top_k_jensen_shannon_divergence", "scipy", lambda: (
        stored(losses.top_k_jensen_shannon_divergence), JSD
    )),
    ("pearson_distance", "scipy", lambda: (
        losses.pearson_distance(S, E, temperature=T) / T**2,
        [1 - scipy.stats.pearsonr(q, p)[0] for q, p in zip(Q, P, strict=True)],
    )),
    ("pearson_distance", "torchdistill", torchdistill("pearson_distance")),
    ("intra_class_pearson_distance", "scipy", lambda: (
        losses.intra_class_pearson_distance(S, E, temperature=T) / T**2,
        [1 - scipy.stats.pearsonr(q, p)[0] for q, p in zip(Q.T, P.T, strict=True)],
    )),
    ("intra_class_pearson_distance", "torchdistill", torchdistill("intra_class_pearson_distance")),
    ("mse", "torch", lambda: (losses.mse(S, E).mean(), F.mse_loss(S, E))),
    ("smooth_l1", "torch", lambda: (
        losses.smooth_l1(S, E, beta=0.5).mean(), F.smooth_l1_loss(S, E, beta=0.5)
    )),
    ("cosine_distance", "torch", lambda: (
        losses.cosine_distance(S, E), 1 - F.cosine_similarity(S, E)
    )),
    ("cosine_distance", "scipy", lambda: (
        losses.cosine_distance(ONE, OTHER), 1 - np.diag(cosines(ONE, OTHER))
    )),
    ("normalized_mse", "torch", lambda: (
        losses.normalized_mse(S, E).mean(), F.mse_loss(F.normalize(S), F.normalize(E))
    )),
    ("attention_transfer", "torchdistill", torchdistill("attention_transfer")),
    ("rkd_distance", "torchdistill", torchdistill("rkd_distance")),
    ("rkd_angle", "torchdistill", torchdistill("rkd_angle")),
    ("pkt", "torchdistill", torchdistill("pkt")),
    ("info_nce", "torch", lambda: (
        losses.info_nce(ONE, OTHER, temperature=0.2).mean(),
        F.cross_entropy(torch.from_numpy(cosines(ONE, OTHER)) / 0.2, torch.arange(5)),
    )),
    ("info_nce", "pytorch-metric-learning", metric_learning),
)  # fmt: skip

LOOSER = {
    ("jensen_shannon_divergence", "liger-kernel"): 1e-5,  # float32 inside
    ("pkt", "torchdistill"): 1e-5,  # adds 1e-7 in three places
}


def row(loss: str, oracle: str, compare: Comparison) -> tuple[str, str, str, bool]:
    """Loss, oracle with its version, largest difference, and whether they agree."""
    version = importlib.metadata.version(oracle).split("+")[0]
    try:
        ours, theirs = compare()
    except ImportError as error:
        return loss, f"{oracle} {version}", f"not imported: {error}", True
    theirs = theirs if isinstance(theirs, Tensor) else torch.as_tensor(np.asarray(theirs))
    error = (ours.detach().double() - theirs.detach().double()).abs().max()
    relative = float(error / theirs.abs().max().clamp_min(1e-12))
    allowed = LOOSER.get((loss, oracle), 1e-12)
    fine = relative < allowed
    return loss, f"{oracle} {version}", f"< {allowed:.0e}" if fine else f"{relative:.2g}", fine


HEAD = """# What each loss was compared with

`make oracles` calls independent implementations on the same float64 inputs and writes this page;
the largest difference is relative to their largest value. Constant factors are ours to undo: most
of them average where we return one value for each row, and only NVIDIA ModelOpt multiplies by T².
A loss that is not in the table has no counterpart there. `make test` compares every loss with
scipy, torch or a closed form written out example by example (`tests/losses/test_values.py`,
`tests/support/loss_oracle.py`).

| loss | compared with | relative difference |
| --- | --- | --- |
"""


def main() -> int:
    """Compare, write the page, and return how many differ."""
    warnings.simplefilter("ignore")
    rows = [row(*comparison) for comparison in COMPARISONS]
    in_order = sorted(rows, key=lambda one: one[0])  # stable: libraries stay in their order
    lines = [f"| `{loss}` | {oracle} | {difference} |" for loss, oracle, difference, _ in in_order]
    DOCUMENT.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return sum(not fine for *_, fine in rows)


if __name__ == "__main__":
    sys.exit(main())
