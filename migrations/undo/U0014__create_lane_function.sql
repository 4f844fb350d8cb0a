-- Undoes V0014. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP FUNCTION goqueue.pending_lanes(text[]);
DELETE FROM goqueue.migration_checksums WHERE version = 14;
DELETE FROM goqueue.schema_version WHERE version = 14;
