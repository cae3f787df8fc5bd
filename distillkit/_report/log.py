"""Write the log of a training: one JSON line for each logged step."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from .._objective.checks import Check
from .._objective.distiller import Distilled, Distiller
from ..errors import LogError, OptionError
from ..losses._gathering import processes
from .facts import facts_of, versions
from .files import RunFiles
from .lines import Begin, End, Facts, Look, Numbers, Step, as_number, finite
from .watch import Looked, Watch, look

_WEIGHT = "weight/"


class RunLog:
    """The log of one training, in a folder that ``python -m distillkit report`` makes a page of.

    Each line is written at once, so that a training that is killed loses at most the line that it
    was writing. A folder with a log is gone on with: what follows is appended, and steps that are
    trained again replace those from before. In several processes all of them make a log and write
    to it, and the first alone has files. A second writer of one folder is an error.

    ``DistillationTrainer(run_log=)`` and ``DistillationModule(run_log=)`` write by themselves.

    Args:
        folder: of the run; it is made where there is none.
        distiller: whose training it is: the log then begins with the recipe, what to cite, and
            the sizes of the models. None: :meth:`begin` says it, or nobody.
        batch: a batch, on which ``distiller.check`` runs once, for the table of what is compared;
            by default that of ``watch``.
        watch: examples to look at every so often.

    Raises:
        LogError: another process writes there; the folder holds a log of another version, or
            cannot be written.
        OptionError: a watch without a distiller to look at.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with RunLog(folder) as log:
        ...     for step in range(3):
        ...         _ = log.write({"loss": 1.0 / (step + 1)}, step=step)
        >>> (Path(folder) / "run.jsonl").read_text().count('"kind":"step"')
        3
    """

    def __init__(
        self,
        folder: str | Path,
        distiller: Distiller | None = None,
        *,
        batch: Mapping[str, Any] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._watch, self._distiller = watch, distiller
        self._facts = Facts()
        self._files = RunFiles(self.folder)
        self._start, self._looking = time.perf_counter(), 0.0
        self._step = self._looked_at = -1
        self._begun = self._closed = False
        if distiller is not None:
            self.begin(distiller, batch)

    def begin(self, distiller: Distiller, batch: Mapping[str, Any] | None = None) -> None:
        """Say whose training it is; the clock starts. A later call does nothing.

        All processes call it: with a batch it runs both models once.

        Args:
            distiller: whose training it is.
            batch: as of the class.

        Raises:
            OptionError: the log has begun with another distiller, or with none.
            LogError: as of the class.
        """
        if self._begun and self._distiller is distiller:
            return
        if self._begun:
            raise OptionError(
                f"the log of {str(self.folder)!r} has begun "
                + ("without a distiller" if self._distiller is None else "with another distiller")
                + ": one log is of one training; call begin(distiller) before the first step"
            )
        if batch is None and self._watch is not None:
            batch = self._watch.batch
        check: Check | None = None if batch is None else distiller.check(batch)
        self._distiller, self._facts = distiller, facts_of(distiller, check)
        self._write_beginning()

    def write(self, values: Distilled | Mapping[str, Any], *, step: int) -> Mapping[str, float]:
        """Write the line of one step, and look at the watched examples where that is due.

        Reading a tensor waits for an accelerator: log every so many steps, of which
        :class:`Meter` has the means. All processes call it where there is a watch.

        Args:
            values: what a distiller returned; or numbers by name, as ``Meter.means()`` has them: a
                term's under its name with its weight beside it, as ``weight/<term>``; all others
                are shown by themselves.
            step: how many steps were taken.

        Returns:
            The readings of a look, for the loop's own logger: ``own/<term>`` and ``wrong/<term>``;
            nothing where no look was due.

        Raises:
            OptionError: a step that is none; a value that is no number.
            LogError: the log is closed, or cannot be written.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise OptionError(f"step= is how many steps were taken, 0 or more; got {step!r}")
        if self._closed:
            raise LogError(f"the log of {str(self.folder)!r} is closed; make another RunLog")
        if self._watch is not None and self._distiller is None:
            raise OptionError(
                "a watch looks at a distiller, and this log knows none: RunLog(folder, distiller, "
                "watch=...), or run_log.begin(distiller) before the first step"
            )
        numbers = _flat(values)
        if not self._begun or step < self._step:  # a training that starts anew, in one program
            self._write_beginning()
        entry = self._entry(numbers, step)
        self._step = step
        self._files.append(entry)
        return self._look(step)

    def end(self) -> None:
        """Say that the training is over. What is written afterwards opens the log again."""
        if self._begun and not self._closed:
            self._files.append(End(time=_now()))

    def close(self) -> None:
        """Say that the training is over, and let the folder go; a later call does nothing."""
        if self._closed:
            return
        self.end()
        self._closed = True
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:  # a training that failed is not over
            self._closed = True
            self._files.close()

    def __del__(self) -> None:
        files = getattr(self, "_files", None)  # None: the constructor failed before it had any
        if files is not None:
            files.close()

    def _entry(self, numbers: Mapping[str, float], step: int) -> Step:
        """The line of one step: what has a weight is a part."""
        parts: dict[str, float] = {}
        weights: dict[str, float] = {}
        others: dict[str, float] = {}
        for name, value in numbers.items():
            if name.startswith(_WEIGHT):
                weights[name.removeprefix(_WEIGHT)] = value
            else:
                others[name] = value
        loss = {name: others.pop(name) for name in ("loss",) if name in others}
        for name in list(others):
            if name in weights:
                parts[name] = others.pop(name)
        lost: dict[str, str] = {}

        def kept(group: Mapping[str, float], prefix: str) -> Numbers:
            numbers, gone = finite(group, prefix)
            lost.update(gone)
            return numbers

        return Step(
            step=step, time=_now(), elapsed=self._elapsed(), loss=kept(loss, "").get("loss"),
            parts=kept(parts, "parts/"), weights=kept(weights, "weights/"),
            values=kept(others, "values/"), nonfinite=lost, memory=_memory(),
        )  # fmt: skip

    def _look(self, step: int) -> dict[str, float]:
        """Look at the watched examples, if it is time; all processes run the models."""
        watch, distiller = self._watch, self._distiller
        if watch is None or distiller is None:
            return {}
        if 0 <= self._looked_at <= step < self._looked_at + watch.every:
            return {}
        elapsed, start = self._elapsed(), time.perf_counter()
        try:
            looked = look(distiller, watch)
        finally:
            seconds = time.perf_counter() - start
            self._looking += seconds
        if self._writes:
            self._write_look(looked, step, elapsed, seconds)
        self._looked_at = step  # a look that failed is due again
        return {
            f"{side}/{name}": value
            for side, values in (("own", looked.own), ("wrong", looked.wrong))
            for name, value in values.items()
        }

    def _write_look(self, looked: Looked, step: int, elapsed: float, seconds: float) -> None:
        own, lost = finite(looked.own, "own/")
        wrong, more = finite(looked.wrong, "wrong/")
        self._files.append(
            Look(
                step=step, elapsed=elapsed, seconds=round(seconds, 3), own=own, wrong=wrong,
                nonfinite={**lost, **more},
            )
        )  # fmt: skip
        if looked.scene is not None:
            self._files.append_attention(looked.scene, step)

    def _write_beginning(self) -> None:
        if self._writes:
            resumed = True if self._files.are_open else self._files.open()
            self._files.append(
                Begin(
                    time=_now(), resumed=resumed, ranks=processes(), versions=versions(),
                    facts=self._facts,
                )
            )  # fmt: skip
        if not self._begun:
            self._start, self._looking, self._begun = time.perf_counter(), 0.0, True

    @property
    def _writes(self) -> bool:
        """Whether this is the process that has the files."""
        rank = dist.get_rank() if processes() > 1 else int(os.environ.get("RANK", "0"))
        return rank == 0

    def _elapsed(self) -> float:
        return round(max(0.0, time.perf_counter() - self._start - self._looking), 4)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copy of what trains writes the one log

    def __reduce__(self) -> tuple[Any, ...]:
        return _another, (self.folder, self._watch)

    def __repr__(self) -> str:
        return f"RunLog({str(self.folder)!r})"


