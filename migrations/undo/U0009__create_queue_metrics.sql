-- Undoes V0009: exporters and queue_stats have no views to read. Run it in one transaction (psql -1 -f).
-- squawk-ignore-file ban-drop-view
SET LOCAL search_path = pg_catalog, pg_temp;
DROP VIEW goqueue.queue_metrics;
DROP VIEW goqueue.queue_status_metrics;
DELETE FROM goqueue.migration_checksums WHERE version = 9;
DELETE FROM goqueue.schema_version WHERE version = 9;
