-- Undoes V0022. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP FUNCTION goqueue.new_jobs(jsonb);
DELETE FROM goqueue.migration_checksums WHERE version = 22;
DELETE FROM goqueue.schema_version WHERE version = 22;
