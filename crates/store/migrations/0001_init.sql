CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE api_key (
    hash       BLOB PRIMARY KEY,          -- SHA-256 of the whole key; the key itself is nowhere
    caller     TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE session (
    id            TEXT PRIMARY KEY,
    created_at    REAL NOT NULL,
    last_activity REAL NOT NULL,
    persistent    INTEGER NOT NULL,
    ttl           INTEGER,                -- seconds; null: no limit
    metadata      TEXT NOT NULL,          -- JSON object
    file_access   TEXT NOT NULL,          -- JSON, as declared
    model         TEXT NOT NULL,
    context       TEXT NOT NULL,          -- the joined .pokee/*.md of the moment of creation
    deleted_at    REAL                    -- rows go later, so that open streams end properly
) STRICT, WITHOUT ROWID;

CREATE TABLE turn (
    id           TEXT PRIMARY KEY,
    session      TEXT NOT NULL,
    created_at   REAL NOT NULL,
    status       TEXT NOT NULL,           -- see TurnStatus
    output_text  TEXT NOT NULL DEFAULT '',
    usage        TEXT NOT NULL DEFAULT '{}',
    error        TEXT,                    -- JSON of code and message
    completed_at REAL
) STRICT, WITHOUT ROWID;
CREATE INDEX turn_of_session ON turn (session, created_at);
-- One turn at a time, whatever the code above believes.
CREATE UNIQUE INDEX one_open_turn ON turn (session) WHERE status = 'in_progress';

-- The log. Events have a number and are shown; entries of the conversation
-- have none and are not. Both in one table, because their order is one.
CREATE TABLE log (
    id   INTEGER PRIMARY KEY,
    turn TEXT NOT NULL,
    seq  INTEGER,
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX log_of_turn ON log (turn, seq) WHERE seq IS NOT NULL;
CREATE INDEX entries_of_turn ON log (turn, id) WHERE seq IS NULL;

CREATE TABLE idempotency (
    caller      TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,            -- SHA-256 of session and body
    turn        TEXT NOT NULL,
    expires_at  REAL NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
