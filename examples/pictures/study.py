"""The paper's four tasks on drawings: what soft labels, attention and pre-training buy.

    python examples/pictures/study.py

reads the drawings that build.py made in examples/pictures/out, trains every model of
pictures_study/study.toml, one after another, and appends a line for each to
examples/pictures/out/study/results.jsonl. It can be stopped at any time, even killed: a second call
does what is left, and goes on in the middle of a training. Afterwards it writes docs/pictures.jsonl
and the tables of docs/pictures.md from the lines that there are. `--seeds 0` and `--seeds 1`
can run side by side.
"""

from __future__ import annotations

from pictures_study.command import main

if __name__ == "__main__":
    main()
