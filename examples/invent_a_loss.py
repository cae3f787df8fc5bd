"""Invent a loss and put it through the conformance kit, once right and once broken.

python examples/invent_a_loss.py
"""

import hypothesis
import torch

from distillkit import LossSpec, losses, testing

SIGNATURE = "(v),(v)->()"


def triangular(student, teacher, *, temperature=1.0):
    """T² Σ (p - q)² / (p + q): between 0 and 2 T², the same both ways (Topsøe, 2000)."""
    student, teacher = losses.checked_pair("triangular", SIGNATURE, student, teacher)
    q, p = ((logits / temperature).softmax(-1) for logits in (student, teacher))
    total = p + q
    some = total != 0  # a class that neither uses
    terms = torch.where(some, (p - q).square() / torch.where(some, total, 1), 0)
    return temperature**2 * terms.sum(-1)


def broken(student, teacher, *, temperature=1.0):
    """The same with four mistakes that still train, mostly."""
    q, p = ((logits / temperature).softmax(0) for logits in (student, teacher))
    return ((p - q).square() / (p + q)).sum(-1)


def main():
    """Print what the kit sees of both."""
    # the same inputs in every run, so that this output can be compared with the documentation's
    hypothesis.settings.register_profile("same", derandomize=True)
    hypothesis.settings.load_profile("same")
    promises = ("nonnegative", "symmetric", "shift_invariant", "temperature_squared")
    for function in (triangular, broken):
        spec = LossSpec(function.__name__, function, signature=SIGNATURE, tags=promises, bound=2.0)
        results = testing.check_loss(spec)
        passed = sum(result.passed for result in results)
        print(f"{spec.name}: {passed} of {len(results)} checks passed")
        for result in results:
            if not result.passed:
                print(f"  {result.name}: {result.seen}")


if __name__ == "__main__":
    main()
