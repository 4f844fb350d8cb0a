-- Undoes V0004: holders can no longer be told apart. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs
DROP CONSTRAINT jobs_lease_is_running,
DROP COLUMN lease_expires_at,
DROP COLUMN lease_token;
DELETE FROM goqueue.migration_checksums WHERE version = 4;
DELETE FROM goqueue.schema_version WHERE version = 4;