def _another(folder: Path, watch: Watch | None) -> RunLog:
    """The log in another process, which begins when it is written to."""
    return RunLog(folder, watch=watch)


def _flat(values: Distilled | Mapping[str, Any]) -> dict[str, float]:
    """Name -> number.

    Raises:
        OptionError: a value that is no number.
    """
    if isinstance(values, Distilled):
        weights = {f"{_WEIGHT}{name}": weight for name, weight in values.weights.items()}
        values = {**values.parts, **weights, "loss": values.loss}
    if not isinstance(values, Mapping):
        raise OptionError(
            "a step's values are what a distiller returned, or numbers by name, such as "
            f"Meter.means(); got {type(values).__name__}"
        )
    found = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            value = value.detach()
        number = as_number(value)
        if number is None:
            raise OptionError(
                f"{name!r} is no number: a log takes numbers and tensors of one entry; got "
                f"{_shown(value)}"
            )
        found[str(name)] = number
    return found


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    return repr(value)[:80]


def _now() -> float:
    return round(time.time(), 3)


def _memory() -> dict[str, int]:
    """The most bytes so far, where somebody knows."""
    found = {}
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        found["device"] = torch.cuda.max_memory_allocated()
    if sys.platform != "win32":
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host"] = most if sys.platform == "darwin" else most * 1024
    return found
