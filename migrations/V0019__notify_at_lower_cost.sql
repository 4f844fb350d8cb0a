-- The insert trigger of V0010 at half its cost: without a search_path of its own.
--
-- Locks: none that block; the function is replaced.
--
-- To set a search_path at each statement made the server look all names of the function up again. So the names are
-- qualified. It has the rights of whoever inserts, and the operators that this session finds.

CREATE OR REPLACE FUNCTION goqueue.notify_ready_jobs() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    -- The lock is tried and given back in one expression: no cancel comes between, after which the session would keep it.
    IF
        (pg_catalog.lower(pg_catalog.current_setting('goqueue.notify', true)) IN ('off', 'false', 'no', '0')) IS NOT TRUE
        AND NOT (
            CASE
                WHEN pg_catalog.pg_try_advisory_lock(7453300657348765004)
                    THEN pg_catalog.pg_advisory_unlock(7453300657348765004)
                ELSE FALSE
            END
        )
    THEN
        PERFORM pg_catalog.pg_notify('goqueue', ready.queue)
        FROM (
            SELECT DISTINCT n.queue
            FROM new_job AS n
            WHERE n.status = 'pending' AND n.scheduled_at <= pg_catalog.statement_timestamp()
        ) AS ready;
    END IF;
    RETURN NULL;
END
$$;
