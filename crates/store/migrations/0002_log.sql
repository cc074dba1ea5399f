-- The log without an index: rows are appended, so a commit of many sessions
-- touches the end of one table and no more. What is not yet in a chunk is
-- known in memory, rebuilt by one scan when the store opens.
ALTER TABLE log RENAME TO log_1;
ALTER TABLE turn RENAME TO turn_1;

CREATE TABLE turn (
    key          INTEGER PRIMARY KEY,     -- stands for the id in log and chunk
    id           TEXT NOT NULL UNIQUE,
    session      TEXT NOT NULL,
    created_at   REAL NOT NULL,
    status       TEXT NOT NULL,           -- see TurnStatus
    place        INTEGER NOT NULL,        -- order among those that wait
    started      INTEGER,                 -- order in the conversation; null: it waits, or never began
    attempt      INTEGER NOT NULL DEFAULT 1,
    cancelling   INTEGER NOT NULL DEFAULT 0,
    output_text  TEXT NOT NULL DEFAULT '',
    usage        TEXT NOT NULL DEFAULT '{}',
    error        TEXT,                    -- JSON of code and message
    completed_at REAL,
    ended        REAL,                    -- the same moment on the clock of lives
    last_seq     INTEGER                  -- of the terminal event; null with an end: the log is damaged
) STRICT;
CREATE INDEX turns_of_session ON turn (session, started);
-- One turn at a time, whatever the code above believes.
CREATE UNIQUE INDEX open_turn ON turn (session) WHERE status = 'in_progress';
CREATE INDEX waiting_turns ON turn (session, place) WHERE status = 'queued';

CREATE TABLE log (
    id      INTEGER PRIMARY KEY,
    turn    INTEGER NOT NULL,
    seq     INTEGER NOT NULL,             -- an event's number; for the rest that of the event that follows
    kind    TEXT NOT NULL,                -- an event's type, or entry, or intent
    body    TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    mark    INTEGER NOT NULL,             -- bytes of the attempt's spool that are in the log with this row
    at_ms   INTEGER NOT NULL,             -- milliseconds of work on the turn
    crc     INTEGER NOT NULL              -- CRC-32 of all the others but id
) STRICT;

-- What was in the log and is closed: events and the rest apart, compressed.
CREATE TABLE chunk (
    id      INTEGER PRIMARY KEY,
    turn    INTEGER NOT NULL,
    first   INTEGER NOT NULL,             -- events first..next
    next    INTEGER NOT NULL,
    attempt INTEGER NOT NULL,             -- as in the last of its rows
    mark    INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    events  BLOB NOT NULL,
    rest    BLOB NOT NULL,
    crc     INTEGER NOT NULL              -- CRC-32 of all the others but id
) STRICT;
CREATE INDEX chunks_of_turn ON chunk (turn, first);

-- A session's life is measured on a clock that no setting of the wall clock
-- moves; what people read stays in the columns that there were.
ALTER TABLE session ADD COLUMN born REAL NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN active REAL NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN rested REAL NOT NULL DEFAULT 0;
UPDATE session SET born = created_at, active = last_activity, rested = last_activity;
