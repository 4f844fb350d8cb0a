-- Counts the dead rows of a large table soon after vacuum. Also corrects two comments.
--
-- Vacuum leaves the dead entries of all indexes if less than 2 % of the table's pages have dead rows: at ten million jobs,
-- up to 200,000 entries. It then reports no dead rows, so that claims read all those entries (estimate_dead_rows). ANALYZE
-- counts them. Autovacuum analyzes after vacuum, in the same run, if that is due too: with these settings it always is.
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs, briefly; reads and writes go on.

ALTER TABLE goqueue.jobs SET (
    autovacuum_analyze_threshold = 1000,
    -- Not a share of the table (0.02, by V0018). It reads a sample of 30,000 rows, at most once per autovacuum_naptime.
    autovacuum_analyze_scale_factor = 0
);

COMMENT ON COLUMN goqueue.jobs.updated_at IS
    'Start of the statement that last changed the job; for a new job, of the transaction that added it.';
COMMENT ON COLUMN goqueue.queue_status_metrics.queue IS
    'The queue''s name. A queue has rows while it has jobs or is paused.';
