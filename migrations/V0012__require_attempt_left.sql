-- A pending job has an attempt left, so a claim never has to end one.
--
-- Locks: ACCESS EXCLUSIVE on goqueue.jobs, briefly: NOT VALID reads no row. V0013 ends the jobs that violate the rule and
-- validates it.

ALTER TABLE goqueue.jobs
ADD CONSTRAINT jobs_pending_has_attempt CHECK (status <> 'pending' OR attempts < max_attempts) NOT VALID;
