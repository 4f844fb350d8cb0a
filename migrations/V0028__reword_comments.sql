-- Rewords the catalog's comments, which psql shows with \d+, in the terms of the documents.
--
-- Locks: SHARE UPDATE EXCLUSIVE on each table and view, briefly. Reads and writes go on.

COMMENT ON TABLE goqueue.jobs IS 'One row per job, until it is deleted or pruned.';
COMMENT ON COLUMN goqueue.jobs.id IS 'UUIDv7, made by the client, so that a repeated create adds no second job.';
COMMENT ON COLUMN goqueue.jobs.attempts IS 'Attempts started, including the running one.';
COMMENT ON COLUMN goqueue.jobs.created_by IS
    'The role that created the job (current_user). For jobs older than this column, the role that added the '
    'column.';
COMMENT ON COLUMN goqueue.jobs.idempotency_key IS 'At most one job has a given key; null for jobs without a key.';
COMMENT ON COLUMN goqueue.jobs.unique_key IS 'At most one unfinished job has a given key; null for jobs without a key.';
COMMENT ON COLUMN goqueue.jobs.last_error IS
    'The error of the last failed attempt; kept until the job is replaced or the error is cleared.';
COMMENT ON COLUMN goqueue.jobs.lease_expires_at IS
    'From this time on, the holder counts as lost and the job can be rescued; null without a lease.';
COMMENT ON COLUMN goqueue.jobs.lease_token IS
    'Grows with each claim. A holder that names an older token has lost the job.';
COMMENT ON COLUMN goqueue.jobs.locked_at IS 'When the current holder claimed the job; null unless running.';
COMMENT ON COLUMN goqueue.jobs.priority IS 'Lower numbers run first; 0 by default.';
COMMENT ON COLUMN goqueue.jobs.scheduled_at IS 'The job is not claimed before this time.';
COMMENT ON COLUMN goqueue.jobs.updated_at IS
    'Start of the transaction that last changed the job; set by the statements in sql/.';
COMMENT ON TABLE goqueue.job_failures IS
    'One row per failed attempt: an error reported by the worker, or a lease that expired.';
COMMENT ON COLUMN goqueue.job_failures.attempt IS
    'The attempt''s number. After retry_jobs, numbers start at one again.';
COMMENT ON COLUMN goqueue.job_failures.error IS 'The worker''s error.';
COMMENT ON COLUMN goqueue.job_failures.lease_token IS 'The lease_token of the claim that failed.';
COMMENT ON TABLE goqueue.migration_checksums IS
    'The checksum of each applied migration file, as it was when it was applied.';
COMMENT ON COLUMN goqueue.migration_checksums.recorded_at IS
    'When the run that applied the file recorded the checksum.';
COMMENT ON TABLE goqueue.paused_queues IS 'One row per paused queue. A row whose time has passed has no effect.';
COMMENT ON VIEW goqueue.queue_metrics IS 'One row per queue. The cost does not grow with the number of jobs.';
COMMENT ON COLUMN goqueue.queue_metrics.queue IS 'The queue''s name. A queue has a row while it has jobs or is paused.';
COMMENT ON COLUMN goqueue.queue_metrics.expired_leases IS
    'Running jobs whose lease has expired, a gauge: they wait for rescue_jobs.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_age_seconds IS
    'How long the oldest due job has been due, a gauge in seconds; 0 if none is due. The first value to alert on.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_at IS 'When the oldest due job became due; null if none is due.';
COMMENT ON COLUMN goqueue.queue_metrics.ready_jobs IS
    'Pending jobs that are due, a gauge: exact up to 1000; 1001 means more.';
COMMENT ON VIEW goqueue.queue_status_metrics IS
    'One row per queue and status, including statuses without jobs. The cost does not grow with the number of '
    'jobs.';
COMMENT ON COLUMN goqueue.queue_status_metrics.queue IS 'The queue''s name. A queue has rows while it has jobs.';
COMMENT ON COLUMN goqueue.queue_status_metrics.jobs IS
    'The number of jobs, a gauge: exact up to 1000; above, an estimate from a sample, and at least 1001.';
COMMENT ON COLUMN goqueue.queue_status_metrics.is_exact IS 'True if jobs is exact.';
COMMENT ON COLUMN goqueue.queue_status_metrics.expired_leases IS
    'For the status running, jobs whose lease has expired; null for other statuses.';
COMMENT ON COLUMN goqueue.queue_status_metrics.oldest_ready_at IS
    'For the status pending, when the oldest due job became due; null if none is due, and for other statuses.';
COMMENT ON VIEW goqueue.pending_metrics IS 'One row per queue with pending jobs. queue_status_metrics reads it.';
COMMENT ON COLUMN goqueue.pending_metrics.oldest_ready_at IS 'When the oldest due job became due; null if none is due.';
COMMENT ON FUNCTION goqueue.delete_unreferenced_jobs(uuid[]) IS
    'Deletes the jobs with their failures. Skips the jobs that a foreign key or a trigger keeps, and returns the '
    'reason for each.';
COMMENT ON FUNCTION goqueue.finished_lanes(goqueue.job_status[], text[], text[]) IS
    'Returns the lanes of finished jobs that match; a null argument matches all. A lane has a job type, a status '
    'and a queue. Without queues, a lane covers all queues, and its queue is null. One probe of '
    'jobs_finished_type_idx finds each job type that was not given.';
COMMENT ON FUNCTION goqueue.follow_changed_job() IS
    'Gives a job that is set running manually a new lease_token. While a session listens and goqueue.notify is not '
    'off, it sends two kinds of notifications: on the channel goqueue the queue of a job that is due again; on '
    'goqueue_cancelled the id, lease_token and queue of a running job that was cancelled or deleted.';
COMMENT ON FUNCTION goqueue.notify_ready_jobs() IS
    'Sends the queues of new due jobs on the channel goqueue, while a session listens and goqueue.notify is not '
    'off.';
COMMENT ON FUNCTION goqueue.pending_lanes(text[]) IS
    'Returns each queue and priority with pending jobs, and the first of these jobs. One probe of jobs_claim_idx '
    'finds each.';
COMMENT ON FUNCTION goqueue.uuid_v7() IS
    'Returns a time-ordered UUID (version 7) by the server''s clock, for rows inserted without an id.';
COMMENT ON TRIGGER jobs_follow_change ON goqueue.jobs IS
    'Ends the lease of a job''s holder if the job is set running manually. Wakes idle workers, and notifies '
    'holders.';
COMMENT ON TRIGGER jobs_follow_delete ON goqueue.jobs IS
    'Notifies the holder of a deleted job. Without it, the holder notices the deletion at its next call.';
COMMENT ON TRIGGER jobs_notify_ready ON goqueue.jobs IS 'Wakes idle workers. Without it, they find jobs by polling.';
