-- Undoes V0010: jobs that become ready again wake no worker, and a job set running manually keeps its token. Run it in one
-- transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_lease_token_range;
DROP FUNCTION goqueue.delete_unreferenced_jobs(uuid[]);
DROP TRIGGER jobs_follow_delete ON goqueue.jobs;
DROP TRIGGER jobs_follow_change ON goqueue.jobs;
DROP FUNCTION goqueue.follow_changed_job();
CREATE OR REPLACE FUNCTION goqueue.notify_ready_jobs() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_try_advisory_lock(7453300657348765004) THEN
        PERFORM pg_advisory_unlock(7453300657348765004);
    ELSE
        PERFORM pg_notify('goqueue', ready.queue)
        FROM (
            SELECT DISTINCT n.queue
            FROM new_job AS n
            WHERE n.status = 'pending' AND n.scheduled_at <= statement_timestamp()
        ) AS ready;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION goqueue.notify_ready_jobs() IS
    'Sends the queues of new jobs that are due on the channel goqueue, while somebody listens.';
DELETE FROM goqueue.migration_checksums WHERE version = 10;
DELETE FROM goqueue.schema_version WHERE version = 10;
