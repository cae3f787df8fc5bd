"""What one attention operation consumed: where its scores come from, and what of it counts."""

from .attention import Attention as Attention
from .keep import Keep as Keep
from .keep import both_rows as both_rows
from .precision import inner_products as inner_products
from .precision import widen as widen
from .source import split_heads as split_heads
