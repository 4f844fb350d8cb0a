-- Undoes V0015: restores the two list indexes. Run it in one transaction (psql -1 -f): writes wait while they are built.
-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion
SET LOCAL search_path = pg_catalog, pg_temp;
CREATE INDEX jobs_status_idx ON goqueue.jobs (status, created_at, id) INCLUDE (scheduled_at);
CREATE INDEX jobs_queue_idx ON goqueue.jobs (queue, job_type, status, created_at, id) INCLUDE (scheduled_at);
COMMENT ON INDEX goqueue.jobs_status_idx IS 'Lists and counts by status, newest first.';
COMMENT ON INDEX goqueue.jobs_queue_idx IS 'Lists and counts by queue and job type, newest first.';
DROP INDEX goqueue.jobs_list_idx;
DROP INDEX goqueue.jobs_running_idx;
DELETE FROM goqueue.migration_checksums WHERE version = 15;
DELETE FROM goqueue.schema_version WHERE version = 15;
