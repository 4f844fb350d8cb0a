-- Adds the column of V0025, and builds its index while programs write. `goqueue migrate` runs it before V0025 by itself;
-- before `pgmigrate migrate`, run it with psql (not in a transaction: without -1).
--
-- Locks: first ACCESS EXCLUSIVE on goqueue.jobs for the column, held briefly; it waits at most 3 seconds for this lock. Then
-- SHARE UPDATE EXCLUSIVE, which blocks nobody; the index build waits for older transactions, without a limit.
-- Running it again is safe: it keeps a valid index, and rebuilds an invalid one, which an interrupted run has left. After
-- V0025 it changes nothing and fails.

SET search_path = pg_catalog, pg_temp;
-- A limit of the role or the database would end the build, which leaves an invalid index.
SET statement_timeout = 0;
SET lock_timeout = '3s';
DO $$
DECLARE
    command text;
BEGIN
    IF EXISTS (SELECT FROM goqueue.schema_version AS v WHERE v.version >= 25) THEN
        RAISE EXCEPTION 'V0025 is applied, and has built these indexes' USING
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
            AND c.relname IN ('jobs_unique_key_idx')
            AND NOT i.indisvalid
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;
ALTER TABLE goqueue.jobs ADD COLUMN IF NOT EXISTS unique_key text;
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_unique_key_idx_invalid;
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS jobs_unique_key_idx ON goqueue.jobs (unique_key)
WHERE unique_key IS NOT NULL AND completed_at IS NULL;
