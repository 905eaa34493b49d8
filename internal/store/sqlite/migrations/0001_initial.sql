-- The last number given out, by what it numbers. Numbers are never given twice.
CREATE TABLE sequences (
	name TEXT PRIMARY KEY,
	last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO sequences (name, last) VALUES ('revision', 0), ('Plan', 0), ('Site', 0), ('Event', 0);

-- Every uid that a tenant ever had. Rows are never removed.
CREATE TABLE uids (
	uid     INTEGER PRIMARY KEY,
	created INTEGER NOT NULL -- 1: given out from accounts.range, 0: adopted
) STRICT;

-- Times are nanoseconds since 1970; spec, status and finalizers are JSON.
CREATE TABLE resources (
	kind       TEXT NOT NULL,
	tenant     TEXT NOT NULL, -- of a Site, else empty
	name       TEXT NOT NULL,
	id         INTEGER NOT NULL,
	revision   INTEGER NOT NULL,
	generation INTEGER NOT NULL,
	spec       TEXT NOT NULL,
	status     TEXT NOT NULL,
	finalizers TEXT NOT NULL,
	created    INTEGER NOT NULL,
	deleted    INTEGER,
	PRIMARY KEY (kind, tenant, name),
	UNIQUE (kind, id)
) STRICT;

-- One row for each revision, without gaps; the oldest ones are forgotten.
CREATE TABLE changes (
	revision INTEGER PRIMARY KEY,
	kind     TEXT NOT NULL,
	removed  INTEGER NOT NULL,
	resource TEXT NOT NULL -- the whole of it, as JSON, as it was then
) STRICT;

-- A claim cannot outlive its site.
CREATE TABLE claims (
	host   TEXT PRIMARY KEY,
	kind   TEXT NOT NULL CHECK (kind = 'Site'),
	tenant TEXT NOT NULL,
	site   TEXT NOT NULL,
	FOREIGN KEY (kind, tenant, site) REFERENCES resources (kind, tenant, name) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE INDEX claims_site ON claims (kind, tenant, site, host);

CREATE TABLE events (
	id       INTEGER PRIMARY KEY,
	time     INTEGER NOT NULL,
	severity TEXT NOT NULL,
	reason   TEXT NOT NULL,
	tenant   TEXT NOT NULL,
	site     TEXT NOT NULL,
	message  TEXT NOT NULL,
	fields   TEXT NOT NULL
) STRICT;

CREATE INDEX events_tenant ON events (tenant, id);
CREATE INDEX events_time ON events (time);
