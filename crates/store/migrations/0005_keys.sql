-- Keys with roles, ends and replacements. The hashes of before were without a
-- key of their own and cannot be turned into the present ones: keys of a version
-- before this one are made anew.
DROP TABLE api_key;
CREATE TABLE key (
    id         TEXT PRIMARY KEY,
    caller     TEXT NOT NULL,
    role       TEXT NOT NULL,
    session    TEXT,                      -- the one that it reaches; null: all
    created_at REAL NOT NULL,             -- this and those below in Unix seconds
    expires_at REAL,
    rotated_at REAL,
    revoked_at REAL,
    late       INTEGER NOT NULL DEFAULT 0 -- calls with a replaced key since the last rotation
) STRICT, WITHOUT ROWID;
CREATE TABLE key_hash (
    hash  BLOB PRIMARY KEY,               -- HMAC-SHA-256 of the whole key; the key itself is nowhere
    key   TEXT NOT NULL,
    until REAL                            -- of a replaced one; null: the present one
) STRICT, WITHOUT ROWID;
CREATE INDEX hashes_of_key ON key_hash (key);
