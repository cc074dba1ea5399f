-- Keys that others have made for one session, keys with a ceiling, and people who
-- have signed in with a browser.
ALTER TABLE key ADD COLUMN parent TEXT;      -- the keys and sign-ins that made it, spaces between; it ends with them
ALTER TABLE key ADD COLUMN file_access TEXT; -- JSON; null: no ceiling
ALTER TABLE key ADD COLUMN egress TEXT;      -- JSON; null: no ceiling
CREATE TABLE sign_in (
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL UNIQUE,         -- HMAC-SHA-256 of the cookie
    caller     TEXT NOT NULL,
    roles      TEXT NOT NULL,                -- with spaces between
    created_at REAL NOT NULL,                -- this and those below in Unix seconds
    expires_at REAL NOT NULL,
    ended_at   REAL
) STRICT, WITHOUT ROWID;
