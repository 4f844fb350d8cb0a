-- The history of failed attempts, beside the jobs and not in them: a row of goqueue.jobs is rewritten at every claim, and
-- whatever it carries is written again each time.
--
-- Locks: only a new table.

CREATE TABLE goqueue.job_failures (
    job_id uuid NOT NULL,
    lease_token bigint NOT NULL,
    -- squawk-ignore prefer-bigint-over-int
    attempt integer NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    worker_id text,
    error text NOT NULL,

    -- No foreign key: each delete of a job would look here, also for the many that never failed.
    -- The statements that delete jobs delete their failures.
    CONSTRAINT job_failures_pkey PRIMARY KEY (job_id, lease_token)
);

COMMENT ON TABLE goqueue.job_failures IS 'One row a failed attempt: an error reported by the worker, or a lease that expired.';
COMMENT ON COLUMN goqueue.job_failures.job_id IS 'The job in goqueue.jobs.';
COMMENT ON COLUMN goqueue.job_failures.lease_token IS 'The claim that failed, as in goqueue.jobs.';
COMMENT ON COLUMN goqueue.job_failures.attempt IS 'The attempt''s number at the time; a retried job counts from one again.';
COMMENT ON COLUMN goqueue.job_failures.failed_at IS 'When the failure was recorded.';
COMMENT ON COLUMN goqueue.job_failures.started_at IS 'When the attempt started.';
COMMENT ON COLUMN goqueue.job_failures.worker_id IS 'The worker that held the job.';
COMMENT ON COLUMN goqueue.job_failures.error IS 'What the worker said.';
