-- Counts the dead rows of a large table soon after vacuum. Also corrects two comments.
--
-- Vacuum leaves dead entries in all indexes if less than 2 % of the table's pages have dead rows: at ten million jobs,
-- up to 200,000 entries. It then reports no dead rows, so estimate_dead_rows returns too few, and claims read all those
-- entries. ANALYZE counts them. If it is due, autovacuum runs it right after vacuum. With these settings it usually is.
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs, briefly; reads and writes continue.

ALTER TABLE goqueue.jobs SET (
    autovacuum_analyze_threshold = 1000,
    -- Not a share of the table (0.02, by V0018). It reads a sample of 30,000 rows, at most once per autovacuum_naptime.
    autovacuum_analyze_scale_factor = 0
);

COMMENT ON COLUMN goqueue.jobs.updated_at IS
    'Start of the statement that last changed the job; for a new job, of the transaction that added it.';
COMMENT ON COLUMN goqueue.queue_status_metrics.queue IS
    'The queue''s name. A queue has rows while it has jobs or is paused.';
