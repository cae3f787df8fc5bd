"""How many items a student's own loss is a mean of, and who divides by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._backbone.backbone import ITEMS
from .._backbone.batch import SideOfBatch
from .._backbone.scores import CANDIDATES, examples_with_scores
from .._capture.wrappers import accepted_arguments, unwrapped
from ..errors import SignalError
from .term import Term

_IGNORED = -100  # a label that no loss of torch or transformers counts


class TaskItems:
    """Counts what a student's own loss is a mean of: examples, or tokens with a label."""

    def __init__(self) -> None:
        self._shifts: bool | None = None  # whether logits at i are compared with the label at i + 1

    def are_tokens(self, batch: SideOfBatch) -> bool:
        """Whether labels are of tokens."""
        labels = _labels(batch)
        return labels is not None and labels.ndim > 1 and not labels.is_floating_point()

    def count(self, batch: SideOfBatch, output: Any, value: Tensor) -> Tensor | None:
        """The number of items; None where the loss has been divided by the caller's already.

        Args:
            batch: what the student saw.
            output: what it returned.
            value: its loss, which tells once how it pairs logits and labels.

        Raises:
            SignalError: the loss is no mean over labels that can be found.
        """
        if ITEMS in batch:
            return None
        if self._shifts is None and self.are_tokens(batch):
            labels = _labels(batch)
            assert labels is not None
            if not (labels != _IGNORED).any():  # a part without labels tells nothing, and has none
                return torch.zeros((), device=labels.device)
            self._shifts = _shifts(labels, _logits(output), value.detach())
        return self.known(batch)

    def known(self, batch: SideOfBatch) -> Tensor | None:
        """The number of items as far as the batch alone tells; None: it does not."""
        labels = _labels(batch)
        if labels is None or labels.is_floating_point() or labels.ndim == 0:
            device = None if labels is None else labels.device
            return torch.tensor(float(_examples(batch)), device=device)
        if labels.ndim == 1:
            return (labels != _IGNORED).sum()
        if self._shifts is None:
            return None
        counted = labels[:, 1:] if self._shifts else labels
        return (counted != _IGNORED).sum()


def counts_without_models(
    terms: Iterable[Term], batch: Mapping[str, Any], items: TaskItems, adapter: Any = None
) -> dict[str, Tensor] | None:
    """How much counts in a batch for each term, as far as the batch alone tells; None: it does not.

    A term over examples counts them all, unless an entry of the batch says which count, or its loss
    may return one value for the whole batch. Where entries have other numbers of examples, such as
    texts and images that are paired later, what an example is depends on the models, unless the
    student's adapter says it (``examples``).
    """
    lengths = {len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim > 0}
    own, counts = SideOfBatch(batch, "student"), {}
    told = getattr(adapter, "examples", None)
    known: dict[str, int] = {} if told is None else dict(told(own))
    pairs = known.get("logits", max(lengths, default=0))
    scored = examples_with_scores(own.get(CANDIDATES), pairs)
    if scored is not None:
        known["scores"] = scored
    for term in terms:
        if term.is_task:
            if len(lengths) != 1:
                return None
            if ITEMS in own:  # the caller divides, and nothing is to be counted
                continue
            found = items.known(own)
            if found is None:
                return None
            counts[term.name] = found
        elif term.per == "example" and not term.entries and term.has_values_of_examples:
            numbers = {known[one.student] for one in term.on if one.student in known}
            every = all(one.student in known for one in term.on)
            if not every:  # those of which nothing is said are of as many as the batch's entries
                numbers |= lengths
            if len(numbers) != 1:
                return None
            counts[term.name] = torch.tensor(float(min(numbers)))
        else:
            return None
    return counts


class OwnLoss:
    """Tells transformers' Trainer that it is not the model that divides by the number of items.

    A model that takes ``**kwargs`` looks to it as if its loss were divided by
    ``num_items_in_batch``, so that a loss made by a distiller would be added up over accumulated
    batches and never averaged. A copy or a pickle of the model says what the model said before.
    """

    def __init__(self, student: nn.Module) -> None:
        self._model = unwrapped(student)
        self._before = vars(self._model).get("accepts_loss_kwargs")
        if not isinstance(self._before, _Averaged):
            accepts = getattr(self._model, "accepts_loss_kwargs", None)
            if accepts is None:
                accepts = accepted_arguments(self._model).takes_any
            self._model.accepts_loss_kwargs = _Averaged(bool(accepts))  # type: ignore[assignment]

    def moved_to(self, student: nn.Module) -> OwnLoss:
        """The same for another student."""
        self.put_back()
        return OwnLoss(student)

    def put_back(self) -> None:
        """Let the model say what it said before."""
        if not isinstance(vars(self._model).get("accepts_loss_kwargs"), _Averaged):
            return
        if self._before is None:
            del self._model.accepts_loss_kwargs
        elif not isinstance(self._before, _Averaged):
            self._model.accepts_loss_kwargs = self._before


class _Averaged:
    """False here, and what the model said before in every copy of it."""

    def __init__(self, before: bool) -> None:  # noqa: FBT001
        self._before = before

    def __bool__(self) -> bool:
        return False

    def __copy__(self) -> bool:
        return self._before

    def __deepcopy__(self, _: object) -> bool:
        return self._before

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, (self._before,)


def _labels(batch: SideOfBatch) -> Tensor | None:
    for name in ("labels", "label"):
        if name in batch and isinstance(batch[name], Tensor):
            found: Tensor = batch[name]
            return found
    return None


def _examples(batch: SideOfBatch) -> int:
    for name in batch:
        entry = batch[name]
        if isinstance(entry, Tensor) and entry.ndim > 0:
            return entry.shape[0]
    raise SignalError("the batch holds no tensor to count the examples of")


def _logits(output: Any) -> Tensor | None:
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else None


def _shifts(labels: Tensor, logits: Tensor | None, value: Tensor) -> bool:
    """Whether a loss pairs logits with the next label, found out by computing it both ways."""
    if logits is not None and logits.ndim == labels.ndim + 1 and len(logits) == len(labels):
        logits = logits.detach().float()
        shorter = logits[:, -labels.shape[1] :]
        pairs = {True: (shorter[:, :-1], labels[:, 1:]), False: (shorter, labels)}
        for shifts, (scores, targets) in pairs.items():
            own = F.cross_entropy(
                scores.flatten(0, -2), targets.flatten().long(), ignore_index=_IGNORED
            )
            if torch.allclose(own, value.float(), rtol=1e-2):
                return shifts
    raise SignalError(
        "the student's own loss is no mean cross-entropy over labelled tokens, so how many items "
        "it is a mean of is not known; divide it yourself, Distiller(..., task_loss=lambda output, "
        f"batch: ...), or give the batch the entry {ITEMS!r} that the student's loss divides by"
    )
