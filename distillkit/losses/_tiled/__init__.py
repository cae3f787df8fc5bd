"""Divergences of scores that are never all there: computed in tiles, forward and backward.

Attention compares rows of ``query @ key.T``, logits compare rows of ``hidden @ weight.T``. Both are
a divergence of two softmaxes of products, so both are computed here, by the same plan. This room
knows how to compute; which number a loss is, and what it demands of its arguments, is said in
``_attention.py`` and ``_linear.py``. docs/explanation/blockwise.md derives the formulas.

Read it in this order:

- ``comparison``: the data, two sides of scores and the rows that count.
- ``tiling``: how a comparison of attentions is cut, and which rows and keys are cut off.
- ``divergences``: the value of a row and its slopes, from scores that are at hand.
- ``scores``: one side's scores of a tile. ``gradients``: the sums that the slopes go into.
- ``attention`` and ``logits``: the two loops over tiles.
- ``operators`` and ``autograd``: the loops as one differentiable function, in every mode of torch.
- ``_triton``: the same numbers from kernels for a GPU, where a call asks for them.
"""
