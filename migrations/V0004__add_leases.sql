-- Leases: who holds a running job, by which claim, and until when.
--
-- Locks: ACCESS EXCLUSIVE on goqueue.jobs. Constant defaults rewrite nothing; the CHECK reads the table once, which no
-- release has had without it.
-- squawk-ignore-file constraint-missing-not-valid

ALTER TABLE goqueue.jobs
ADD COLUMN lease_token bigint NOT NULL DEFAULT 0,
ADD COLUMN lease_expires_at timestamptz;

-- Only a running job has a lease. (One set running by hand may have none: it is held without end.)
ALTER TABLE goqueue.jobs
ADD CONSTRAINT jobs_lease_is_running CHECK (lease_expires_at IS NULL OR status = 'running');

COMMENT ON COLUMN goqueue.jobs.lease_token IS
    'Counts the claims of this job and only grows. Whoever names an older one has lost the job.';
COMMENT ON COLUMN goqueue.jobs.lease_expires_at IS
    'From this time on the holder is taken for lost, and the job may be rescued; null unless leased.';
