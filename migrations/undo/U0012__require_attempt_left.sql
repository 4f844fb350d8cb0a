-- Undoes V0012. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_pending_has_attempt;
DELETE FROM goqueue.migration_checksums WHERE version = 12;
DELETE FROM goqueue.schema_version WHERE version = 12;
