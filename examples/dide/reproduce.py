"""The whole study: how near a dual encoder comes to its teacher, and what buys it.

    python examples/dide/reproduce.py

trains every model of study/study.toml, one on each core, and appends a line for each to
examples/dide/out/study/results.jsonl. It can be stopped at any time, even killed: a second call
does what is left, and goes on in the middle of a training. At the end it writes docs/results.md
and its pictures from those lines.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import data
import figures
import models
import study_figures
import timing
import torch
from attention_examples import attention_examples, first_of_each_kind
from results import DOCUMENTS, read_results, written
from study_plan import HERE, ROOT, STUDY, Part, Run, Student, Study, Teacher, load_study
from torch import Tensor, nn
from training import (
    STUDENT_SCENES,
    Budget,
    Trained,
    accuracy,
    batch_of,
    batches,
    by_kind,
    distiller_of,
    new_student,
    teacher_signals,
    train_student,
    train_teacher,
    write_whole,
)
from whole_attention import WholeAttention

import distillkit as dk

KL_PAIRS = 500  # of the validation pairs, whose attention is read on the way


def train_one(run: Run, study: Study, out: Path) -> dict[str, Any]:
    """Train one model and measure it; its weights stay in ``out/weights``."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    began = time.process_time()
    train = _as_teacher if isinstance(run.model, Teacher) else _as_student
    trained = train(run, study, out)
    weights = weights_of(run, out)
    weights.parent.mkdir(parents=True, exist_ok=True)
    write_whole(weights, trained.model.state_dict())
    tested = {"validation": measured(trained.model, "val", study.scenes.val)}
    if run.is_tested:
        tested["test"] = measured(trained.model, "test", study.scenes.test)
    around = time.process_time() - began - trained.loop_seconds
    return {
        "run": run.key,
        "digest": run.digest,
        **tested,
        "cpu_seconds": round(trained.cpu_seconds, 2),
        "seconds": round(trained.seconds, 2),
        "other_cpu_seconds": round(trained.measuring_seconds + around, 2),
        "readings": [[r.step, r.seconds, _rounded(r.values)] for r in trained.readings],
        **where_it_ran(),
    }


def measured(model: nn.Module, split: data.Split, scenes: int) -> dict[str, float]:
    """Accuracy on a split, in all and by kind of question."""
    pairs = pairs_of(split, scenes)
    return _rounded(by_kind(accuracy(model, pairs), pairs))


def where_it_ran() -> dict[str, str]:
    """What figures depend on, beside the settings."""
    return {"torch": torch.__version__, "machine": processor()}


