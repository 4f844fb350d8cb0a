-- Undoes V0025: the unique keys of all jobs are lost. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs DROP COLUMN unique_key;
DELETE FROM goqueue.migration_checksums WHERE version = 25;
DELETE FROM goqueue.schema_version WHERE version = 25;
