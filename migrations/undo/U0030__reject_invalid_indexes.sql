-- Undoes V0030, which changes nothing. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DELETE FROM goqueue.migration_checksums WHERE version = 30;
DELETE FROM goqueue.schema_version WHERE version = 30;
