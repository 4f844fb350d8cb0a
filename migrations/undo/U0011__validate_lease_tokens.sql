-- Undoes V0011: the constraint exists, but is not validated. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_lease_token_range;
ALTER TABLE goqueue.jobs
ADD CONSTRAINT jobs_lease_token_range CHECK (lease_token BETWEEN 0 AND 4611686018427387903) NOT VALID;
DELETE FROM goqueue.migration_checksums WHERE version = 11;
DELETE FROM goqueue.schema_version WHERE version = 11;
