-- Autovacuum for a table whose rows are each rewritten twice in a short life.
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs, briefly; reads and writes go on.

ALTER TABLE goqueue.jobs SET (
    -- Dead entries at the head of the claim index slow claims down, and their number grows with the claims, not with
    -- the table: vacuum after a fixed number of dead rows, and not after a fifth of ten million.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    -- Lists and counts read the index alone where the visibility map is fresh: vacuum after inserts, too.
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    -- Statistics follow the shift between backlog and history.
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    -- Ten times the default work between naps: a busy queue makes dead rows faster than the default removes them.
    autovacuum_vacuum_cost_limit = 2000,
    -- Heartbeats change no indexed column: with room on the page they add no index entry (HOT).
    fillfactor = 90
);
