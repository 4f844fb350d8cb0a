-- One index for lists and counts, and a small one for running jobs, in place of the two list indexes. A change of status
-- then adds one or two index entries beside the primary key's, and a claim none for lists.
--
-- Locks: where the table is empty, or online/C0015__rebuild_list_indexes.sql ran first, ACCESS EXCLUSIVE on goqueue.jobs,
-- briefly. Otherwise SHARE while the indexes are built: writes wait. `goqueue migrate` runs the online file by itself.
-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion

-- running: rescues, and running jobs in lists and statistics. They are as many as workers hold.
CREATE INDEX IF NOT EXISTS jobs_running_idx ON goqueue.jobs (id)
WHERE status = 'running';

-- list: each combination of status, job type and queue is one contiguous range, in the order of creation.
CREATE INDEX IF NOT EXISTS jobs_list_idx ON goqueue.jobs (status, job_type, queue, created_at, id)
WHERE status <> 'running';

COMMENT ON INDEX goqueue.jobs_running_idx IS 'Rescues: the running jobs.';
COMMENT ON INDEX goqueue.jobs_list_idx IS 'Lists, counts and pruning by status, job type and queue, in the order of creation.';

DROP INDEX IF EXISTS goqueue.jobs_status_idx;
DROP INDEX IF EXISTS goqueue.jobs_queue_idx;
