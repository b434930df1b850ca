"""Runs of the real node under faults drawn from a seed; a failure names the seed that reproduces it exactly.

Covers: SAFETY 1, SAFETY 3, SAFETY 4, SAFETY 5, SAFETY 12, SAFETY 15, SAFETY 24, SAFETY 25, SAFETY 28, G.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tauraft.simulator.runs import play

BLOCK = 10
BLOCKS = 20


@pytest.mark.middle
@pytest.mark.timeout(400)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_two_hundred_seeds_of_faults_break_no_promise(block: int) -> None:
    outcomes = [play(seed) for seed in range(block * BLOCK, (block + 1) * BLOCK)]
    assert sum(outcome.acknowledged for outcome in outcomes) > 50 * BLOCK, "the workload hardly worked"
    assert sum(outcome.counted for outcome in outcomes) > 0


@pytest.mark.middle
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_is_the_same_run_in_a_fresh_process_whatever_its_hashes(hash_seed: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tauraft.simulator", "7"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    here = play(7)
    assert here.trace in told.stdout
    assert here == play(7)
