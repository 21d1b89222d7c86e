"""What a nudge promises when stores are mixed up, documents embedded anew, writers many."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from threading import Thread

import numpy as np
import pytest
from test_index_contract import postgres_uri  # noqa: F401
from test_nudge_apply import World
from test_nudge_life import FIXED, NEW, Life, files

from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, StateFolder, nudge_index

# A vector of another text, near none of the world's.
ANEW = np.eye(12, dtype=np.float32)[0]


class Named(MemoryIndex):
    """An index whose store can hold a note."""

    identity = ""


def copy_of(index: MemoryIndex, kind: type[MemoryIndex] = MemoryIndex) -> MemoryIndex:
    ids = [id_ for batch in index.ids() for id_ in batch]
    return kind(ids, index.vectors(ids), index.metric)


@pytest.fixture
def life(toy, tmp_path):
    return Life(toy, tmp_path / "state")


OPERATIONS: dict[str, Callable] = {
    "undo": lambda life, index: life.folder.undo(index),
    "forget": lambda life, index: life.folder.forget(index, {"train0"}.__contains__),
    "observe": lambda life, index: life.folder.observe(
        index, life.question("dev0"), NEW, query_id="dev0"
    ),
    "apply": lambda life, index: nudge_index(
        index, life.encoder, life.train, life.dev, FIXED, state_dir=life.folder
    ),
}


def test_a_state_is_its_owners_alone(life):
    """The folder is 0700, and what holds ids and vectors 0600, journal and lock included."""
    life.folder.observe(life.index, life.question("dev0"), NEW, query_id="dev0")
    assert life.folder.folder.stat().st_mode & 0o777 == 0o700
    for path in life.folder.folder.iterdir():
        if path.name != "nudge.json":  # figures, which only the owner reaches here
            assert path.stat().st_mode & 0o777 == 0o600, path.name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_state_on_another_store_is_refused(life, operation):
    """Staging was never nudged: nothing is written there, and production can be undone still."""
    staging = MemoryIndex(life.ids, life.vectors)
    before = files(life.folder.folder)
    with pytest.raises(ValueError, match=r"does not belong to the store given: none of the \d+"):
        OPERATIONS[operation](life, staging)
    assert staging.vectors(life.ids).tobytes() == life.vectors.tobytes()
    assert files(life.folder.folder) == before
    assert life.folder.undo(life.index) == len(life.touched)
    assert life.stored().tobytes() == life.vectors.tobytes()


@pytest.mark.parametrize("operation", [*OPERATIONS, "refresh"])
def test_a_copy_of_the_store_is_told_by_its_identity(toy, tmp_path, operation):
    """Staging is a copy with the moved vectors: the store's own id tells it from production."""
    world = World(toy)
    world.index = copy_of(world.index, Named)
    world.index.identity = "production"
    nudge_index(world.index, world.encoder, world.train, config=FIXED, state_dir=tmp_path)
    life = Life(toy, None)
    life.folder = StateFolder(tmp_path)
    staging = copy_of(world.index, Named)
    staging.identity = "staging"
    call = {**OPERATIONS, "refresh": lambda life, index: life.folder.refresh(index)}[operation]
    with pytest.raises(ValueError, match=r"belongs to another store \(its identity differs\)"):
        call(life, staging)
    assert StateFolder(tmp_path).undo(world.index) == len(world.touched)