def processor() -> str:
    """The processor by its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def weights_of(run: Run, out: Path) -> Path:
    """Where a trained model lies, for every run of these settings."""
    return out / "weights" / f"{run.digest}.pt"


def trained_model(run: Run, out: Path) -> nn.Module:
    """A model of the study, as it was after training."""
    model = models.FusionEncoder() if isinstance(run.model, Teacher) else models.DualEncoder()
    model.load_state_dict(torch.load(weights_of(run, out), weights_only=True))
    return model.eval()


pairs_of = lru_cache(data.load)
stem_of = lru_cache(models.pretrain_stem)


def _as_teacher(run: Run, study: Study, out: Path) -> Trained:
    assert isinstance(run.model, Teacher)
    budget = Budget(run.steps, run.model.learning_rate, run.steps // study.read_every or 1)
    pairs, val = pairs_of("train", study.scenes.train), pairs_of("val", study.scenes.val)
    return train_teacher(
        budget, run.seed, stem_of(run.seed), pairs,
        lambda model: {"accuracy": accuracy(model, val).mean().item()},
        checkpoint=_checkpoint(run, out),
    )  # fmt: skip


def _as_student(run: Run, study: Study, out: Path) -> Trained:
    assert isinstance(run.model, Student)
    settings = run.model
    teacher_run = study.teacher_of(run)
    teacher = trained_model(teacher_run, out)
    student = new_student(run.seed, stem_of(run.seed))
    if settings.start == "teacher":
        start_from(student, teacher)
    labelled = study.scenes.train
    scenes = labelled + (study.scenes.unlabelled if settings.pretraining else 0)
    pairs, val = pairs_of("train", scenes), pairs_of("val", study.scenes.val)
    distiller = _distiller(student, teacher, settings)
    key = (teacher_run.digest, settings.teacher_adapter, settings.recipe, scenes)
    backbone = dk.Backbone(teacher, HERE / settings.teacher_adapter)
    signals = out / "signals" / run.digest  # a killed training does not ask the teacher again
    recipe = STUDY / settings.recipe
    known = _known(key, partial(teacher_signals, backbone, recipe, pairs, signals))
    reader = distiller_of(student, teacher, "dide.toml")
    expected = _known_of_val(teacher_run.digest, partial(reader.run_teacher, _batch_of_val(val)))

    def measure(model: nn.Module) -> dict[str, float]:
        kl = attention_kl_of(reader, val, expected)
        return {"accuracy": accuracy(model, val).mean().item(), "attention_kl": kl}

    trained = train_student(
        distiller,
        Budget(run.steps, settings.learning_rate, run.steps // study.read_every or 1),
        run.seed,
        known,
        pairs,
        measure,
        checkpoint=_checkpoint(run, out),
        attention_from=of_another_scene(pairs) if settings.maps != "own" else None,
        order=_order(run, range(labelled), range(labelled, scenes)),
    )
    reader.close()
    shutil.rmtree(signals, ignore_errors=True)
    return trained


def _order(run: Run, labelled: range, unlabelled: range) -> Iterator[Tensor]:
    """Scenes without labels for a share of the steps, then those with."""
    assert isinstance(run.model, Student)
    first = round(run.steps * run.model.pretraining)
    yield from batches(unlabelled, STUDENT_SCENES, first, run.seed)
    yield from batches(labelled, STUDENT_SCENES, run.steps - first, run.seed)


def _distiller(student: nn.Module, teacher: nn.Module, settings: Student) -> dk.Distiller:
    recipe = STUDY / settings.recipe
    adapter: Any = settings.student_adapter
    if settings.whole:
        adapter = WholeAttention(dk.DeclarativeAdapter.from_toml(HERE / adapter))
    return distiller_of(student, teacher, recipe, adapter, settings.teacher_adapter)


def _checkpoint(run: Run, out: Path) -> Path:
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{run.digest}.pt"


class _Latest:
    """The last value that was computed, by its key: one teacher's signals are large."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: Any = None

    def __call__(self, key: object, compute: Any) -> Any:
        if key != self._key:
            self._key = self._value = None  # the old ones go before the new ones come
            self._value = compute()
            self._key = key
        return self._value


_known, _known_of_val = _Latest(), _Latest()


def _batch_of_val(pairs: data.Pairs) -> dict[str, Tensor]:
    """The pairs whose attention is read on the way."""
    return batch_of(pairs, torch.arange(min(KL_PAIRS, len(pairs.answer))))


@torch.no_grad()
def attention_kl_of(reader: dk.Distiller, pairs: data.Pairs, expected: dk.Signals) -> float:
    """KL of both cross-modal attentions to the teacher's, their mean, over some pairs."""
    reader.eval()
    parts = reader(_batch_of_val(pairs), teacher_signals=expected).parts
    reader.train()
    return sum(v.item() for name, v in parts.items() if name.startswith("attention_kl")) / 2


def start_from(student: models.DualEncoder, teacher: models.FusionEncoder) -> None:
    """Both towers and the classifier begin as the teacher's."""
    for tower, embedding in ((student.text, teacher.words), (student.image, teacher.cells)):
        tower.embedding.load_state_dict(embedding.state_dict())
        tower.encoder.load_state_dict(teacher.encoder.state_dict())
    student.classifier.load_state_dict(teacher.classifier.state_dict())


def of_another_scene(pairs: data.Pairs) -> Tensor:
    """For every pair, one that asks the same about another scene."""
    other = torch.empty_like(pairs.question)
    for question in range(len(pairs.questions)):
        (same,) = torch.nonzero(pairs.question == question, as_tuple=True)
        other[same] = same.roll(len(same) // 2)  # neighbours can be about one scene
    return other


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items()}


