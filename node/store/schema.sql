-- The database: index of the spool and queue of record. Runs unchanged on SQLite and PostgreSQL.
-- Times are seconds since the epoch, UTC. States and their legal moves: node/states.py.

CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY);

CREATE TABLE IF NOT EXISTS study (
    study_instance_uid TEXT PRIMARY KEY,
    state              TEXT NOT NULL,
    revision           INTEGER NOT NULL,            -- how often it has been complete
    opened_at          DOUBLE PRECISION NOT NULL,   -- first instance of the revision now being received
    last_received_at   DOUBLE PRECISION NOT NULL,
    completed_at       DOUBLE PRECISION,
    manifest_sha256    TEXT,                        -- over the sorted (sop_instance_uid, sha256) of the revision
    reason             TEXT NOT NULL DEFAULT ''     -- why complete, how routed, what failed; for people
);
CREATE INDEX IF NOT EXISTS study_by_state ON study (state, last_received_at);

CREATE TABLE IF NOT EXISTS instance (
    sop_instance_uid    TEXT NOT NULL,
    sha256              TEXT NOT NULL,               -- of the data set's bytes as received
    study_instance_uid  TEXT NOT NULL REFERENCES study (study_instance_uid),
    series_instance_uid TEXT NOT NULL,
    sop_class_uid       TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    path                TEXT NOT NULL,               -- relative to the spool
    size                BIGINT NOT NULL,
    calling_ae          TEXT NOT NULL,
    is_own_result       INTEGER NOT NULL DEFAULT 0,  -- made by us and sent back by the PACS: kept, never read
    received_at         DOUBLE PRECISION NOT NULL,
    revision            INTEGER NOT NULL,            -- the first revision whose manifest has it
    last_revision       INTEGER,                     -- the last one; NULL as long as the file is in the spool
    removed_at          DOUBLE PRECISION,            -- when retention deleted the file; the row stays
    excluded_from       INTEGER,                     -- the revision from which on a person let another copy stand
    PRIMARY KEY (sop_instance_uid, sha256)
);
CREATE TABLE IF NOT EXISTS completion (              -- what speaks for a study being all here, while it is received
    study_instance_uid TEXT PRIMARY KEY REFERENCES study (study_instance_uid),
    released_at        DOUBLE PRECISION,            -- the last association that brought instances was released
    asked_at           DOUBLE PRECISION NOT NULL DEFAULT 0,  -- when the archive was last asked about it
    seen_received_at   DOUBLE PRECISION,            -- the study's last_received_at then: the answer is worth this
    in_archive         INTEGER,                     -- Number of Study Related Instances (0020,1208); NULL: unknown
    missing            INTEGER,                     -- how many of them are not here; NULL: unknown
    fetches            INTEGER NOT NULL DEFAULT 0,  -- attempts to fetch what is missing
    fetch_after        DOUBLE PRECISION NOT NULL DEFAULT 0,  -- one is under way until then, or the next may begin
    note               TEXT NOT NULL DEFAULT ''     -- what the last question or attempt came to; for people
);
CREATE INDEX IF NOT EXISTS instance_by_study ON instance (study_instance_uid, revision);
CREATE INDEX IF NOT EXISTS instance_kept ON instance (received_at) WHERE removed_at IS NULL;

