-- List indexes for finished jobs only, one in order of creation per job type, one per queue and job type, and a narrow
-- one for pending jobs. They replace jobs_list_idx: an insert costs less, and a page of one job type needs no look at each
-- queue.
--
-- Locks: where the table is empty, or online/C0020__index_finished_jobs.sql ran first, ACCESS EXCLUSIVE on goqueue.jobs,
-- briefly. Otherwise SHARE while the indexes are built: writes wait. `goqueue migrate` runs the online file by itself.
-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion

-- pending: newest first. Queue, job type and status only filter: their values are read from the index. A status that a
-- later release adds is here too.
CREATE INDEX IF NOT EXISTS jobs_pending_idx ON goqueue.jobs (created_at, id, queue, job_type, status)
WHERE completed_at IS NULL AND status <> 'running';

-- finished: completed_at is set if and only if the status is completed, dead or cancelled (jobs_finished_has_time).
CREATE INDEX IF NOT EXISTS jobs_finished_type_idx ON goqueue.jobs (job_type, status, created_at, id)
WHERE completed_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_finished_queue_idx ON goqueue.jobs (queue, job_type, status, created_at, id)
WHERE completed_at IS NOT NULL;

COMMENT ON INDEX goqueue.jobs_pending_idx IS 'Lists and counts of pending jobs, in the order of creation.';
COMMENT ON INDEX goqueue.jobs_finished_type_idx IS
    'Lists and counts of finished jobs of all queues, and pruning: by job type and status, in the order of creation.';
COMMENT ON INDEX goqueue.jobs_finished_queue_idx IS
    'Lists, counts and statistics of finished jobs by queue, job type and status, in the order of creation.';

DROP INDEX IF EXISTS goqueue.jobs_list_idx;
