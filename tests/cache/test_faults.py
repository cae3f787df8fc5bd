"""What was broken on purpose: nothing that was stored is lost, and nothing wrong is returned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the real processes came to, scenario by scenario."""
    command = [sys.executable, "-m", "tests.cache.processes", tmp_path_factory.mktemp("processes")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)

    def of(scenario):
        assert "failure" not in results[scenario], results[scenario]["failure"] + done.stderr
        return results[scenario]

    return of


# -------------------------------------------------------------------------------- real processes


@forks
def test_fifty_kills_at_random_lose_a_shard_each_at_most(found):
    result = found("killed_at_random")
    assert result["kills"] == 50
    assert result["with_shards"] > 10
    assert result["caches"] < result["kills"]  # each was killed several times


@forks
def test_a_kill_at_any_step_of_writing_loses_a_shard_at_most(found):
    result = found("killed_at_every_step")
    assert result["steps"] > 20
    assert result["with_unfinished_files"] > 5


@forks
def test_two_writers_of_one_name_are_refused(found):
    result = found("two_writers")
    assert "another process is writing" in result["error"]
    assert "writer='b'" in result["error"]
    assert result["unchanged"]
    assert result["another_name"]


@forks
def test_ranks_fill_side_by_side_and_any_number_of_processes_reads(found):
    assert found("ranks_side_by_side") == {"writers": ["rank-0", "rank-1"], "unfinished": []}


@forks
def test_ranks_that_fill_the_same_examples_do_no_harm(found):
    assert found("ranks_with_the_same_examples") == {"examples": 24, "damaged": 0}


@forks
def test_a_reader_sees_whole_examples_while_a_writer_writes(found):
    result = found("reading_while_writing")
    assert result["refused"] > 0
    assert result["early"] > 0


@forks
def test_a_worker_that_outlives_a_killed_writer_keeps_nobody_out(found):
    found("a_worker_outlives_its_writer")
