-- Undoes V0005: the history of failures is lost. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP TABLE goqueue.job_failures;
DELETE FROM goqueue.migration_checksums WHERE version = 5;
DELETE FROM goqueue.schema_version WHERE version = 5;
