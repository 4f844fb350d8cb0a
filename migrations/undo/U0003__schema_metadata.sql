-- Undoes V0003: the recorded checksums are lost. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP TABLE goqueue.migration_checksums;
DELETE FROM goqueue.schema_version WHERE version = 3;
