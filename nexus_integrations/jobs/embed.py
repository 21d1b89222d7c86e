"""Embed a corpus of any size: shard by shard, resumable, on this machine or on a Ray cluster."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

from filelock import FileLock, Timeout

from nexus_integrations.backends import Role
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.extras import extra
from nexus_integrations.jobs.plan import Plan, differences, identity_of, make_plan
from nexus_integrations.jobs.rows import find_inputs
from nexus_integrations.jobs.shards import PLAN, Done, Job, fingerprint_of
from nexus_integrations.progress import progress_bar

Engine = Literal["local", "ray"]

_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """How to embed a corpus. Raises `ValueError` on construction for values out of range.

    `role` chooses the encoder's side. `id_column` and `text_columns` name columns where they are
    not found by the usual names; several text columns are joined by a space. `shard_rows` rows are
    embedded and written at a time: that much work an interruption can cost. `skip_bad` leaves bad
    rows out, which otherwise end the job before it embeds anything. `restart` throws away what an
    earlier run of another input or model left. `engine` "ray" runs on a Ray cluster with `workers`
    workers, by default one per machine.
    """

    role: Role = "document"
    id_column: str | None = None
    text_columns: tuple[str, ...] = ()
    shard_rows: int = 4096
    skip_bad: bool = False
    restart: bool = False
    engine: Engine = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("role", self.role, ("query", "document")),
            ("engine", self.engine, ("local", "ray")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, not {self.shard_rows}")
        if self.workers is not None and (self.engine == "local" or self.workers < 1):
            raise ValueError('workers is at least 1, and for engine="ray" alone')


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What a job did.

    `rows` were embedded, of which `resumed` had been by an earlier run; `truncated` texts were cut
    off at the model's maximal length, `blank` texts are blank, `rejected` bad rows were left out
    and are listed in `rejects`. `fingerprint` is that of the role, `ids` the file of ids beside a
    .npy file, `seconds` the time of this run.
    """

    rows: int
    dimension: int
    truncated: int
    blank: int
    rejected: int
    resumed: int
    fingerprint: str
    seconds: float
    output: Path
    ids: Path | None
    rejects: Path | None


def embed_corpus(
    inputs: Sequence[str | Path],
    output: str | Path,
    load: Callable[[], DendriticEncoder],
    config: JobConfig | None = None,
) -> JobReport:
    """Embed every row of the input files into one file of vectors, in the order of the input.

    `inputs` are files, folders or BEIR folders; see `rows.find_inputs`. `output` ends in .parquet
    (columns `id` and `vector`, which `FileIndex` reads) or in .npy (float32 (rows, dimension), with
    the ids in `.ids.jsonl` beside it). `load` gives the encoder: here, and on every Ray worker.

    Finished shards are kept in `<output>.parts` until they are joined. A run that was interrupted
    is taken up there by the next one with the same input, model and settings, on either engine.

    Raises `ValueError` for bad rows (the first ones are named by file and line), and when the input
    or the model is another than that of the shards found; `RuntimeError` when another process works
    on the same output; `ImportError` without pyarrow or Ray; what `find_inputs` and `load` raise.
    """
    begun = perf_counter()
    with extra("jobs"):
        import pyarrow.parquet  # noqa: F401  missed now, not after an hour

    config = config or JobConfig()
    output = Path(output)
    if output.suffix not in (".parquet", ".npy"):
        raise ValueError(f"the output {output} must end in .parquet or .npy")
    files = find_inputs(
        [inputs] if isinstance(inputs, (str, Path)) else inputs,
        id_column=config.id_column,
        text_columns=config.text_columns,
    )
    if any(file.path == output.resolve() for file in files):
        raise ValueError(f"{output} is among the inputs, and would be overwritten")
    encoder = load()
    fingerprint = fingerprint_of(encoder, config.role)
    identity = identity_of(
        files,
        role=config.role,
        fingerprint=fingerprint,
        shard_rows=config.shard_rows,
        skip_bad=config.skip_bad,
    )
    rejects = output.with_name(f"{output.name}.rejected.jsonl")
    with _parts_folder(output) as folder:
        plan = None if config.restart else _resumable(folder, identity)
        if plan is None:
            _sweep(folder)
            plan = make_plan(files, identity, scratch=folder / ".ids", rejects=rejects)
            plan.write(folder / PLAN)
        job = Job(folder, plan)
        finished = [done for number in range(len(plan.shards)) if (done := job.finished(number))]
        there = {done.number for done in finished}
        pending = [number for number in range(len(plan.shards)) if number not in there]
        resumed = sum(done.rows for done in finished)
        with progress_bar(total=plan.rows, initial=resumed, desc="embed", unit="row") as bar:
            for done in _embedded(job, pending, encoder, load, config):
                finished.append(done)
                bar.update(done.rows)
        ids = job.join(output, encoder.dimension)
        _sweep(folder)
    return JobReport(
        rows=plan.rows,
        dimension=encoder.dimension,
        truncated=sum(done.truncated for done in finished),
        blank=plan.blank,
        rejected=plan.rejected,
        resumed=resumed,
        fingerprint=fingerprint,
        seconds=perf_counter() - begun,
        output=output,
        ids=ids,
        rejects=rejects if plan.rejected else None,
    )


def _embedded(
    job: Job,
    pending: Sequence[int],
    encoder: DendriticEncoder,
    load: Callable[[], DendriticEncoder],
    config: JobConfig,
) -> Iterator[Done]:
    """Embed the shards that are not there yet, and tell of each when it is."""
    if config.engine == "local" or not pending:
        return (job.embed(number, encoder) for number in pending)
    from nexus_integrations.jobs.ray import embed_on_ray

    return embed_on_ray(job.folder, pending, load, config.workers)


@contextlib.contextmanager
def _parts_folder(output: Path) -> Iterator[Path]:
    """Make and hold the folder of shards; it is gone afterwards when nothing is left in it."""
    folder = output.with_name(f"{output.name}.parts").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"another process is embedding into {output}: wait until it has ended"
        ) from None
    try:
        yield folder
    finally:
        lock.release()
        if not any(path.name != _LOCK for path in folder.iterdir()):
            (folder / _LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody began a job there in this very moment
                folder.rmdir()


def _resumable(folder: Path, identity: dict[str, object]) -> Plan | None:
    """Return the plan of the job that the folder holds, None when it holds none."""
    if not (folder / PLAN).is_file():
        return None
    plan = Plan.load(folder / PLAN)
    changed = differences(plan.identity, identity)
    if changed:
        raise ValueError(
            f"{folder} holds shards of another job: {' and '.join(changed)} changed since. Put "
            "that back to finish the job, or start anew with --restart (restart=True)"
        )
    return plan


def _sweep(folder: Path) -> None:
    """Remove plan, shards and drafts: the plan first, without which shards mean nothing."""
    for path in (folder / PLAN, *folder.iterdir()):
        if path.name != _LOCK:
            path.unlink(missing_ok=True)
