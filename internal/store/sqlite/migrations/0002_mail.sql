-- What tenants mailed, by hours since 1970. A message counts once for each
-- recipient.
CREATE TABLE mail (
	uid      INTEGER NOT NULL,
	hour     INTEGER NOT NULL,
	messages INTEGER NOT NULL,
	mails    INTEGER NOT NULL,
	PRIMARY KEY (uid, hour)
) STRICT, WITHOUT ROWID;

-- Plans of before get what a manifest that leaves the field out gets.
UPDATE resources SET spec = json_set(spec, '$.mail', json('{"hour":100,"day":500,"recipients":50,"size":"10Mi"}'))
WHERE kind = 'Plan' AND json_extract(spec, '$.mail') IS NULL;