CREATE TABLE IF NOT EXISTS job (
    id                  TEXT PRIMARY KEY,            -- derived from the unique key
    study_instance_uid  TEXT NOT NULL REFERENCES study (study_instance_uid),
    revision            INTEGER NOT NULL,
    series_instance_uid TEXT NOT NULL,
    bundle              TEXT NOT NULL,
    bundle_version      TEXT NOT NULL,
    bundle_digest       TEXT NOT NULL,
    route               TEXT NOT NULL,
    results             TEXT NOT NULL,               -- JSON list of SR, SEG, SC
    send_to             TEXT NOT NULL,               -- JSON list of destination names
    instances           TEXT NOT NULL DEFAULT '[]',  -- JSON list of the SOP Instance UIDs to read; empty: the whole series
    decline             TEXT NOT NULL DEFAULT 'silent',  -- silent, report or never
    state               TEXT NOT NULL,
    attempts            INTEGER NOT NULL DEFAULT 0,
    fence               INTEGER NOT NULL DEFAULT 0,
    leased_by           TEXT,
    leased_until        DOUBLE PRECISION,
    not_before          DOUBLE PRECISION NOT NULL DEFAULT 0,
    rung_at             DOUBLE PRECISION NOT NULL DEFAULT 0,   -- when the broker was last told
    priority            INTEGER NOT NULL DEFAULT 0,  -- 0 routine, 1 high, 2 stat; the highest is read first
    reason              TEXT NOT NULL DEFAULT '',
    summary             TEXT NOT NULL DEFAULT '',    -- what was found, in one line, for people
    created_at          DOUBLE PRECISION NOT NULL,
    updated_at          DOUBLE PRECISION NOT NULL,
    UNIQUE (study_instance_uid, revision, series_instance_uid, bundle, bundle_version, bundle_digest)
);
CREATE INDEX IF NOT EXISTS job_by_state ON job (state, not_before);
CREATE INDEX IF NOT EXISTS job_by_study ON job (study_instance_uid, revision);

CREATE TABLE IF NOT EXISTS evidence (
    sop_instance_uid    TEXT PRIMARY KEY,
    job_id              TEXT NOT NULL REFERENCES job (id),
    kind                TEXT NOT NULL,               -- SR, SEG or SC
    sop_class_uid       TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    path                TEXT NOT NULL,               -- relative to the spool
    sha256              TEXT NOT NULL,               -- of the file
    size                BIGINT NOT NULL,
    created_at          DOUBLE PRECISION NOT NULL,
    removed_at          DOUBLE PRECISION             -- when retention deleted the file; the row stays
);
CREATE INDEX IF NOT EXISTS evidence_by_job ON evidence (job_id);
CREATE INDEX IF NOT EXISTS evidence_kept ON evidence (created_at) WHERE removed_at IS NULL;

CREATE TABLE IF NOT EXISTS delivery (
    id                  TEXT PRIMARY KEY,            -- derived from the unique key
    sop_instance_uid    TEXT NOT NULL REFERENCES evidence (sop_instance_uid),
    destination         TEXT NOT NULL,
    state               TEXT NOT NULL,
    attempts            INTEGER NOT NULL DEFAULT 0,
    fence               INTEGER NOT NULL DEFAULT 0,
    leased_by           TEXT,
    leased_until        DOUBLE PRECISION,
    not_before          DOUBLE PRECISION NOT NULL DEFAULT 0,
    rung_at             DOUBLE PRECISION NOT NULL DEFAULT 0,
    last_status         TEXT NOT NULL DEFAULT '',    -- DIMSE status as hex, or the association's answer
    reason              TEXT NOT NULL DEFAULT '',
    transaction_uid     TEXT,                        -- of the storage commitment now asked for
    commit_attempts     INTEGER NOT NULL DEFAULT 0,
    created_at          DOUBLE PRECISION NOT NULL,   -- or when a person last revived it: how long to try counts from here
    updated_at          DOUBLE PRECISION NOT NULL,
    UNIQUE (sop_instance_uid, destination)
);
CREATE INDEX IF NOT EXISTS delivery_by_state ON delivery (state, not_before);
CREATE INDEX IF NOT EXISTS delivery_by_transaction ON delivery (transaction_uid);

CREATE TABLE IF NOT EXISTS event (                   -- append only
    entity     TEXT NOT NULL,                        -- study, job, delivery, instance
    entity_id  TEXT NOT NULL,                        -- an instance is named by its sha256
    number     INTEGER NOT NULL,                     -- from 1 within the entity; its order whatever the clock does
    at         DOUBLE PRECISION NOT NULL,
    from_state TEXT NOT NULL,                        -- '' when the entity came to be
    to_state   TEXT NOT NULL,
    reason     TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (entity, entity_id, number)
);
