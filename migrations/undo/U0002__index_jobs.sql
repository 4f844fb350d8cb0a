-- Undoes V0002: duplicates of idempotency keys are possible again. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
DROP INDEX goqueue.jobs_queue_idx;
DROP INDEX goqueue.jobs_status_idx;
DROP INDEX goqueue.jobs_idempotency_key_idx;
DROP INDEX goqueue.jobs_claim_idx;
DELETE FROM goqueue.schema_version WHERE version = 2;
