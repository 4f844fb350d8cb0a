-- Brings lease tokens that were set by hand into the range of V0010, and has the server trust the constraint.
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs while it reads the table twice; reads and writes go on, if V0010 was applied
-- by an earlier run.
--
-- A job with such a token that runs is lost to its holder: the next claim of it counts from 1.

UPDATE goqueue.jobs
SET lease_token = CASE WHEN lease_token < 0 THEN 0 ELSE 4611686018427387903 END
WHERE lease_token NOT BETWEEN 0 AND 4611686018427387903;

ALTER TABLE goqueue.jobs VALIDATE CONSTRAINT jobs_lease_token_range;
