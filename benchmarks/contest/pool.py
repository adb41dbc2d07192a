"""Run tasks, one thread each, in as many processes as there are jobs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from contest.records import Record
from contest.task import Task, run_task


def run_all(tasks: Sequence[Task], jobs: int) -> None:
    """Run what is not done yet; every finished task is a file, so that an interruption loses only what was running."""
    waiting = [task for task in tasks if task.done() is None]
    print(f"{len(tasks) - len(waiting)} of {len(tasks)} trainings are done already", flush=True)
    if not waiting:
        return
    waiting[0].contest.open()  # paint before there are several processes
    if jobs == 1:
        for task in waiting:
            _tell(run_task(task))
        return
    # Two processes of one thread do more than one of two; a thread that waits actively would slow the others down.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_task, task) for task in waiting]
        try:
            for future in as_completed(futures):
                _tell(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _tell(record: Record) -> None:
    clock = time.strftime("%H:%M:%S")
    pq, things = (100 * (record["scores"][name] or 0.0) for name in ("pq", "pq_things"))
    print(
        f"{clock} {record['stage']} {record['method']} trial {record['trial']} seed {record['seed']}: PQ {pq:.1f}, "
        f"things {things:.1f}; {record['steps']} steps in {record['train_seconds']:.0f} s",
        flush=True,
    )
