-- Builds the indexes of V0020 while programs write. `goqueue migrate` runs it before V0020 by itself; before
-- `pgmigrate migrate`, run it with psql (not in a transaction: without -1).
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs; nobody is blocked. It waits for older transactions, without a limit.
-- Running it again is safe: it keeps a valid index, and rebuilds an invalid one, which an interrupted run has left. After
-- V0020 it changes nothing and fails.

SET search_path = pg_catalog, pg_temp;
-- A limit of the role or the database would end the build, which leaves an invalid index.
SET statement_timeout = 0;
SET lock_timeout = 0;
DO $$
DECLARE
    command text;
BEGIN
    IF EXISTS (SELECT FROM goqueue.schema_version AS v WHERE v.version >= 20) THEN
        RAISE EXCEPTION 'V0020 is applied, and has built these indexes' USING
            ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'To rebuild an index, use REINDEX INDEX CONCURRENTLY.';
    END IF;
    -- DROP INDEX CONCURRENTLY can't be in this block, and has no condition. Renaming blocks nobody.
    FOR command IN
        SELECT format('ALTER INDEX goqueue.%I RENAME TO %I', c.relname, c.relname || '_invalid')
        FROM pg_index AS i
        INNER JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE
            i.indrelid = 'goqueue.jobs'::regclass
            AND c.relname IN ('jobs_pending_idx', 'jobs_finished_type_idx', 'jobs_finished_queue_idx')
            AND NOT i.indisvalid
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_pending_idx_invalid;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_pending_idx ON goqueue.jobs (created_at, id, queue, job_type, status)
WHERE completed_at IS NULL AND status <> 'running';
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_finished_type_idx_invalid;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_finished_type_idx ON goqueue.jobs (job_type, status, created_at, id)
WHERE completed_at IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_finished_queue_idx_invalid;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_finished_queue_idx ON goqueue.jobs (queue, job_type, status, created_at, id)
WHERE completed_at IS NOT NULL;
