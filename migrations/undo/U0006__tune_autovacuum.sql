-- Undoes V0006: autovacuum follows the server's settings. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs RESET (
    autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_threshold,
    autovacuum_vacuum_insert_scale_factor,
    autovacuum_vacuum_insert_threshold,
    autovacuum_analyze_scale_factor,
    autovacuum_analyze_threshold,
    autovacuum_vacuum_cost_limit,
    fillfactor
);
DELETE FROM goqueue.migration_checksums WHERE version = 6;
DELETE FROM goqueue.schema_version WHERE version = 6;
