"""Making the items of a study on many processes, GPUs and machines, over Ray (the extra ``ray``).

Each worker is an actor that holds a pipeline of its own and writes items itself, so ``out`` has to be a folder that all
machines see. A worker has one item at a time; the item of a worker that is lost goes to another.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lotts.compare.records import write_failure
from lotts.compare.runner import Runner
from lotts.compare.study import Item, Study

#: How often an item may take its worker down before it counts as failed.
TRIES = 3


def run_on_ray(study: Study, out: Path, items: list[Item], workers: int, gpus_per_worker: float | None = None) -> int:
    """Make items on ``workers`` actors; returns how many failed.

    A cluster is joined where RAY_ADDRESS names one, else this machine is one for the time being.

    Args:
        gpus_per_worker: share of a GPU of each; default: 1 where the cluster has GPUs and the study is not for the CPU.

    Raises:
        ImportError: ray is not installed.
        ValueError: ``workers`` is not from 1 up, or no worker can ever start with what the cluster has.
    """
    ray = check_workers(workers)
    if not items:
        return 0
    began_here = not ray.is_initialized()
    if began_here:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        if gpus_per_worker is None:
            gpus_per_worker = 1.0 if ray.cluster_resources().get("GPU") and study.device != "cpu" else 0.0
        most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if gpus_per_worker > most:
            raise ValueError(
                f"expected {gpus_per_worker:g} GPUs a worker on one machine: the cluster has {most:g} at most"
            )
        return _Fleet(ray, study, out.resolve(), gpus_per_worker).run(items, workers)
    finally:
        if began_here:
            ray.shutdown()


def check_workers(workers: int) -> Any:
    """The ray module; ImportError where it is not installed, ValueError for a number of workers under 1."""
    if workers < 1:
        raise ValueError(f"expected workers from 1 up, got {workers}")
    try:
        import ray
    except ImportError:
        raise ImportError("expected ray for --workers: pip install 'lotts[ray]'") from None
    return ray


class _Fleet:
    def __init__(self, ray: Any, study: Study, out: Path, gpus: float) -> None:
        self.ray, self.study, self.out = ray, study, out
        self.kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(Runner)

    def run(self, items: list[Item], workers: int) -> int:
        waiting, tries, failed = deque(items), dict.fromkeys((item.key for item in items), 0), 0
        at_work: dict[Any, tuple[Any, Item]] = {}

        def employ(worker: Any) -> None:
            if waiting:
                item = waiting.popleft()
                at_work[worker.__call__.remote(item)] = worker, item

        for _ in range(min(workers, len(items))):
            employ(self.kind.remote(self.study, self.out))
        with tqdm(total=len(items), unit="item", disable=None) as bar:
            while at_work:
                (ready,), _ = self.ray.wait(list(at_work), num_returns=1)
                worker, item = at_work.pop(ready)
                try:
                    failed += not self.ray.get(ready)
                except self.ray.exceptions.RayError as error:
                    tries[item.key] += 1
                    if tries[item.key] < TRIES:
                        waiting.append(item)
                    else:
                        write_failure(self.out, item, error)
                        failed += 1
                        bar.update()
                    if waiting:
                        employ(self.kind.remote(self.study, self.out))
                else:
                    bar.update()
                    employ(worker)
                del worker  # one that is not employed any more makes room for one that waits for its place
        return failed
