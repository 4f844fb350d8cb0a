"""The data access layer of a PostgreSQL job queue: its public names."""

import logging

from goqueue.config import Config, DatabaseConfig, LoggingConfig, ServerConfig, WorkerConfig, load_config
from goqueue.counts import JobCount, Pruned
from goqueue.errors import (
    ConfigError,
    ConnectionRejectedError,
    CorruptJobError,
    DuplicateJobError,
    GoQueueError,
    InvalidCursorError,
    InvalidFilterError,
    InvalidJobError,
    JobNotFoundError,
    JobStateError,
    LeaseLostError,
    LockTimeoutError,
    OutcomeUnknownError,
    SchemaError,
    StorageError,
    StorageUnavailableError,
    TransactionConflictError,
    WorkerError,
)
from goqueue.keys import key_for_period
from goqueue.logs import configure_logging
from goqueue.models import (
    Backoff,
    Failure,
    Job,
    JobFilter,
    JobStatus,
    JobUpdate,
    JsonValue,
    Lease,
    NewJob,
    Page,
    QueueStats,
    TransactionStatus,
    WorkerStats,
)
from goqueue.postgres.listener import Listener
from goqueue.postgres.listener_async import AsyncListener
from goqueue.postgres.statements import named_statement, numbered_statement
from goqueue.postgres.store import PostgresStorage
from goqueue.postgres.store_async import AsyncPostgresStorage
from goqueue.storage import JobListener, Storage
from goqueue.storage_async import AsyncJobListener, AsyncStorage
from goqueue.work.context import BuryJob, JobContext, ReleaseJob, RetryJob, job_context
from goqueue.work.worker import Worker
from goqueue.work.worker_async import AsyncWorker

__all__ = [
    "AsyncJobListener",
    "AsyncListener",
    "AsyncPostgresStorage",
    "AsyncStorage",
    "AsyncWorker",
    "Backoff",
    "BuryJob",
    "Config",
    "ConfigError",
    "ConnectionRejectedError",
    "CorruptJobError",
    "DatabaseConfig",
    "DuplicateJobError",
    "Failure",
    "GoQueueError",
    "InvalidCursorError",
    "InvalidFilterError",
    "InvalidJobError",
    "Job",
    "JobContext",
    "JobCount",
    "JobFilter",
    "JobListener",
    "JobNotFoundError",
    "JobStateError",
    "JobStatus",
    "JobUpdate",
    "JsonValue",
    "Lease",
    "LeaseLostError",
    "Listener",
    "LockTimeoutError",
    "LoggingConfig",
    "NewJob",
    "OutcomeUnknownError",
    "Page",
    "PostgresStorage",
    "Pruned",
    "QueueStats",
    "ReleaseJob",
    "RetryJob",
    "SchemaError",
    "ServerConfig",
    "Storage",
    "StorageError",
    "StorageUnavailableError",
    "TransactionConflictError",
    "TransactionStatus",
    "Worker",
    "WorkerConfig",
    "WorkerError",
    "WorkerStats",
    "configure_logging",
    "job_context",
    "key_for_period",
    "load_config",
    "named_statement",
    "numbered_statement",
]

# A library writes no log on its own; `configure_logging` or the application adds a handler.
logging.getLogger("goqueue").addHandler(logging.NullHandler())
