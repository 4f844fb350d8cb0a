"""The types of the queries that no store runs: those for checks, proofs, plans and scratch databases."""

from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from goqueue.postgres.cursor import Many, One
from goqueue.postgres.queries import load_queries
from goqueue.schemas import DEFAULT_SCHEMA


class AdminQueries(Protocol):
    """The queries as methods that take a connection and named parameters, as aiosql creates them."""

    backdate_jobs: Many[tuple[UUID]]
    claim_index_state: One[tuple[int, int, int | None, str | None] | None]
    count_applied_migrations: One[int]
    count_pending_jobs: One[int]
    database_identity: One[tuple[int, int, str, datetime, bool, bool]]
    describe_columns: Many[tuple[int, int, str, bool]]
    describe_types: Many[tuple[int, str]]
    durability_state: One[tuple[str, str, str, str, int, list[str], list[str], list[str]]]
    empty_tables: One[int]
    example_values: Many[tuple[str, str]]
    hold_database: One[object]
    index_statements: Many[tuple[str, str]]
    is_waiting: One[bool]
    list_abandoned_databases: Many[tuple[str]]
    list_applied_migrations: Many[tuple[int, str, str | None]]
    list_default_settings: Many[tuple[str, str, str, list[str]]]
    list_held_locks: Many[tuple[str]]
    list_horizon_holders: Many[tuple[str, str, str | None, str | None, str | None, datetime | None, int | None]]
    list_lock_holders: Many[tuple[int, str | None, str | None, str | None, int]]
    list_referable_jobs: Many[tuple[UUID]]
    list_references: Many[tuple[str, str, str]]
    list_rights: Many[tuple[str, str, str, str]]
    list_rows: Many[tuple[str, str]]
    list_schema_objects: Many[tuple[str, str, str, str]]
    list_session_settings: Many[tuple[str]]
    list_settings: Many[tuple[str, str, str]]
    list_table_states: Many[tuple[str, int, int, int, int, datetime | None, datetime | None, int, int, bool]]
    list_unlocked_jobs: Many[tuple[UUID]]
    list_volatile_functions: Many[tuple[str]]
    lock_jobs: Many[tuple[UUID]]
    measure_claim_index: One[float]
    release_advisory_locks: One[object]
    restore_rows: Many[tuple[UUID]]
    seed_failures: One[int]
    seed_failures_table: One[int]
    seed_jobs: One[int]
    seed_jobs_table: One[int]
    seed_session: One[tuple[bool, str, str, str]]
    server_state: One[tuple[int, str, str, str, str, bool, bool, bool, bool, bool, bool, list[str], list[str], bool]]
    set_local: One[str]
    standby_state: One[tuple[bool, timedelta | None, bool]]
    statement_times: Many[tuple[str, int, float, float, float, int, int, float | None]]
    tell_time: One[datetime]
    vacuum_failures: One[int]
    vacuum_jobs: One[int]
    wear_out_tokens: Many[tuple[UUID]]


def admin_queries(schema: str = DEFAULT_SCHEMA) -> AdminQueries:
    """Return the shipped queries for a schema, with these types."""
    queries: AdminQueries = load_queries(schema=schema)
    return queries
