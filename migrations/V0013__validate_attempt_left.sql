-- Ends the pending jobs without an attempt left, as a claim did before, and has the server trust the rule of V0012.
--
-- Locks: the rows that are ended, and SHARE UPDATE EXCLUSIVE on goqueue.jobs while it reads the table twice. Reads and writes
-- go on, if V0012 was applied by an earlier run.
--
-- Such a job becomes dead; it keeps its last error, or gets one that says why.

UPDATE goqueue.jobs
SET
    status = 'dead',
    last_error = coalesce(last_error, 'no attempt was left'),
    updated_at = now(),
    completed_at = now()
WHERE status = 'pending' AND attempts >= max_attempts;

ALTER TABLE goqueue.jobs VALIDATE CONSTRAINT jobs_pending_has_attempt;
