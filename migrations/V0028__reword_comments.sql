-- Rewords the catalog's comments, which psql shows with \d+. They now use the terms of the documents.
--
-- Locks: SHARE UPDATE EXCLUSIVE on each table and view, briefly. They block no reads and no writes.

COMMENT ON TABLE goqueue.jobs IS 'One row per job, until it is deleted or pruned.';
COMMENT ON COLUMN goqueue.jobs.id IS
    'UUIDv7. The client makes it, so that a repeated create adds no second job. The default is uuid_v7().';
COMMENT ON COLUMN goqueue.jobs.attempts IS 'Attempts started, including the running one.';
COMMENT ON COLUMN goqueue.jobs.created_by IS
    'The role that created the job (current_user). For jobs older than this column, the role that added the '
    'column.';
COMMENT ON COLUMN goqueue.jobs.idempotency_key IS 'At most one job has a given key; null for jobs without a key.';
COMMENT ON COLUMN goqueue.jobs.unique_key IS
    'At most one pending or running job has a given key; null for jobs without a key.';
COMMENT ON COLUMN goqueue.jobs.last_error IS
    'The error of the last failed attempt; kept until the job is replaced or the error is cleared.';
COMMENT ON COLUMN goqueue.jobs.lease_expires_at IS
    'When the lease expires. From then on, the job can be rescued. Null without a lease.';
COMMENT ON COLUMN goqueue.jobs.lease_token IS
    'Grows with each claim. A holder with an older token has lost the job.';
COMMENT ON COLUMN goqueue.jobs.locked_at IS 'When the current holder claimed the job; null unless running.';
COMMENT ON COLUMN goqueue.jobs.priority IS 'Lower numbers run first; 0 by default.';
COMMENT ON COLUMN goqueue.jobs.scheduled_at IS 'The job is not claimed before this time.';
COMMENT ON COLUMN goqueue.jobs.updated_at IS
    'Start of the transaction that last changed the job; set by the statements in sql/.';
COMMENT ON TABLE goqueue.job_failures IS
    'One row per failed attempt: the worker reported an error, or the lease expired.';
COMMENT ON COLUMN goqueue.job_failures.attempt IS
    'The attempt''s number. After retry_jobs, numbers start at one again.';
COMMENT ON COLUMN goqueue.job_failures.error IS 'The worker''s error, or a message about the expired lease.';
COMMENT ON COLUMN goqueue.job_failures.lease_token IS 'The job''s lease_token during the attempt.';
COMMENT ON TABLE goqueue.migration_checksums IS
    'One row per applied migration file, with its checksum at that time.';
COMMENT ON COLUMN goqueue.migration_checksums.recorded_at IS
    'When the checksum was recorded, at the end of the run that applied the file.';
COMMENT ON TABLE goqueue.paused_queues IS 'One row per paused queue. A row whose time has passed has no effect.';
COMMENT ON VIEW goqueue.queue_metrics IS 'One row per queue. The cost does not grow with the number of jobs.';
COMMENT ON COLUMN goqueue.queue_metrics.queue IS 'The queue''s name. A queue has a row while it has jobs or is paused.';
COMMENT ON COLUMN goqueue.queue_metrics.expired_leases IS
    'Gauge: running jobs whose lease has expired. They wait for rescue_jobs.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_age_seconds IS
    'Gauge in seconds: how long the oldest due job has been due; 0 if none is due. Alert on this value first.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_at IS 'When the oldest due job became due; null if none is due.';
COMMENT ON COLUMN goqueue.queue_metrics.ready_jobs IS
    'Gauge: pending jobs that are due. Exact up to 1000; 1001 means more.';
COMMENT ON VIEW goqueue.queue_status_metrics IS
    'One row per queue and status, including statuses without jobs. The cost does not grow with the number of '
    'jobs.';
COMMENT ON COLUMN goqueue.queue_status_metrics.queue IS 'The queue''s name. A queue has rows while it has jobs.';
COMMENT ON COLUMN goqueue.queue_status_metrics.jobs IS
    'Gauge: the number of jobs. Exact up to 1000; beyond that, at least 1001, estimated from a sample.';
COMMENT ON COLUMN goqueue.queue_status_metrics.is_exact IS 'True if the column jobs is exact.';
COMMENT ON COLUMN goqueue.queue_status_metrics.expired_leases IS
    'For the status running, jobs whose lease has expired; null for other statuses.';
COMMENT ON COLUMN goqueue.queue_status_metrics.oldest_ready_at IS
    'For the status pending, when the oldest due job became due; null if none is due. Null for other statuses.';
COMMENT ON VIEW goqueue.pending_metrics IS 'One row per queue with pending jobs. queue_status_metrics reads it.';
COMMENT ON COLUMN goqueue.pending_metrics.oldest_ready_at IS 'When the oldest due job became due; null if none is due.';
COMMENT ON FUNCTION goqueue.delete_unreferenced_jobs(uuid[]) IS
    'Deletes jobs with their failures, except jobs that a foreign key or a trigger keeps. Returns the id of each '
    'job, and for a kept job the reason.';
COMMENT ON FUNCTION goqueue.finished_lanes(goqueue.job_status[], text[], text[]) IS
    'Returns the lanes of finished jobs: each combination of the given queues, job types and statuses. A null '
    'argument matches all. Without queues, a lane covers all queues, and its queue is null. Without job types, '
    'one probe of jobs_finished_type_idx finds each type.';
COMMENT ON FUNCTION goqueue.follow_changed_job() IS
    'Gives a new lease_token to a job that is set running manually. Sends notifications while a session listens '
    'and goqueue.notify is not off. On the channel goqueue: the queue of a job that is due again. On '
    'goqueue_cancelled: the id, lease_token and queue of a running job that was cancelled or deleted.';
COMMENT ON FUNCTION goqueue.notify_ready_jobs() IS
    'Sends the queues of new due jobs on the channel goqueue, while a session listens and goqueue.notify is not '
    'off.';
COMMENT ON FUNCTION goqueue.pending_lanes(text[]) IS
    'Returns the first pending job of each priority in each queue. Each row needs one probe of jobs_claim_idx.';
COMMENT ON FUNCTION goqueue.uuid_v7() IS
    'Returns a UUIDv7 with the server''s time, for rows that are inserted without an id.';
COMMENT ON TRIGGER jobs_follow_change ON goqueue.jobs IS
    'Ends the old holder''s lease if a job is set running manually. Wakes idle workers when a job is due again. '
    'Notifies the holder of a cancelled job.';
COMMENT ON TRIGGER jobs_follow_delete ON goqueue.jobs IS
    'Notifies the holder of a deleted job. Without it, the holder notices the deletion at its next call.';
COMMENT ON TRIGGER jobs_notify_ready ON goqueue.jobs IS 'Wakes idle workers. Without it, they find jobs by polling.';
