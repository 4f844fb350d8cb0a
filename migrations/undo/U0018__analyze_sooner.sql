-- Undoes V0018: restores the settings of V0006, in its order. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER TABLE goqueue.jobs SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_limit = 2000,
    fillfactor = 90
);
DELETE FROM goqueue.migration_checksums WHERE version = 18;
DELETE FROM goqueue.schema_version WHERE version = 18;
