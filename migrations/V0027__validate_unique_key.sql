-- Has the server trust the length of unique keys (V0025).
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs while it reads the table. Reads and writes go on, if V0025 was applied by an
-- earlier run.

ALTER TABLE goqueue.jobs VALIDATE CONSTRAINT jobs_unique_key_length;
