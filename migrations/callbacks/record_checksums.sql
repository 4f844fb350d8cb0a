-- Made by `make catalogue` from the migration files; change those.
--
-- Runs at the end of a `pgmigrate migrate` that applied something. A recorded checksum is never changed.
-- So it shows if a file was edited after it was applied.
DO $$
BEGIN
    -- A run with an earlier target ends before the table exists.
    IF to_regclass('goqueue.migration_checksums') IS NOT NULL THEN
        INSERT INTO goqueue.migration_checksums (version, file_name, sha256)
        SELECT
            f.version,
            f.file_name,
            f.sha256
        FROM (VALUES
            (1, 'V0001__create_jobs.sql', '90d5578a73ff8d5e4dacad3f68465c2f3d64ffed801447937ecf706aa6a0f24e'),
            (2, 'V0002__index_jobs.sql', '33011a4dd6a0818cd5c2e4dd9215cbc946790a03439632a851f94bd75a740463'),
            (3, 'V0003__schema_metadata.sql', '401a9f9d2c5152d9c441e9ed1c14b5170d43596dc4517ce0873ddf35ab3141af'),
            (4, 'V0004__add_leases.sql', '85b2563ffa6d2e3e3e0132f67a9b87d7dded102fc01cd620ce757e8124b5fce9'),
            (5, 'V0005__create_job_failures.sql', 'e38f79d5980ac89941588d0d8c63811b3e0c35f441c5238394ffe94c084674c6'),
            (6, 'V0006__tune_autovacuum.sql', '5f61091cacc341b159f11cf2f49b5622bad5bb7e85a816ce2cef2cc1cdea9228'),
            (7, 'V0007__notify_ready_jobs.sql', '21348c8685d796af620668fb1291ff27e185efaacdaadd1ec7f8bb41bfd7f155'),
            (8, 'V0008__record_creator.sql', '1ffce26a883b8a011ffb11efd2a07df46cd8c37129e4493b12d11381b083454b'),
            (9, 'V0009__create_queue_metrics.sql', 'ada66ddf30b455a6efc7d8292ca79f35837df113e7395c342bc19f1b1cf0db35'),
            (10, 'V0010__notify_changed_jobs.sql', 'c4b7ed07c1c6fe49e081c4b597a841b830fb4a6dd9ab89926525233017d71970'),
            (11, 'V0011__validate_lease_tokens.sql', '9247a5b63325d69101be6fa106d03ccf51db4cde0cead320619f64ba5c16894b'),
            (12, 'V0012__require_attempt_left.sql', '5a836870ebc4fa0721655ead2bb8c4e3aba71cd9d13c3c4dba438e4e197c9214'),
            (13, 'V0013__validate_attempt_left.sql', '7ca9087b66e979a38f508263050821112f55876346c2e6fa48e91f0c92572554'),
            (14, 'V0014__create_lane_function.sql', 'f8b45b39bc5879d2b47e29a709ee03c986472c446d2cf7ee5c62a3dafaecd7c5'),
            (15, 'V0015__rebuild_list_indexes.sql', 'f2ecefed3e1b6019d61e540564c55b65499fb3e2f10bd8aee561f3a56f6a10d7'),
            (16, 'V0016__create_lane_function.sql', '3ccc2606f9f00b27f9472ffbeef462ffc0522759c890d5744c8847a47842eec8'),
            (17, 'V0017__shorten_metrics_views.sql', 'd988014142be0c28e5d521723645353cd82c992c07b843aacceb4f1816ec6493'),
            (18, 'V0018__analyze_sooner.sql', '2a66ab23b6a03dc0272a201573d630b5ce259bf17a364b31e84a5d0c5593268f'),
            (19, 'V0019__notify_at_lower_cost.sql', '78b181b774e34646b6412ce5a13477d4f8b86b53f2c81f8861bc1cecf468a2d4'),
            (20, 'V0020__index_finished_jobs.sql', '39b43fc48e401da0c13841214fb60ffa3446eab624c731a2c5a1d6b10bed8a4e'),
            (21, 'V0021__read_finished_jobs.sql', '8d3dee607429c61f825db27ecf0665bc1bb1bc4e08a6e70bc9446b2f09a55c45'),
            (22, 'V0022__create_new_jobs_function.sql', 'b192bceea8337aca4288ea9e323279621c2abb46c5078e67428af8157a5c5039'),
            (23, 'V0023__create_add_job_function.sql', 'f4a7c60e95caaa7214884f8ff6b9c4a29ab6c46d7e27d5fa91136adbc6e59014'),
            (24, 'V0024__pause_queues.sql', '58808381698f8c2d3f86b96b98830bb62e3b894cb4d1f7b74a37ea6a27c49116'),
            (25, 'V0025__add_unique_key.sql', '0830148915c67bc6a6f1c1e64496d2f0eb87e3123afb851fcc77ac777df30d92'),
            (26, 'V0026__add_jobs_with_unique_keys.sql', '4647d5103652b20390bf1cea019bb392eebac8f96391fa0936567303083a2dd7'),
            (27, 'V0027__validate_unique_key.sql', '0f445041f62e2c6e531fd729fd87344f22c2cf384d5876b0b737ade17399954a'),
            (28, 'V0028__reword_comments.sql', '68e0befbd16ef599223f1d8fc340b0a7014e128f9214f2acf3eaebdd8c07364d'),
            (29, 'V0029__analyze_large_tables_sooner.sql', '15d2029fe51315649a9ee14d67ecf0140e6305d10d0d4522323dd836dcf91d8a'),
            (30, 'V0030__reject_invalid_indexes.sql', '99f33c4ebe1614412801f6d0de331478875c3470cfd548d5211c9634594d83be'),
            (31, 'V0031__name_exact_functions.sql', '66cfb208b7f581576bbc59aa20ca63144fc5a0203714bf290da09b0036dda8ee')
        ) AS f (version, file_name, sha256)
        INNER JOIN goqueue.schema_version AS applied ON applied.version = f.version
        ON CONFLICT (version) DO NOTHING;
    END IF;
END
$$;
