"""Alignment losses: pure functions of ``(student, teacher)``, unreduced over leading axes.

Every loss consumes the axes of its signature and returns one value for each position that is
left; ``masked_mean`` makes a number of them.
"""

from ._attention import attention_cosine as attention_cosine
from ._attention import attention_jsd as attention_jsd
from ._attention import attention_kl as attention_kl
from ._attention import attention_mse as attention_mse
from ._attention import attention_reverse_kl as attention_reverse_kl
from ._attention import shared_rows as shared_rows
from ._citation import citation as citation
from ._contrastive import contrastive_relational as contrastive_relational
from ._contrastive import gather as gather
from ._contrastive import info_nce as info_nce
from ._contrastive import interactive_contrastive as interactive_contrastive
from ._correlation import intra_class_pearson_distance as intra_class_pearson_distance
from ._correlation import pearson_distance as pearson_distance
from ._correlation import standardize_logits as standardize_logits
from ._divergence import jensen_shannon_divergence as jensen_shannon_divergence
from ._divergence import kl_divergence as kl_divergence
from ._divergence import reverse_kl_divergence as reverse_kl_divergence
from ._divergence import soft_binary_cross_entropy as soft_binary_cross_entropy
from ._divergence import soft_cross_entropy as soft_cross_entropy
from ._divergence import total_variation as total_variation
from ._divergence import universal_logit_distance as universal_logit_distance
from ._feature import attention_transfer as attention_transfer
from ._feature import cosine_distance as cosine_distance
from ._feature import mse as mse
from ._feature import normalized_mse as normalized_mse
from ._feature import smooth_l1 as smooth_l1
from ._reduce import masked_mean as masked_mean
from ._relation import cka_distance as cka_distance
from ._relation import distinct_pairs as distinct_pairs
from ._relation import distinct_triplets as distinct_triplets
from ._relation import pkt as pkt
from ._relation import relation_kl as relation_kl
from ._relation import rkd_angle as rkd_angle
from ._relation import rkd_distance as rkd_distance
from ._relation import similarity_preserving as similarity_preserving
from ._signature import checked_pair as checked_pair
from ._target import decoupled_kl_divergence as decoupled_kl_divergence
from ._target import nkd as nkd
from ._top_k import top_k_jensen_shannon_divergence as top_k_jensen_shannon_divergence
from ._top_k import top_k_kl_divergence as top_k_kl_divergence

# identifiers alone: pytest puts others among the globals of what it rewrites
__all__ = sorted(name for name in globals() if name.isidentifier() and not name.startswith("_"))
