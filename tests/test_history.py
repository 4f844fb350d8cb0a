"""Finished jobs that leave the queue's server: kept on another one by logical replication, which sends no deletions."""

from datetime import timedelta

import psycopg

from goqueue import JobFilter, NewJob, PostgresStorage
from goqueue.migrate import migrate
from goqueue.testing.embedded import EmbeddedServer
from goqueue.workbench.findings import Level
from goqueue.workbench.standby import check_reads
from tests.standby import free_port, until


def test_pruned_jobs_stay_on_a_server_that_subscribes_to_additions_and_changes() -> None:
    sender = {"wal_level": "logical", "listen_addresses": "127.0.0.1", "port": free_port()}
    with EmbeddedServer(settings=sender, durable=False) as queue, EmbeddedServer(durable=False) as history:
        for server in (queue, history):
            migrate(server.url())
        with psycopg.connect(queue.url(), autocommit=True) as admin:
            admin.execute(
                "CREATE PUBLICATION goqueue_history FOR TABLE goqueue.jobs, goqueue.job_failures "
                "WITH (publish = 'insert, update')"
            )
        with psycopg.connect(history.url(), autocommit=True) as admin:
            # Here, a key has many jobs.
            admin.execute("DROP INDEX goqueue.jobs_idempotency_key_idx, goqueue.jobs_unique_key_idx")
            admin.execute(
                "CREATE SUBSCRIPTION goqueue_history CONNECTION "
                f"'host=127.0.0.1 port={sender['port']} user=postgres dbname=postgres' PUBLICATION goqueue_history"
            )
        with PostgresStorage.open(queue.url()) as store, PostgresStorage.open(history.url()) as kept:
            store.create_jobs(NewJob(job_type="t", payload=number) for number in range(100))
            done, dead, waiting = (store.claim_jobs("default", "w", count) for count in (60, 10, 5))
            store.complete_jobs(done)
            store.bury_jobs([(job, "no such address") for job in dead])
            store.release_jobs(waiting)
            finished = {job.id: job for job in store.list_jobs(JobFilter(status=["completed", "dead"]), 1000).jobs}
            assert store.prune_jobs(timedelta(0)) == len(finished) == 70
            until(lambda: kept.count_jobs(JobFilter(status=["completed", "dead"])) == 70)
            assert {job.id: job for job in kept.get_jobs(finished)} == finished
            # The history of failures is copied apart from the jobs.
            [failure] = until(lambda: kept.list_failures(dead[0].id))
            assert failure.error == "no such address"
            assert kept.count_jobs() == 100
            for count in (1, 2):
                store.create_job(NewJob(job_type="t", queue="daily", idempotency_key="report"))
                store.complete_jobs(store.claim_jobs("daily", "w"))
                store.prune_jobs(timedelta(0))
                until(lambda count=count: kept.count_jobs(JobFilter(queue="daily", status="completed")) == count)
                store.delete_job(store.create_job(NewJob(job_type="t", queue="once", unique_key="report")).id)
                until(lambda count=count: kept.count_jobs(JobFilter(queue="once", status="pending")) == count)
        with (
            psycopg.connect(queue.url(), autocommit=True) as primary,
            psycopg.connect(history.url(), autocommit=True) as admin,
        ):
            [found] = check_reads(admin, primary).findings
            assert (found.level, found.found) == (Level.WARNING, "read_url names a logical replica")
            admin.execute("DROP SUBSCRIPTION goqueue_history")
