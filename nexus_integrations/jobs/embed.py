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
from nexus_integrations.jobs.inputs import find_inputs
from nexus_integrations.jobs.plan import Plan, make_plan
from nexus_integrations.jobs.rows import InputFile
from nexus_integrations.jobs.shards import PLAN, Done, Job, fingerprint_of
from nexus_integrations.progress import progress_bar
from nexus_integrations.records import Record

Engine = Literal["local", "ray"]

_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """How to embed a corpus. Raises `ValueError` on construction for values out of range.

    `role` chooses the encoder's side. `id_column` and `text_columns` name columns that have other
    than the usual names; a space joins several text columns. `shard_rows` rows are embedded and
    written at a time: an interruption costs at most that much work. `skip_bad` leaves bad rows out,
    which otherwise end the job before it embeds anything. `restart` discards what an earlier run of
    another input or model left. `engine` "ray" runs on a Ray cluster with `workers` workers, by
    default one per machine.
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
class JobResult(Record):
    """What a job did.

    Of the `rows`, an earlier run had embedded `resumed`. The model cut off `truncated` texts,
    `blank` texts are blank, and `rejected` bad rows were left out, listed in the file `rejects`.
    `fingerprint` is that of the role, `ids` the file of ids beside a .npy file, `seconds` the time
    of this run.
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

    def __str__(self) -> str:
        embedded = self.rows - self.resumed
        ids = f", their ids to {self.ids}" if self.ids else ""
        lines = [
            f"{self.rows:,} vectors of {self.dimension} numbers were written to "
            f"{self.output}{ids}.",
            f"{embedded:,} rows were embedded in {self.seconds:.1f} s "
            f"({embedded / max(self.seconds, 1e-9):,.0f} rows/s).",
        ]
        if self.resumed:
            lines.append(f"An earlier run had embedded {self.resumed:,} rows.")
        if self.truncated:
            lines.append(f"{self.truncated:,} texts were longer than the model reads and cut off.")
        if self.blank:
            lines.append(f"{self.blank:,} texts are blank: their vectors mean nothing.")
        if self.rejects:
            lines.append(f"{self.rejected:,} bad rows were left out: {self.rejects} lists them.")
        return "\n".join(lines)


def embed_corpus(
    inputs: Sequence[str | Path],
    output: str | Path,
    load: Callable[[], DendriticEncoder],
    config: JobConfig | None = None,
) -> JobResult:
    """Embed every row of the input files into one file of vectors, in the order of the input.

    `inputs` are files, folders or BEIR folders; see `find_inputs`. `output` ends in .parquet
    (columns `id` and `vector`, which `FileIndex` reads) or in .npy (float32 (rows, dimension), with
    the ids in `.ids.jsonl` beside it). `load` returns the encoder: here, and on every Ray worker.

    `<output>.parts` holds finished shards until they are joined. After an interruption the next run
    with the same rows, model and settings resumes there, on either engine.

    Raises `ValueError` for bad rows, and when rows or model are not those of the shards found;
    `RuntimeError` when another process works on the same output; `ImportError` without pyarrow or
    Ray; what `find_inputs` and `load` raise.
    """
    begun = perf_counter()
    config, output = config or JobConfig(), Path(output)
    files = _input_files(inputs, output, config)
    encoder = load()
    rejects = output.with_name(f"{output.name}.rejected.jsonl")
    with _parts_folder(output) as folder:
        plan = make_plan(
            files,
            role=config.role,
            fingerprint=fingerprint_of(encoder, config.role),
            shard_rows=config.shard_rows,
            skip_bad=config.skip_bad,
            rejects=rejects,
            scratch=folder,
        )
        _keep_shards(folder, plan, config.restart)
        resumed, truncated = _embed_pending(Job(folder, plan), encoder, load, config)
        ids = Job(folder, plan).join(output, encoder.dimension)
        _sweep(folder)
    return JobResult(
        rows=plan.rows,
        dimension=encoder.dimension,
        truncated=truncated,
        blank=plan.blank,
        rejected=plan.rejected,
        resumed=resumed,
        fingerprint=plan.fingerprint,
        seconds=perf_counter() - begun,
        output=output,
        ids=ids,
        rejects=rejects if plan.rejected else None,
    )


def _input_files(inputs: Sequence[str | Path], output: Path, config: JobConfig) -> list[InputFile]:
    """Return the files to read, none of which is the output."""
    with extra("jobs"):
        import pyarrow.parquet  # noqa: F401  missed now, not after an hour

    if output.suffix not in (".parquet", ".npy"):
        raise ValueError(f"the output {output} must end in .parquet or .npy")
    files = find_inputs(
        [inputs] if isinstance(inputs, (str, Path)) else inputs,
        id_column=config.id_column,
        text_columns=config.text_columns,
    )
    if any(file.path == output.resolve() for file in files):
        raise ValueError(f"{output} is among the inputs, and would be overwritten")
    return files


def _embed_pending(
    job: Job, encoder: DendriticEncoder, load: Callable[[], DendriticEncoder], config: JobConfig
) -> tuple[int, int]:
    """Embed the missing shards; return how many rows were there, and how many texts are cut off."""
    found = {number: job.finished(number) for number in range(len(job.plan.shards))}
    pending = [number for number, done in found.items() if done is None]
    finished = [done for done in found.values() if done is not None]
    resumed = sum(done.rows for done in finished)
    embedded: Iterator[Done] = (job.embed(number, encoder) for number in pending)
    if config.engine == "ray" and pending:
        from nexus_integrations.jobs.ray import embed_on_ray

        embedded = embed_on_ray(job.folder, pending, load, config.workers)
    with progress_bar(total=job.plan.rows, initial=resumed, desc="embed", unit="row") as bar:
        for done in embedded:
            finished.append(done)
            bar.update(done.rows)
    return resumed, sum(done.truncated for done in finished)


@contextlib.contextmanager
def _parts_folder(output: Path) -> Iterator[Path]:
    """Make and lock the folder of shards, private to its owner; remove it when it is empty."""
    folder = output.with_name(f"{output.name}.parts").resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            with contextlib.suppress(OSError):  # another process began a job there meanwhile
                folder.rmdir()


def _keep_shards(folder: Path, plan: Plan, restart: bool) -> None:
    """Keep the shards of the same job, remove others if asked, and write the plan."""
    path = folder / PLAN
    if path.is_file() and not restart:
        try:
            changed = Plan.load(path).differences(plan)
        except ValueError as error:
            raise ValueError(
                f"the job cannot be resumed ({error}): start anew with --restart (restart=True)"
            ) from None
        if changed:
            raise ValueError(
                f"{folder} holds shards of another job: {' and '.join(changed)} changed since. "
                "Undo the change to finish that job, or start anew with --restart (restart=True)"
            )
    else:
        _sweep(folder)
    plan.save(path)


def _sweep(folder: Path) -> None:
    """Remove plan, shards and drafts: the plan first, because shards mean nothing without it."""
    for path in (folder / PLAN, *folder.iterdir()):
        if path.name != _LOCK:
            path.unlink(missing_ok=True)
