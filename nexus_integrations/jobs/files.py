"""The shards and results of a job as files, which appear whole or not at all."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nexus_integrations.files import written_whole
from nexus_integrations.protocols import Floats

# Rows that are packed, and unpacked, at a time: pyarrow holds several copies of them.
_ROWS = 512


class Part(NamedTuple):
    """The ids and vectors of a shard, float32 (n, dimension), and how many texts were cut off."""

    ids: list[str]
    vectors: Floats
    truncated: int


def write_part(path: Path, part: Part, signature: str) -> None:
    """Write a finished shard, with checksums, for the job of this signature."""
    import pyarrow.parquet as pq

    about = {"job": signature, "truncated": str(part.truncated)}
    with written_whole(path) as draft:
        pq.write_table(
            _table(part, about),
            draft,
            row_group_size=_ROWS,
            use_dictionary=False,  # ids and numbers hardly repeat
            write_page_checksum=True,
        )


def read_part(path: Path, signature: str) -> Part | None:
    """Return a finished shard; None when it is not there, damaged, or of another job."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            about = file.schema_arrow.metadata or {}
            if about.get(b"job", b"").decode() != signature:
                return None
            dimension = file.schema_arrow.field("vector").type.list_size
            vectors: Floats = np.empty((file.metadata.num_rows, dimension), dtype=np.float32)
            ids: list[str] = []
            for batch in file.iter_batches(_ROWS, use_threads=False):
                rows = np.asarray(batch.column("vector").flatten()).reshape(-1, dimension)
                vectors[len(ids) : len(ids) + len(rows)] = rows
                ids += batch.column("id").to_pylist()
            return Part(ids, vectors, int(about[b"truncated"]))
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def write_parquet(
    path: Path, parts: Iterable[Part], about: Mapping[str, str], drafts: Path
) -> None:
    """Join shards into the Parquet file that `FileIndex` reads, a row group for each.

    `drafts` is a folder of the same file system for unfinished files.
    """
    import pyarrow.parquet as pq

    with written_whole(path, drafts) as draft:
        writer = None
        try:
            for part in parts:
                table = _table(part, {"metric": "cosine", **about})
                if writer is None:
                    writer = pq.ParquetWriter(draft, table.schema, use_dictionary=False)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def write_npy(path: Path, parts: Iterable[Part], shape: tuple[int, int], drafts: Path) -> Path:
    """Join shards into a .npy file, and their ids into a file beside it, which is returned.

    For `vectors.npy` that is `vectors.ids.jsonl`: one JSON string per line, which can hold any id.
    `drafts` is as for `write_parquet`.
    """
    ids_path = path.with_suffix(".ids.jsonl")
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with (
        written_whole(path, drafts) as draft,  # renamed last: where it is, its ids are
        written_whole(ids_path, drafts) as ids_draft,
        draft.open("wb") as vectors,
        ids_draft.open("w", encoding="utf-8") as ids,
    ):
        np.lib.format.write_array_header_1_0(vectors, header)
        for part in parts:
            vectors.write(np.ascontiguousarray(part.vectors, dtype="<f4").data)
            ids.writelines(json.dumps(id_, ensure_ascii=False) + "\n" for id_ in part.ids)
    return ids_path


def _table(part: Part, about: Mapping[str, str]) -> Any:
    import pyarrow as pa

    columns: dict[str, Sequence[Any]] = {
        "id": pa.array(part.ids, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(part.vectors).ravel()), part.vectors.shape[1]
        ),
    }
    return pa.table(columns).replace_schema_metadata(dict(about))
