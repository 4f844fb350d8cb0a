-- Statistics that follow a table while it grows from sixty jobs to millions.
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs, briefly; reads and writes go on.

ALTER TABLE goqueue.jobs SET (
    -- A plan is kept until the table is analyzed. With 50,000 changes, as before, the plans for a table of sixty jobs served one of
    -- 45,000: a claim read all of it.
    autovacuum_analyze_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02
);
