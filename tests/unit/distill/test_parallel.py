"""How many threads each of several processes has."""

import os

import pytest

from pipeline.distill import parallel
from pipeline.flow import sweep


@pytest.mark.parametrize(
    ("set_before", "threads"),
    [
        ({}, "2"),
        ({"OMP_NUM_THREADS": "3"}, "3"),  # by the user
        ({"OMP_NUM_THREADS": "4", parallel.SHARED_BY: "2"}, "1"),  # by a sweep, for each of two points
        ({"OMP_NUM_THREADS": "1", parallel.SHARED_BY: "8"}, "1"),
    ],
)
def test_processes_divide_the_cores_that_this_run_has(
    set_before: dict[str, str], threads: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("OMP_NUM_THREADS", parallel.SHARED_BY):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    parallel.divide_cores(4)
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_sweep_and_distill_call_it_the_same():
    assert parallel.SHARED_BY == sweep.SHARED_BY
