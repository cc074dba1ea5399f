-- What of a session's model calls its ended turns account for.
ALTER TABLE session ADD COLUMN metered TEXT NOT NULL DEFAULT '{}';  -- JSON
