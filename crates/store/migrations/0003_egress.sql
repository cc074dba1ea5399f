ALTER TABLE session ADD COLUMN egress TEXT NOT NULL DEFAULT '{}';       -- JSON, as declared
ALTER TABLE session ADD COLUMN connections TEXT NOT NULL DEFAULT '[]';  -- JSON list of names
