"""Run by torchrun: an attention loss computed in kernels on what a DDP model returned."""

from __future__ import annotations

import sys

from tests.distributed.attend_blockwise import share_the_examples

if __name__ == "__main__":
    share_the_examples("triton", sys.argv[1])