def test_undo_keeps_the_state_when_most_cannot_be_put_back(life):
    """More than half of the documents are gone: counts are named, and a word insists."""
    gone = life.touched[: len(life.touched) // 2 + 1]
    kept = [id_ for id_ in life.ids if id_ not in gone]
    smaller = MemoryIndex(kept, life.index.vectors(kept))
    message = rf"{len(gone)} of {len(life.touched)} documents cannot be put back"
    with pytest.raises(ValueError, match=message):
        life.folder.undo(smaller)
    assert life.folder.state is not None
    with pytest.raises(ValueError, match=rf"{len(gone)} of {len(life.touched)} documents would"):
        life.folder.refresh(smaller)
    assert life.folder.undo(smaller, force=True) == len(life.touched) - len(gone)


@pytest.mark.parametrize("operation", ["forget", "finish", "undo after a kill", "observe"])
def test_documents_embedded_anew_are_not_overwritten(life, operation):
    """Another tool gave a nudged document the vector of its new text: it stays."""
    (document,) = life.train.relevant_docs["train0"][:1]
    if operation in ("finish", "undo after a kill"):
        life.index.broken = True
        whole = life.index.replace
        life.index.replace = lambda *_: (_ for _ in ()).throw(ConnectionError("gone"))
        with pytest.raises(ConnectionError):
            life.folder.forget(life.index, {"train0"}.__contains__)
        life.index.replace = whole
    life.index.replace([document], ANEW[None])
    if operation == "forget":
        forgotten = life.folder.forget(life.index, {"train0"}.__contains__)
        assert (forgotten.questions, forgotten.passed_over) == (1, 1)
        assert "1 passed over" in str(forgotten)
    elif operation == "finish":
        assert life.folder.finish(life.index)
    elif operation == "undo after a kill":
        life.folder.undo(life.index)
    else:
        with pytest.raises(ValueError, match=f"{document}' was embedded anew .* call refresh"):
            life.observe("dev0", document)
    np.testing.assert_array_equal(life.index.vectors([document])[0], ANEW)


def test_applying_again_takes_a_new_vector_for_the_base(life):
    """A document embedded anew is nudged from its new vector, and undone to it."""
    document = life.touched[0]
    life.index.replace([document], ANEW[None])
    life.nudge(FIXED, state_dir=life.folder)
    life.folder.undo(life.index)
    np.testing.assert_array_equal(life.index.vectors([document])[0], ANEW)


def test_forgotten_questions_stay_forgotten_and_observed_ones_stay(life):
    """Applying again with the same train: the forgotten id is not learned, the observed one is."""
    life.observe("dev0", NEW)
    life.folder.forget(life.index, {"train0"}.__contains__)
    result = life.nudge(FIXED, state_dir=life.folder)
    assert result.forgotten == 1
    assert "1 forgotten questions not learned again" in str(result)
    expected, _ = life.fresh({"dev0": NEW}, without={"train0"})
    np.testing.assert_allclose(life.stored(), expected, atol=1e-6)
    reopened = StateFolder(life.folder.folder)
    assert "train0" not in reopened.state.query_ids
    assert "dev0" in reopened.state.query_ids
    life.nudge(FIXED, state_dir=reopened)  # and once more, from the files
    np.testing.assert_allclose(life.stored(), expected, atol=1e-6)
    # The memory of what was forgotten outlives the nudge, and does not hold the id.
    reopened.undo(life.index)
    assert life.nudge(FIXED, state_dir=reopened).forgotten == 1
    assert not any(b'train0"' in content for content in files(reopened.folder).values())


def test_many_writers_take_turns(life):
    """Eight threads observe two questions each: all sixteen are learned, none is refused."""
    failures: list[BaseException] = []

    def two(first: int) -> None:
        folder = StateFolder(life.folder.folder)
        for number in (first, first + 1):
            try:
                life.observe(f"dev{number}", NEW, folder)
            except BaseException as error:
                failures.append(error)

    threads = [Thread(target=two, args=(2 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {f"dev{number}" for number in range(16)} <= set(
        StateFolder(life.folder.folder).state.query_ids
    )
    expected, _ = life.fresh({f"dev{number}": NEW for number in range(16)})
    np.testing.assert_allclose(life.stored(), expected, atol=1e-5)


def test_a_store_that_keeps_old_versions_is_purged(toy, tmp_path):
    """LanceDB keeps each version of a table until it is told not to."""
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    import pyarrow as pa

    from nexus_integrations.index.lancedb import LanceDBIndex

    life = Life(toy, tmp_path / "state")
    table = lancedb.connect(tmp_path / "lance").create_table(
        "t",
        pa.table(
            {
                "id": life.ids,
                "vector": pa.FixedSizeListArray.from_arrays(life.stored().ravel(), 12),
            }
        ),
    )
    index = LanceDBIndex(table, metric="cosine")
    plain = life.folder.forget(index, {"train0"}.__contains__)
    assert len(table.list_versions()) > 1
    purged = life.folder.forget(index, {"train1"}.__contains__, purge=True)
    assert plain.remains == ""
    assert "copies and backups of the table" in purged.remains
    assert len(table.list_versions()) == 1
    life.folder.undo(index)
    np.testing.assert_allclose(index.vectors(life.ids), life.vectors, atol=1e-6)


def test_postgres_tells_itself_from_others(request, toy, tmp_path):
    """Two tables of one database have two identities; purging says what the log keeps."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    from nexus_integrations.index.postgres import PostgresIndex

    uri = request.getfixturevalue("postgres_uri")
    life = Life(toy, tmp_path)
    with psycopg.connect(uri, autocommit=True) as other:
        try:
            for name in ("production", "staging"):
                other.execute(f"CREATE TABLE {name} (id text PRIMARY KEY, v vector(12))")
                other.execute(
                    f"INSERT INTO {name} SELECT * FROM unnest(%s::text[], %s::text[]::vector[])",
                    (life.ids, [str(vector) for vector in life.stored().tolist()]),
                )
            one, two = (
                PostgresIndex(uri, name, "id", "v", metric="cosine")
                for name in ("production", "staging")
            )
            assert one.identity != two.identity
            assert one.identity == one.identity != ""
            forgotten = life.folder.forget(one, {"train0"}.__contains__, purge=True)
            assert "write-ahead log" in forgotten.remains
            one.connection.close()
            two.connection.close()
        finally:
            other.execute("DROP TABLE IF EXISTS production, staging")


# A file of vectors.


WRITE = """
import sys
import numpy as np
from nexus_integrations.index import FileIndex
path, first = sys.argv[1], int(sys.argv[2])
index = FileIndex(path)
print("open", flush=True)
sys.stdin.readline()
for row in range(first, first + 10):
    index.replace([f"d{row}"], np.eye(12, dtype=np.float32)[[1]])
"""


def test_two_processes_lose_none_of_each_others_writes(toy, tmp_path, package_environment):
    """Both opened the file before either wrote; each writes ten documents, all twenty are there."""
    world = World(toy)
    path = tmp_path / "vectors.parquet"
    world.index.save(path)
    here = FileIndex(path)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=package_environment,
        )
        for first in (0, 10)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "open\n"
    for writer in writers:
        writer.communicate("go\n")
        assert writer.returncode == 0
    expected = np.tile(np.eye(12, dtype=np.float32)[1], (20, 1))
    rows = [f"d{row}" for row in range(20)]
    np.testing.assert_array_equal(FileIndex(path).vectors(rows), expected)
    np.testing.assert_array_equal(here.vectors(rows), expected)  # it reads what others wrote


def test_memory_never_changes_before_the_disk(toy, tmp_path, monkeypatch):
    """The file cannot be written: the index holds what the file holds."""
    world = World(toy)
    world.index.save(tmp_path / "vectors.parquet")
    index = FileIndex(tmp_path / "vectors.parquet")
    monkeypatch.setattr(
        MemoryIndex, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left"))
    )
    with pytest.raises(OSError, match="no space left"):
        index.replace(["d0"], ANEW[None])
    np.testing.assert_array_equal(index.vectors(["d0"]), world.vectors[:1])


def test_a_flipped_bit_of_the_vectors_is_noticed(toy, tmp_path):
    """Of 300 flips anywhere in the file none gives other vectors without a word."""
    world = World(toy)
    path = tmp_path / "vectors.parquet"
    world.index.save(path)
    whole = path.read_bytes()
    silent = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 300).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            index = MemoryIndex.load(path)
            same = index.metric == world.index.metric and (
                index.vectors(world.ids).tobytes() == world.vectors.tobytes()
            )
            silent += not same
        except (ValueError, KeyError):
            continue
    assert silent == 0


# Settings.


CHANGED = {
    "variant": "m", "gamma": 0.3, "rule": "nudge-ft", "metric": "recall@1", "gammas": (0.0, 0.3),
    "solver": "nudge-ft", "keep": "always", "confidence": 0.999, "dry_run": True, "folds": 2,
    "seed": 1,
}  # fmt: skip


def told(world: World, config: NudgeConfig) -> tuple:
    index = MemoryIndex(world.ids, world.vectors, "dot")
    result = nudge_index(index, world.encoder, world.train, world.dev, config)
    return (
        index.vectors(world.ids).tobytes(), result.gamma, tuple(result.curve.items()),
        result.gain, result.interval, result.written, result.metric,
    )  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(NudgeConfig)])
def test_every_setting_changes_something(world, name):
    """With γ chosen on a curve all of them do."""
    assert set(CHANGED) == {field.name for field in fields(NudgeConfig)}
    plain = NudgeConfig()
    if name == "keep":  # a nudge that is not better is written all the same
        plain = NudgeConfig(confidence=0.9999999, gammas=(0.48,))
        assert told(world, plain) != told(world, NudgeConfig(keep="always", gammas=(0.48,)))
        return
    if name == "dry_run":  # one that is written otherwise
        plain = NudgeConfig(gamma=0.1)
        assert told(world, plain) != told(world, NudgeConfig(gamma=0.1, dry_run=True))
        return
    changed = NudgeConfig(**{name: CHANGED[name]})
    assert told(world, plain) != told(world, changed)


@pytest.mark.parametrize(
    ("chosen", "refused"),
    [
        ({"gamma": 0.1}, ("rule", "metric", "gammas", "keep", "confidence", "folds", "seed")),
        ({"solver": "nudge-ft"}, ("metric", "gammas", "keep", "confidence", "folds", "seed")),
        ({"rule": "nudge-ft"}, ("metric", "gammas")),
        ({"rule": "nudge-ft", "variant": "m"}, ("metric", "gammas", "keep", "folds", "seed")),
        ({"keep": "always"}, ("confidence",)),
    ],
)
def test_a_setting_without_effect_is_refused(chosen, refused):
    """What the way of choosing γ does not use is no setting of it."""
    for name in refused:
        with pytest.raises(ValueError, match=rf"{name} has no effect"):
            NudgeConfig(**chosen, **{name: CHANGED[name]})


def test_the_reference_s_rule_names_its_metric(world):
    """Its curve is of recall@1, and the result says so."""
    result = world.nudge(NudgeConfig(rule="nudge-ft"))
    assert result.metric == "recall@1"
    assert max(result.curve) == 0.48


@pytest.fixture
def world(toy):
    return World(toy)
