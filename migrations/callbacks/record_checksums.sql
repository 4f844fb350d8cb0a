-- Made by `make catalogue` from the migration files; change those.
--
-- Runs at the end of every `pgmigrate migrate`. What is recorded once stays: a file that was edited after it
-- was applied has another checksum than the one here, and shows.
DO $$
BEGIN
    -- A run with an earlier target ends before there is a table to record in.
    IF to_regclass('goqueue.migration_checksums') IS NOT NULL THEN
        INSERT INTO goqueue.migration_checksums (version, file_name, sha256)
        SELECT
            f.version,
            f.file_name,
            f.sha256
        FROM (VALUES
            (1, 'V0001__create_jobs.sql', 'ca8adb0770faffdf3c107996f001499f6396eacdd7192ebe1509e8650ed4be37'),
            (2, 'V0002__index_jobs.sql', '32337102feed58bd05e18375feaf2a75c1fd04d9c8ec34994cdd42380b100dec'),
            (3, 'V0003__schema_metadata.sql', '401a9f9d2c5152d9c441e9ed1c14b5170d43596dc4517ce0873ddf35ab3141af')
        ) AS f (version, file_name, sha256)
        INNER JOIN goqueue.schema_version AS applied ON applied.version = f.version
        ON CONFLICT (version) DO NOTHING;
    END IF;
END
$$;
