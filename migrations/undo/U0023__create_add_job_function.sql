-- Undoes V0023. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP FUNCTION goqueue.add_job;
DELETE FROM goqueue.migration_checksums WHERE version = 23;
DELETE FROM goqueue.schema_version WHERE version = 23;
