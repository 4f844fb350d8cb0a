-- Undoes V0027: the constraint exists, but is not validated. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_unique_key_length;
ALTER TABLE goqueue.jobs
ADD CONSTRAINT jobs_unique_key_length CHECK (char_length(unique_key) BETWEEN 1 AND 255) NOT VALID;
DELETE FROM goqueue.migration_checksums WHERE version = 27;
DELETE FROM goqueue.schema_version WHERE version = 27;
