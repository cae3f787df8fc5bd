"""Alignment losses: pure functions of ``(student, teacher)``, unreduced over leading axes.

Every loss consumes the axes of its signature and returns one value for each position that is
left; ``masked_mean`` makes a number of them. A family's ``__all__`` says what it publishes here.
"""

from ._attention import *
from ._citation import citation as citation
from ._contrastive import *
from ._correlation import *
from ._divergence import *
from ._dynamic_top_k import *
from ._feature import *
from ._gathering import *
from ._linear import *
from ._reduce import masked_mean as masked_mean
from ._relation import *
from ._signature import checked_attentions as checked_attentions
from ._signature import checked_pair as checked_pair
from ._target import *
from ._top_k import *

# identifiers alone: pytest puts others among the globals of what it rewrites
__all__ = sorted(name for name in globals() if name.isidentifier() and not name.startswith("_"))
