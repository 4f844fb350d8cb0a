-- Undoes V0008: the creators of jobs are lost. If roles/roles.sql was run, run roles/drop_roles.sql first: its
-- policies need the column. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs
DROP COLUMN created_by;
DELETE FROM goqueue.migration_checksums WHERE version = 8;
DELETE FROM goqueue.schema_version WHERE version = 8;
