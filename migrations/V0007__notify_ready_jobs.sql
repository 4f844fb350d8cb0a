-- Wakes idle workers: one notification a statement and queue, for jobs that are due, and only while somebody listens.
--
-- Locks: SHARE ROW EXCLUSIVE on goqueue.jobs, briefly: writers wait, readers don't.
--
-- A NOTIFY is not free: the commits of all transactions that notify queue up behind one lock. So whoever listens holds a
-- shared advisory lock, and where the exclusive one is to be had nobody listens and nothing is sent.
-- The key is "goqueue" with a letter more ("goqueueL"), read as a big-endian integer; goqueue.listener has it too.

CREATE FUNCTION goqueue.notify_ready_jobs() RETURNS trigger
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

CREATE TRIGGER jobs_notify_ready
AFTER INSERT ON goqueue.jobs
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT
EXECUTE FUNCTION goqueue.notify_ready_jobs();

COMMENT ON FUNCTION goqueue.notify_ready_jobs() IS
    'Sends the queues of new jobs that are due on the channel goqueue, while somebody listens.';
COMMENT ON TRIGGER jobs_notify_ready ON goqueue.jobs IS
    'Wakes idle workers. Dropping it costs them no job: polling alone is enough.';
