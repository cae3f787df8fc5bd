"""What each training of the paper costs by count: python examples/paper/cost.py --tflops 100"""

from __future__ import annotations

import argparse

from dide_paper.cost import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    reached = "10^12 operations that a device does in a second: its peak times the part reached"
    parser.add_argument("--tflops", type=float, default=100.0, help=reached)
    parser.add_argument("--batch", type=int, default=32, help="examples at a time on a device")
    options = parser.parse_args()
    print(table(options.tflops * 1e12, options.batch))


if __name__ == "__main__":
    main()
