-- What was applied, to the byte: pgmigrate's goqueue.schema_version says which versions ran, this table with which text.
--
-- Locks: only a new table. migrations/callbacks/record_checksums.sql fills it at the end of every run.

CREATE TABLE goqueue.migration_checksums (
    version bigint NOT NULL,
    file_name text NOT NULL,
    sha256 text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT migration_checksums_pkey PRIMARY KEY (version),
    CONSTRAINT migration_checksums_sha256_form CHECK (sha256 ~ '^[0-9a-f]{64}$')
);

COMMENT ON TABLE goqueue.migration_checksums IS 'The checksum of each migration file as it was when it was applied.';
COMMENT ON COLUMN goqueue.migration_checksums.version IS 'The number in the file''s name, as in goqueue.schema_version.';
COMMENT ON COLUMN goqueue.migration_checksums.file_name IS 'The file''s name without its folder.';
COMMENT ON COLUMN goqueue.migration_checksums.sha256 IS 'SHA-256 of the file''s bytes, in hexadecimal.';
COMMENT ON COLUMN goqueue.migration_checksums.recorded_at IS 'When the run that applied the file recorded it.';
