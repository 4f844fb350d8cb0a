-- Undoes V0020: restores the single list index. Run it in one transaction (psql -1 -f): writes wait while it is built.
-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion
SET LOCAL search_path = pg_catalog, pg_temp;
CREATE INDEX jobs_list_idx ON goqueue.jobs (status, job_type, queue, created_at, id)
WHERE status <> 'running';
COMMENT ON INDEX goqueue.jobs_list_idx IS 'Lists, counts and pruning by status, job type and queue, in the order of creation.';
DROP INDEX goqueue.jobs_pending_idx;
DROP INDEX goqueue.jobs_finished_type_idx;
DROP INDEX goqueue.jobs_finished_queue_idx;
DELETE FROM goqueue.migration_checksums WHERE version = 20;
DELETE FROM goqueue.schema_version WHERE version = 20;
