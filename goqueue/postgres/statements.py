"""The statement that adds one job, for drivers other than psycopg."""

from goqueue.config import DatabaseConfig
from goqueue.models import NewJob
from goqueue.postgres.new_jobs import job_values
from goqueue.postgres.queries import Statement, load_statements


def numbered_statement(job: NewJob, config: DatabaseConfig | None = None) -> tuple[str, tuple[object, ...]]:
    """Return the statement that adds ``job``, with ``$1``, ``$2`` … for its parameters, and their values in that order:
    for asyncpg.

    The statement returns one row if it adds the job. If the id or a key is taken, it returns no row, changes
    nothing, and the transaction remains usable. ``config`` sets the schema, the payload's limit and the folder of
    tuned SQL files.

    Raises: `InvalidJobError` for a payload that is not JSON or is too large.
    Query: create_job.
    """
    statement, values = _prepared(job, config or DatabaseConfig())
    return statement.text, tuple(values[name] for name in statement.parameters)


def named_statement(job: NewJob, config: DatabaseConfig | None = None) -> tuple[str, dict[str, object]]:
    """Return the statement that adds ``job``, with ``%(id)s``, ``%(queue)s`` … for its parameters, and their values by
    name: for psycopg2. Everything else is as in `numbered_statement`.

    Raises: `InvalidJobError` for a payload that is not JSON or is too large.
    Query: create_job.
    """
    statement, values = _prepared(job, config or DatabaseConfig())
    return str(statement.sql), values


def _prepared(job: NewJob, config: DatabaseConfig) -> tuple[Statement, dict[str, object]]:
    statement = load_statements(config.sql_dir or None, config.schema)["create_job"]
    # As text: psycopg2 adapts no UUID before register_uuid().
    return statement, {**job_values(job, config), "id": str(job.id)}
