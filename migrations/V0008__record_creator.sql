-- Who created a job: what a producer may see is what it created (roles/roles.sql).
--
-- Locks: ACCESS EXCLUSIVE on goqueue.jobs, briefly. The default is the same for every row there is (STABLE), so that it is
-- stored once and nothing is rewritten or read; those rows get the role that runs this.
--
-- current_user and not session_user: it is the role whose rights are checked, after SET ROLE and inside a SECURITY DEFINER
-- function too. Programs that share a login and take roles of their own are told apart. As text, because a name always
-- takes 64 bytes.

ALTER TABLE goqueue.jobs
-- squawk-ignore adding-field-with-default
ADD COLUMN created_by text NOT NULL DEFAULT current_user;

COMMENT ON COLUMN goqueue.jobs.created_by IS
    'The role that created the job (current_user). In jobs older than this column, the role that added it.';
