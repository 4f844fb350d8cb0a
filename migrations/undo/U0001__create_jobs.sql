-- Undoes V0001: every job is lost. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP TABLE goqueue.jobs;
DROP FUNCTION goqueue.uuid_v7();
DROP TYPE goqueue.job_status;
DELETE FROM goqueue.schema_version WHERE version = 1;
