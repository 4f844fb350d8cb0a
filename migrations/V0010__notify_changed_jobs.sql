-- Notifications for jobs that become ready again and for jobs taken from their holder; tokens that grow by hand too; an
-- insert trigger that leaks no lock; a setting that sends nothing; a way to prune around jobs that other tables refer to.
--
-- Locks: ACCESS EXCLUSIVE on goqueue.jobs, briefly: nothing is read or rewritten. V0011 validates the constraint. Both in
-- one run hold the lock while V0011 reads the table. A large table in use takes them one by one: `pgmigrate migrate -t 10`,
-- then `pgmigrate migrate`.
--
-- SET LOCAL goqueue.notify = off silences both triggers until the transaction ends: PREPARE TRANSACTION fails after a NOTIFY.

-- The lock is tried and given back in one expression: no cancel comes between, after which the session would keep it.
CREATE OR REPLACE FUNCTION goqueue.notify_ready_jobs() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF
        (lower(current_setting('goqueue.notify', true)) IN ('off', 'false', 'no', '0')) IS NOT TRUE
        AND NOT (
            CASE
                WHEN pg_try_advisory_lock(7453300657348765004) THEN pg_advisory_unlock(7453300657348765004)
                ELSE FALSE
            END
        )
    THEN
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

-- Nothing fences a stale holder but the token. 4611686018427387903 is the largest one, 2^62 - 1; the next claim after it
-- starts at 1 again.
CREATE FUNCTION goqueue.follow_changed_job() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF
        TG_OP = 'UPDATE'
        AND (
            (NEW.lease_token < OLD.lease_token AND OLD.lease_token < 4611686018427387903)
            OR (
                NEW.lease_token = OLD.lease_token
                AND NEW.status = 'running'
                AND (OLD.status <> 'running' OR NEW.locked_by <> OLD.locked_by)
            )
        )
    THEN
        UPDATE goqueue.jobs SET lease_token = OLD.lease_token % 4611686018427387903 + 1 WHERE id = NEW.id;
    END IF;

    IF
        NEW.status = 'pending'
        AND NEW.scheduled_at <= statement_timestamp()
        AND (OLD.status <> 'pending' OR OLD.scheduled_at > statement_timestamp() OR OLD.queue <> NEW.queue)
        OR OLD.status = 'running' AND (TG_OP = 'DELETE' OR NEW.status = 'cancelled')
    THEN
        IF
            (lower(current_setting('goqueue.notify', true)) IN ('off', 'false', 'no', '0')) IS NOT TRUE
            AND NOT (
                CASE
                    WHEN pg_try_advisory_lock(7453300657348765004) THEN pg_advisory_unlock(7453300657348765004)
                    ELSE FALSE
                END
            )
        THEN
            IF NEW.status = 'pending' THEN
                PERFORM pg_notify('goqueue', NEW.queue);
            ELSE
                PERFORM pg_notify('goqueue_cancelled', concat_ws(' ', OLD.id, OLD.lease_token, OLD.queue));
            END IF;
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- Claims and completions stop at the condition (0.3 us a row), heartbeats before it: they change none of these columns.
CREATE TRIGGER jobs_follow_change
AFTER UPDATE OF status, locked_by, lease_token, scheduled_at, queue ON goqueue.jobs
FOR EACH ROW
WHEN (NEW.lease_token <= OLD.lease_token AND NEW.status <> 'completed')
EXECUTE FUNCTION goqueue.follow_changed_job();

CREATE TRIGGER jobs_follow_delete
AFTER DELETE ON goqueue.jobs
FOR EACH ROW
WHEN (OLD.status = 'running')
EXECUTE FUNCTION goqueue.follow_changed_job();

-- For prune_unreferenced_jobs. A foreign key that is checked at the end of the transaction is checked here, while the deletion
-- can still be taken back. A batch that can't be deleted is halved until the jobs that are refused are alone.
CREATE FUNCTION goqueue.delete_unreferenced_jobs(ids uuid[]) RETURNS TABLE (id uuid, refusal text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    deleted_ids uuid[];
    foreign_key record;
BEGIN
    BEGIN
        WITH deleted_job AS (
            DELETE FROM goqueue.jobs AS j
            WHERE j.id = ANY(ids)
            RETURNING j.id
        )

        SELECT array_agg(d.id) INTO deleted_ids
        FROM deleted_job AS d;
        DELETE FROM goqueue.job_failures AS f
        WHERE f.job_id = ANY(deleted_ids);
        FOR foreign_key IN
            SELECT
                c.condeferred AS is_deferred,
                format('%I.%I', n.nspname, c.conname) AS name
            FROM pg_constraint AS c
            INNER JOIN pg_namespace AS n ON c.connamespace = n.oid
            WHERE c.confrelid = 'goqueue.jobs'::regclass AND c.condeferrable
        LOOP
            EXECUTE format('SET CONSTRAINTS %s IMMEDIATE', foreign_key.name);
            IF foreign_key.is_deferred THEN
                EXECUTE format('SET CONSTRAINTS %s DEFERRED', foreign_key.name);
            END IF;
        END LOOP;
    EXCEPTION WHEN integrity_constraint_violation OR raise_exception THEN
        IF cardinality(ids) = 1 THEN
            RETURN QUERY SELECT
                ids[1],
                SQLERRM;
        ELSE
            RETURN QUERY SELECT d.id, d.refusal
            FROM goqueue.delete_unreferenced_jobs(ids[:cardinality(ids) / 2]) AS d;
            RETURN QUERY SELECT d.id, d.refusal
            FROM goqueue.delete_unreferenced_jobs(ids[cardinality(ids) / 2 + 1:]) AS d;
        END IF;
        RETURN;
    END;
    RETURN QUERY SELECT
        d.id,
        NULL::text
    FROM unnest(deleted_ids) AS d (id);
END
$$;

-- It has the rights of its caller. Where roles.sql has closed new functions to PUBLIC it must not fail until that runs again.
GRANT EXECUTE ON FUNCTION goqueue.delete_unreferenced_jobs(uuid[]) TO PUBLIC;

-- A token near the end of bigint would stop every claim that adds one to it.
ALTER TABLE goqueue.jobs
ADD CONSTRAINT jobs_lease_token_range CHECK (lease_token BETWEEN 0 AND 4611686018427387903) NOT VALID;

COMMENT ON FUNCTION goqueue.notify_ready_jobs() IS
    'Sends the queues of new jobs that are due on the channel goqueue, while somebody listens and goqueue.notify is not off.';
COMMENT ON FUNCTION goqueue.follow_changed_job() IS
    'Gives a job set running by hand a new lease_token. Sends the queue of a job that is due again on the channel goqueue, and id, lease_token and queue of a running job that was cancelled or deleted on goqueue_cancelled, while somebody listens and goqueue.notify is not off.';
COMMENT ON FUNCTION goqueue.delete_unreferenced_jobs(uuid[]) IS
    'Deletes the jobs and their failures, but for those that a foreign key or a trigger keeps: these with the reason.';
COMMENT ON TRIGGER jobs_follow_change ON goqueue.jobs IS
    'Fences the old holder of a job set running by hand; wakes idle workers and holders.';
COMMENT ON TRIGGER jobs_follow_delete ON goqueue.jobs IS
    'Tells the holder of a deleted job. Dropping it costs a holder the news until its next call.';
