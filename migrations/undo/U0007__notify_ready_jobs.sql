-- Undoes V0007: idle workers find new jobs when they poll. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP TRIGGER jobs_notify_ready ON goqueue.jobs;
DROP FUNCTION goqueue.notify_ready_jobs();
DELETE FROM goqueue.migration_checksums WHERE version = 7;
DELETE FROM goqueue.schema_version WHERE version = 7;