# ---------------------------------------------------------------------------------- the command


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; half a line, left by a kill, is cut off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """One more line, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def left_of(
    runs: Sequence[Run], lines: Sequence[Mapping[str, Any]], out: Path
) -> tuple[list[Run], list[Run]]:
    """The runs to train, one of each settings, and those that are trained but not tested yet."""
    done = {line["digest"]: line for line in lines}
    first = {run.digest: run for run in reversed(runs)}
    kept = {digest for digest, run in first.items() if weights_of(run, out).exists()} & set(done)
    train = [run for digest, run in reversed(first.items()) if digest not in kept]
    tested = [run for run in runs if run.is_tested and run.digest in kept]
    unseen = {run.digest: run for run in tested if "test" not in done[run.digest]}
    return train, list(unseen.values())


def train_all(study: Study, runs: Sequence[Run], out: Path, workers: int) -> None:
    """Train what is missing; a line is written whenever one is done."""
    path = out / "results.jsonl"
    train, _ = left_of(runs, read_lines(path), out)
    wanted = len({run.digest for run in runs})
    print(f"{wanted - len(train)} of {wanted} models are there, {len(train)} to go", flush=True)
    context = multiprocessing.get_context("spawn")
    teachers = [run for run in train if isinstance(run.model, Teacher)]
    students = [run for run in train if not isinstance(run.model, Teacher)]
    for group in (teachers, students):  # students need their teachers
        with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
            waited = [pool.submit(train_one, run, study, out) for run in group]
            try:
                for one in as_completed(waited):
                    line = one.result()
                    append_line(path, line)
                    right = 100 * line["validation"]["all"]
                    seconds = line["cpu_seconds"]
                    print(
                        f"{line['run']}: {right:.1f} % of validation, {seconds:.0f} CPU-s",
                        flush=True,
                    )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    lines = read_lines(path)
    for run in left_of(runs, lines, out)[1]:  # the search trained it, and never tests
        line = next(one for one in reversed(lines) if one["digest"] == run.digest)
        test = measured(trained_model(run, out), "test", study.scenes.test)
        append_line(path, {**line, "run": run.key, "test": test})


def time_all(study: Study, out: Path) -> None:
    """What answers cost, one depth after the other, when nothing else runs."""
    lines = out / "results.jsonl"
    done = {(line["run"], line["digest"]) for line in read_lines(lines)}
    for one in study.throughput.runs():
        if (one.key, one.digest) in done:
            continue
        pairs = pairs_of("test", max(one.scenes))
        grid = timing.throughput(one.depth, pairs, one.scenes, one.questions, one.repeats)
        rounded = [
            (n, m, {way: float(f"{s:.4g}") for way, s in each.items()}) for n, m, each in grid
        ]
        append_line(
            lines, {"run": one.key, "digest": one.digest, "grid": rounded, **where_it_ran()}
        )
        print(f"{one.key}: timed", flush=True)


def publish(study: Study, out: Path, root: Path) -> None:
    """The results' lines, tables and pictures, into the documentation."""
    results = read_results(out / "results.jsonl", study)
    kept = "".join(json.dumps(line) + "\n" for line in results.lines.values())
    (root / "docs/results.jsonl").write_text(kept, encoding="utf-8")
    for name in DOCUMENTS:
        path = root / name
        path.write_text(written(path.read_text(encoding="utf-8"), results), encoding="utf-8")
    images = root / "docs/images"
    study_figures.draw_learning(images / "study-learning.png", results)
    study_figures.draw_kl(images / "study-attention-kl.png", results)
    study_figures.draw_throughput(images / "study-throughput.png", results)
    examples = attention_of_trained(study, out)
    figures.draw_attention(images / "study-attention.png", examples)
    print(f"{', '.join(DOCUMENTS)} and their pictures show these results", flush=True)


def attention_of_trained(study: Study, out: Path) -> list[figures.Example]:
    """Where teacher and students of the final comparison look, in the fullest test scenes."""
    seed, final = 0, [one for one in study.students if one.part == "final"]
    shown = (final[0], final[-1])  # what the comparison is about
    runs = {run.key: run for run in study.runs()}
    of_shown = {one.title or one.name: runs[f"{one.name}/{one.steps[0]}/{seed}"] for one in shown}
    teacher = trained_model(study.teacher_of(next(iter(of_shown.values()))), out)
    students = {name: trained_model(run, out) for name, run in of_shown.items()}
    test = pairs_of("test", study.scenes.test)
    index = first_of_each_kind(test, digits=5)
    return attention_examples(students, teacher, test, index)


def is_of(run: Run, parts: Sequence[str]) -> bool:
    """Whether a run is a student of some parts; teachers are of all."""
    return isinstance(run.model, Teacher) or run.model.part in parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=STUDY / "study.toml")
    parser.add_argument("--out", type=Path, default=HERE / "out/study")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--parts", nargs="*", choices=get_args(Part), help="only these students")
    parser.add_argument("--docs", type=Path, help="where README.md and docs/ are; here by default")
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [
        run for run in study.runs()
        if (arguments.seeds is None or run.seed in arguments.seeds)
        and (arguments.parts is None or is_of(run, arguments.parts))
    ]  # fmt: skip
    train_all(study, runs, arguments.out, arguments.workers)
    if arguments.seeds is not None or arguments.parts is not None:
        return
    time_all(study, arguments.out)
    ours = arguments.study.resolve() == (STUDY / "study.toml").resolve()
    root = arguments.docs or (ROOT if ours else None)  # another study is not what our pages tell of
    if root is not None:
        publish(study, arguments.out, root)


if __name__ == "__main__":
    main()
