"""A Postgres table by the SQLAlchemy engine through which a framework reaches it."""

import weakref
from typing import Any

from nexus_integrations.index.postgres import PostgresIndex
from nexus_integrations.protocols import Metric

try:
    import psycopg
    from psycopg import sql
except ImportError as error:
    raise ImportError(
        'PostgresIndex needs psycopg 3: pip install "nexus-integrations[postgres]"'
    ) from error


def open_postgres(
    engine: Any,
    table: str,
    id_column: str,
    vector_column: str,
    metric: Metric,
    *,
    schema: str | None = None,
    collection: str | None = None,
) -> PostgresIndex:
    """Return the table as an index over a connection of its own, closed along with the index.

    `engine` is a `sqlalchemy.Engine` or `AsyncEngine` on any driver: host, database, user, password
    and libpq's parameters are those of its URL. Without `schema` the table is the first on the
    search path. `collection` restricts a table of LangChain's `PGVector` to one of its collections.

    Raises `ConnectionError` where the URL is not enough, and what `PostgresIndex` raises.
    """
    try:
        connection = psycopg.connect(_conninfo(engine.url), autocommit=True)
    except psycopg.OperationalError as error:
        raise ConnectionError(
            f"the URL of the store's engine does not reach the database ({error}): its "
            "connect_args are not taken over; give a PostgresIndex over a connection of your own "
            "(nexus_integrations.index.postgres)"
        ) from None
    try:
        schema = schema or _schema_of(connection, table)
        where = None
        if collection is not None:
            where = sql.SQL("collection_id = (SELECT uuid FROM {} WHERE name = {})").format(
                sql.Identifier(schema, "langchain_pg_collection"), sql.Literal(collection)
            )
        index = PostgresIndex(
            connection, table, id_column, vector_column, schema=schema, metric=metric, where=where
        )
    except BaseException:
        connection.close()
        raise
    weakref.finalize(index, connection.close)
    return index


def _conninfo(url: Any) -> str:
    """Write a SQLAlchemy URL as libpq takes it, without what the driver alone understands."""
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    given = {
        "host": url.host,
        "port": url.port,
        "dbname": url.database,
        "user": url.username,
        "password": url.password,
    }
    for name, value in url.query.items():
        name = {"ssl": "sslmode"}.get(name, name)  # asyncpg's name, with libpq's values
        if name in known:
            given[name] = value if isinstance(value, str) else ",".join(value)
    settings = {name: str(value) for name, value in given.items() if value is not None}
    return str(psycopg.conninfo.make_conninfo(**settings))


def _schema_of(connection: Any, table: str) -> str:
    rows = connection.execute(
        "SELECT relnamespace::regnamespace::name FROM pg_class WHERE oid = to_regclass(%s)",
        (sql.Identifier(table).as_string(connection),),
    ).fetchall()
    if not rows:
        raise ValueError(f"the database has no table {table!r}: add documents first")
    return str(rows[0][0])
