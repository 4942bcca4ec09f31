"""Processes that try things on a GPU which one of them may break for all that its process does after it."""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

#: Instead of a verdict, where the process has no GPU any more.
LOST = "the GPU was lost to another candidate"


class Processes:
    """Workers that try candidates. Those that a candidate has taken the GPU from are replaced."""

    def __init__(self, count: int | None) -> None:
        self.count = count
        self._begin()

    def map(self, function: Callable[[Any], str | None], jobs: Sequence[Any]) -> list[str | None]:
        """``function`` of each job, in their order; what came out ``LOST`` is tried again by other processes."""
        found = self.pool.map(function, jobs, chunksize=1)
        while lost := [i for i, why in enumerate(found) if why == LOST]:
            self.close()
            self._begin()
            for i, why in zip(lost, self.pool.map(function, [jobs[i] for i in lost], chunksize=1), strict=True):
                found[i] = why
            if all(found[i] == LOST for i in lost):
                raise RuntimeError("the GPU does not answer, in new processes either: expected one that works")
        return found

    def _begin(self) -> None:
        # Spawned, not forked: a fork of a process that uses a GPU may hang.
        self.pool = multiprocessing.get_context("spawn").Pool(self.count)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()
