-- Undoes V0028: the earlier comments. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
COMMENT ON TABLE goqueue.jobs IS 'One row a job, from its creation until it is pruned.';
COMMENT ON COLUMN goqueue.jobs.id IS 'UUIDv7, made by the client, so that a create can be tried again safely.';
COMMENT ON COLUMN goqueue.jobs.attempts IS 'Attempts started so far, the running one included.';
COMMENT ON COLUMN goqueue.jobs.created_by IS
    'The role that created the job (current_user). In jobs older than this column, the role that added it.';
COMMENT ON COLUMN goqueue.jobs.idempotency_key IS 'At most one job has a given key; null for jobs without.';
COMMENT ON COLUMN goqueue.jobs.unique_key IS 'At most one unfinished job has a given key; null for jobs without.';
COMMENT ON COLUMN goqueue.jobs.last_error IS
    'What the last failed attempt said; kept until the job is created anew or cleared.';
COMMENT ON COLUMN goqueue.jobs.lease_expires_at IS
    'From this time on the holder is taken for lost, and the job may be rescued; null unless leased.';
COMMENT ON COLUMN goqueue.jobs.lease_token IS
    'Counts the claims of this job and only grows. Whoever names an older one has lost the job.';
COMMENT ON COLUMN goqueue.jobs.locked_at IS 'When the present holder took the job; null unless running.';
COMMENT ON COLUMN goqueue.jobs.priority IS 'The lower number runs first, as with nice; 0 is the usual one.';
COMMENT ON COLUMN goqueue.jobs.scheduled_at IS 'Not before this time is the job given to a worker.';
COMMENT ON COLUMN goqueue.jobs.updated_at IS
    'Start of the transaction that changed the job last; set by the statements in sql/.';
COMMENT ON TABLE goqueue.job_failures IS
    'One row a failed attempt: an error reported by the worker, or a lease that expired.';
COMMENT ON COLUMN goqueue.job_failures.attempt IS
    'The attempt''s number at the time; a retried job counts from one again.';
COMMENT ON COLUMN goqueue.job_failures.error IS 'What the worker said.';
COMMENT ON COLUMN goqueue.job_failures.lease_token IS 'The claim that failed, as in goqueue.jobs.';
COMMENT ON TABLE goqueue.migration_checksums IS 'The checksum of each migration file as it was when it was applied.';
COMMENT ON COLUMN goqueue.migration_checksums.recorded_at IS 'When the run that applied the file recorded it.';
COMMENT ON TABLE goqueue.paused_queues IS 'One row a paused queue. A row whose time has passed has no effect.';
COMMENT ON VIEW goqueue.queue_metrics IS 'One row a queue. Cheap however many jobs there are.';
COMMENT ON COLUMN goqueue.queue_metrics.queue IS 'The queue''s name; a queue is there while it has jobs or is paused.';
COMMENT ON COLUMN goqueue.queue_metrics.expired_leases IS
    'Running jobs whose holder was not heard of in time, a gauge: they wait for rescue_jobs.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_age_seconds IS
    'How long that job has been due, a gauge in seconds; 0 when none is due. What to be warned of first.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_at IS
    'Since when the job waits that has been due the longest; null when none is due.';
COMMENT ON COLUMN goqueue.queue_metrics.ready_jobs IS
    'Waiting jobs that are due, a gauge: exact up to 1000; 1001 means more than that.';
COMMENT ON VIEW goqueue.queue_status_metrics IS
    'One row a queue and status, statuses without jobs included. Cheap however many jobs there are.';
COMMENT ON COLUMN goqueue.queue_status_metrics.queue IS 'The queue''s name; a queue is there while it has jobs.';
COMMENT ON COLUMN goqueue.queue_status_metrics.jobs IS
    'How many jobs, a gauge: exact up to 1000; above that an estimate from a sample, and at least 1001.';
COMMENT ON COLUMN goqueue.queue_status_metrics.is_exact IS 'Whether jobs is exact.';
COMMENT ON COLUMN goqueue.queue_status_metrics.expired_leases IS
    'For the status running, jobs whose holder was not heard of in time. Null for other statuses.';
COMMENT ON COLUMN goqueue.queue_status_metrics.oldest_ready_at IS
    'For the status pending, the time at which the oldest due job became due. Null when none is due.';
COMMENT ON VIEW goqueue.pending_metrics IS 'One row a queue with pending jobs. queue_status_metrics reads it.';
COMMENT ON COLUMN goqueue.pending_metrics.oldest_ready_at IS
    'The time at which the oldest due job became due; null when none is due.';
COMMENT ON FUNCTION goqueue.delete_unreferenced_jobs(uuid[]) IS
    'Deletes the jobs and their failures, but for those that a foreign key or a trigger keeps: these with the '
    'reason.';
COMMENT ON FUNCTION goqueue.finished_lanes(goqueue.job_status[], text[], text[]) IS
    'The lanes of finished jobs that a filter matches. A null argument matches all. A lane is a job type and a '
    'status, of each of the queues; without queues, of all queues, and its queue is null. Job types that are not '
    'given are found with one probe of jobs_finished_type_idx each.';
COMMENT ON FUNCTION goqueue.follow_changed_job() IS
    'Gives a job set running by hand a new lease_token. Sends the queue of a job that is due again on the '
    'channel goqueue, and id, lease_token and queue of a running job that was cancelled or deleted on goqueue_cancelled, '
    'while somebody listens and goqueue.notify is not off.';
COMMENT ON FUNCTION goqueue.notify_ready_jobs() IS
    'Sends the queues of new jobs that are due on the channel goqueue, while somebody listens and goqueue.notify '
    'is not off.';
COMMENT ON FUNCTION goqueue.pending_lanes(text[]) IS
    'Each queue and priority that has pending jobs, with the first of them. One probe of jobs_claim_idx each.';
COMMENT ON FUNCTION goqueue.uuid_v7() IS
    'A time-ordered UUID (version 7) by the server''s clock, for rows inserted by hand.';
COMMENT ON TRIGGER jobs_follow_change ON goqueue.jobs IS
    'Fences the old holder of a job set running by hand; wakes idle workers and holders.';
COMMENT ON TRIGGER jobs_follow_delete ON goqueue.jobs IS
    'Tells the holder of a deleted job. Dropping it costs a holder the news until its next call.';
COMMENT ON TRIGGER jobs_notify_ready ON goqueue.jobs IS
    'Wakes idle workers. Dropping it costs them no job: polling alone is enough.';
DELETE FROM goqueue.migration_checksums WHERE version = 28;
DELETE FROM goqueue.schema_version WHERE version = 28;
