-- Undoes V0019. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
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
DELETE FROM goqueue.migration_checksums WHERE version = 19;
DELETE FROM goqueue.schema_version WHERE version = 19;
