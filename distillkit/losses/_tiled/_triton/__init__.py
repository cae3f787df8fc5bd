"""The comparison of two attentions, and of two chunks of logits, as kernels for a GPU.

The same numbers as the loops next door compute, on tiles that stay in a GPU's registers.
docs/explanation/kernels.md derives them. triton is imported nowhere else, and only when a call
asks for these kernels.

- ``scores``: one tile of one side, from queries and keys. ``values``: the value of each row.
  ``slopes``: the gradients of queries and keys. ``rows``: value and slopes of logits that are
  there. These four hold kernels and nothing else.
- ``geometry``: the sizes of tiles. ``launch``: one call of a kernel, as data.
- ``attention``: from a comparison to launches: the loop that an operator runs.
- ``support``: which comparisons the kernels can do, and which machine runs them.
"""
