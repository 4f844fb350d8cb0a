-- A second key: at most one unfinished job (pending or running) has it. When that job finishes, the key is free again.
--
-- Locks: where the table is empty, or online/C0025__add_unique_key.sql ran first, ACCESS EXCLUSIVE on goqueue.jobs, briefly.
-- Otherwise until the index is built: reads and writes wait. `goqueue migrate` runs the online file by itself. The column
-- rewrites nothing, and NOT VALID reads no row: V0027 validates the constraint.
-- squawk-ignore-file require-concurrent-index-creation

ALTER TABLE goqueue.jobs
ADD COLUMN IF NOT EXISTS unique_key text;

ALTER TABLE goqueue.jobs
ADD CONSTRAINT jobs_unique_key_length CHECK (char_length(unique_key) BETWEEN 1 AND 255) NOT VALID;

-- unfinished: completed_at is null if and only if the status is pending or running (jobs_finished_has_time). Claiming,
-- releasing, failing with a retry and rescuing keep it null, so only adding a job and retrying one can violate this index.
CREATE UNIQUE INDEX IF NOT EXISTS jobs_unique_key_idx ON goqueue.jobs (unique_key)
WHERE unique_key IS NOT NULL AND completed_at IS NULL;

COMMENT ON COLUMN goqueue.jobs.unique_key IS 'At most one unfinished job has a given key; null for jobs without.';
COMMENT ON INDEX goqueue.jobs_unique_key_idx IS 'At most one unfinished job for a unique key.';

-- Who can write the other key can write this one, because add_job and create_job write both, and roles.sql may not have run
-- again.
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format(
            'GRANT %s (unique_key) ON goqueue.jobs TO %s%s',
            a.privilege_type,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        FROM pg_attribute AS c
        CROSS JOIN LATERAL aclexplode(c.attacl) AS a
        WHERE c.attrelid = 'goqueue.jobs'::regclass AND c.attname = 'idempotency_key'
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;
