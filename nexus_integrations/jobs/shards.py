"""The shards of a job: embedded one by one, by whoever works on it, and joined in the end."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nexus_integrations.backends import Role
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.jobs.files import Part, read_part, write_npy, write_parquet, write_part
from nexus_integrations.jobs.plan import Plan, ShardReader

PLAN = "job.json"
"""The file of a job's folder that holds its plan."""


class Done(NamedTuple):
    """A shard that was embedded and written."""

    number: int
    rows: int
    truncated: int


class Job:
    """A plan and the folder of its shards."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._reader = ShardReader(plan)

    def finished(self, number: int) -> Done | None:
        """Return what was done about a shard; None when it is missing or damaged."""
        part = read_part(self._path(number), self.plan.signature)
        if part is None or len(part.ids) != self.plan.shards[number].rows:
            return None
        return Done(number, len(part.ids), part.truncated)

    def embed(self, number: int, encoder: DendriticEncoder) -> Done:
        """Read, embed and write a shard; doing it twice equals doing it once."""
        ids, texts = self._reader.read(number)
        vectors, truncated, _ = encoder.encode(texts, self.plan.role)
        write_part(self._path(number), Part(ids, vectors, truncated), self.plan.signature)
        return Done(number, len(ids), truncated)

    def join(self, output: Path, dimension: int) -> Path | None:
        """Write the vectors of all shards to `output`; return the file of ids, if it is another."""
        if output.suffix == ".npy":
            return write_npy(output, self._parts(), (self.plan.rows, dimension), self.folder)
        about = {"role": self.plan.role, "fingerprint": self.plan.fingerprint}
        write_parquet(output, self._parts(), about, self.folder)
        return None

    def _parts(self) -> Iterator[Part]:
        for number in range(len(self.plan.shards)):
            part = read_part(self._path(number), self.plan.signature)
            if part is None:
                raise RuntimeError(
                    f"{self._path(number)} was lost or damaged after it was written: run the job "
                    "again, which embeds this shard anew"
                )
            yield part

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"


def fingerprint_of(encoder: DendriticEncoder, role: Role) -> str:
    """Return the SHA-256, in hex, of all that a vector of this role depends on except its text."""
    return encoder.document_fingerprint if role == "document" else encoder.fingerprint
