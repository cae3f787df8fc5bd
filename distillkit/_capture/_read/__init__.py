"""From what was noted to attentions: axes told in factors of batch, heads, queries and keys."""
