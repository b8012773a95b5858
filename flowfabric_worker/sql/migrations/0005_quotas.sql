-- Quotas, and the gates of claim classes.

-- Whether the class of an execution has gates or a slot; until when a slot that was asked for by hand is kept.
ALTER TABLE db.executions ADD COLUMN gated boolean, ADD COLUMN slot_until bytea;

-- The gates of a class, and the quota of which its executions have a slot; see prelude_gates.sql.
ALTER TABLE db.classes ADD COLUMN gates bytea[], ADD COLUMN held bytea;
CREATE INDEX classes_of_gates ON db.classes USING gin (gates) WHERE gates IS NOT NULL;
CREATE INDEX classes_of_held ON db.classes (p, held) WHERE held IS NOT NULL;

CREATE TABLE db.quotas (
  p smallint NOT NULL,
  quota bytea NOT NULL,        -- pack{namespace, id}
  listed bytea NOT NULL,       -- pack{namespace} and the id
  window_ms bigint NOT NULL,
  rate bigint, slots bigint,   -- what it allows, or null
  hold bytea NOT NULL,
  created bigint NOT NULL,
  answered bytea,
  PRIMARY KEY (p, quota)
);
CREATE INDEX quotas_listed ON db.quotas (p, listed);

-- The executions that have a slot of a quota, until when at least.
CREATE TABLE db.slots (p smallint NOT NULL, quota bytea NOT NULL, uuid uuid NOT NULL, until bigint, PRIMARY KEY (p, quota, uuid));
CREATE INDEX slots_of_execution ON db.slots (p, uuid);

-- How many attempts began under a quota at a moment of its window.
CREATE TABLE db.began (
  p smallint NOT NULL, quota bytea NOT NULL, moment bigint NOT NULL, attempts bigint NOT NULL, PRIMARY KEY (p, quota, moment)
) WITH (fillfactor = 50);
