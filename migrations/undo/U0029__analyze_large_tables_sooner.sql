-- Undoes V0029: restores the settings of V0018 and the comments of V0028. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs SET (
    autovacuum_analyze_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02
);
COMMENT ON COLUMN goqueue.jobs.updated_at IS
    'Start of the transaction that last changed the job; set by the statements in sql/.';
COMMENT ON COLUMN goqueue.queue_status_metrics.queue IS 'The queue''s name. A queue has rows while it has jobs.';
DELETE FROM goqueue.migration_checksums WHERE version = 29;
DELETE FROM goqueue.schema_version WHERE version = 29;
