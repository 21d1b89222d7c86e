"""The shards of a job on a Ray cluster, by Ray Data.

Workers read their shards from the input files and write them to the job's folder, so every machine
must see both under the same path. Only shard numbers go through Ray.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.extras import extra
from nexus_integrations.jobs.plan import Plan
from nexus_integrations.jobs.shards import PLAN, Done, Job, fingerprint_of


def embed_on_ray(
    folder: Path,
    pending: Sequence[int],
    load: Callable[[], DendriticEncoder],
    workers: int | None = None,
) -> Iterator[Done]:
    """Embed the pending shards of the job in `folder`, and yield each when it is written.

    The cluster is the one that this process is connected to, or that of the environment's
    RAY_ADDRESS, or one of this machine, started for the job. `load` loads `workers` encoders, by
    default one per machine, which share the CPUs evenly. Ray's usage statistics are switched off.

    Raises `ImportError` without Ray, `ValueError` for more workers than CPUs, and `RuntimeError`
    when a worker failed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when a cluster is started
    with extra("ray"):
        import ray
        import ray.data
    with _connected(ray), _quiet():
        count, cpus = _shared_out(ray, workers)
        shards = ray.data.from_items(
            [{"shard": number} for number in pending], override_num_blocks=len(pending)
        )
        done = shards.map_batches(
            _Worker,
            fn_constructor_args=(str(folder), load),
            batch_size=1,
            num_cpus=cpus,
            compute=ray.data.ActorPoolStrategy(size=min(count, len(pending))),
        )
        try:
            for row in done.iter_rows():
                yield Done(row["shard"], row["rows"], row["truncated"])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise RuntimeError(f"a Ray worker failed: {cause}") from error


class _Worker:
    """An encoder in a process of the cluster."""

    def __init__(self, folder: str, load: Callable[[], DendriticEncoder]) -> None:
        self._job = Job(Path(folder), Plan.load(Path(folder, PLAN)))
        self._encoder = load()
        plan = self._job.plan
        if fingerprint_of(self._encoder, plan.role) != plan.fingerprint:
            raise ValueError(
                f"the model on {platform.node()} is not that of the job: its fingerprint "
                "differs. Give all machines the same model and versions"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        done = [self._job.embed(int(number), self._encoder) for number in batch["shard"]]
        return {
            "shard": [one.number for one in done],
            "rows": [one.rows for one in done],
            "truncated": [one.truncated for one in done],
        }


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connect to a cluster unless this process is connected; leave it as it was found."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    started = {} if address else {"include_dashboard": False}
    ray.init(
        address=address or "local",
        log_to_driver=False,
        logging_level=logging.WARNING,
        **started,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Show the job's own progress bar, and only errors of Ray Data."""
    from ray.data import DataContext

    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def _shared_out(ray: Any, workers: int | None) -> tuple[int, int]:
    """Return how many workers there are and how many CPUs each one has."""
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    machines = [cpus for cpus in machines if cpus]
    if not machines:
        raise RuntimeError("the Ray cluster has no CPU: add a machine with ray start")
    if workers is None:
        return len(machines), min(machines)
    if workers > sum(machines):
        raise ValueError(f"{workers} workers need a CPU each, the Ray cluster has {sum(machines)}")
    # The most CPUs per worker with which all of them find room.
    fitting = (p for p in range(max(machines), 0, -1) if sum(m // p for m in machines) >= workers)
    return workers, next(fitting)
