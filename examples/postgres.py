"""Nudge the vectors of a PostgreSQL table, with pgvector, in place; ask by SQL; undo.

Run it with `python examples/postgres.py postgresql://user@localhost/database`; it needs the extras
`postgres` and `bundled`. It makes a temporary table, which is gone when it ends.
"""

import sys

import psycopg

from nexus_integrations import DendriticEncoder, FinetuneConfig, finetune, nudge_index
from nexus_integrations.demo import SHARES, corpus
from nexus_integrations.index.postgres import PostgresIndex

QUESTION = "goldie is beeping 11 degrees who do i call"
NEAREST = "SELECT id, body FROM pg_temp.passages ORDER BY embedding <=> %s::vector LIMIT 3"


def show(title: str, encoder: DendriticEncoder) -> None:
    """Print the three passages that the database finds."""
    print(f"\n{title}")
    question = encoder.encode_queries([QUESTION])[0].tolist()
    for id_, body in connection.execute(NEAREST, [str(question)]):
        print(f"  {id_:10} {body[:60]}…")


train, dev, _ = corpus().split(*SHARES, seed=0)
encoder = DendriticEncoder.load()
connection = psycopg.connect(sys.argv[1], autocommit=True)
connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
connection.execute(
    f"CREATE TEMPORARY TABLE passages (id text PRIMARY KEY, body text, "
    f"embedding vector({encoder.dimension}))"
)
vectors = encoder.encode_documents(list(train.corpus.values()))
with connection.cursor() as cursor:
    cursor.executemany(
        "INSERT INTO passages VALUES (%s, %s, %s)",
        [
            (id_, body, str(vector.tolist()))
            for (id_, body), vector in zip(train.corpus.items(), vectors, strict=True)
        ],
    )
print(f"Question: {QUESTION}")
show("all-MiniLM-L6-v2:", encoder)

(schema,) = connection.execute("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
index = PostgresIndex(connection, "passages", "id", "embedding", schema=schema[0], metric="cosine")
# The head is trained on the vectors in the table: no passage is embedded again.
result = finetune(encoder, train, dev, FinetuneConfig(dendrites=0), index=index)
print(f"\ndev nDCG@10 {result.baseline_score:.3f} → {result.score:.3f}")
show("fine-tuned:", result.encoder)

report = nudge_index(index, result.encoder, train, dev)  # state_dir=... keeps what undoes it
print(f"\nγ = {report.gamma:g} moved {report.moved} passages; the text beside them is as it was")
show("fine-tuned and nudged:", result.encoder)
print(f"\nundone: {report.undo(index)} passages put back")
