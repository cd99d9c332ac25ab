"""One function over many tasks, here or in several processes; results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

__all__ = ["run_tasks"]

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def run_tasks(
    function: Callable[[Task], Answer], tasks: Sequence[Task], processes: int
) -> Iterator[Answer]:
    """Yield ``function(task)`` of every task.

    Args:
        function: of a module, so that other processes can import it.
        tasks: what to do.
        processes: how many at a time; 1 stays in this process.
    """
    if processes == 1:
        yield from map(function, tasks)
        return
    threads = max((os.cpu_count() or 1) // processes, 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_limit, initargs=(threads,)
    ) as pool:
        yield from pool.map(function, tasks)


def _limit(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
