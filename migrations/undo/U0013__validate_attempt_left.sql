-- Undoes V0013: the constraint exists, but is not validated. The jobs that V0013 ended stay dead. Run it in one transaction
-- (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_pending_has_attempt;
ALTER TABLE goqueue.jobs
ADD CONSTRAINT jobs_pending_has_attempt CHECK (status <> 'pending' OR attempts < max_attempts) NOT VALID;
DELETE FROM goqueue.migration_checksums WHERE version = 13;
DELETE FROM goqueue.schema_version WHERE version = 13;
