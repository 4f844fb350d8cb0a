-- Undoes V0016. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP FUNCTION goqueue.list_lanes(goqueue.job_status[], text[], text[]);
DELETE FROM goqueue.migration_checksums WHERE version = 16;
DELETE FROM goqueue.schema_version WHERE version = 16;
