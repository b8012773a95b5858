-- Flows: their records, their edges and groups, and what the executions that are members carry.

ALTER TABLE db.executions
  ADD COLUMN children bytea,  -- the flow of its spawned children
  -- The indexes.
  ADD COLUMN flow_id uuid,    -- the flow of which it is a member
  ADD COLUMN member text,     -- the public state of a member
  ADD COLUMN is_root boolean; -- a root of a graph that is still being built or released

CREATE INDEX executions_of_flow ON db.executions (p, flow_id, uuid) WHERE flow_id IS NOT NULL;
CREATE INDEX executions_in_flow ON db.executions (p, flow_id, member) WHERE flow_id IS NOT NULL;
CREATE INDEX executions_begun ON db.executions (p, flow_id) WHERE flow_id IS NOT NULL AND attempt IS NOT NULL;
CREATE INDEX executions_roots ON db.executions (p, flow_id, uuid) WHERE is_root;

-- How far a job has come that a call left unfinished.
ALTER TABLE db.entries ADD COLUMN place bytea;

CREATE TABLE db.flows (
  p smallint NOT NULL, flow uuid NOT NULL,
  namespace bytea NOT NULL,  -- packed
  -- The record.
  kind bytea, tags bytea, created bytea, mutated bytea, revision bytea, nodes bytea, edges bytea, sealed bytea,
  building bytea,            -- how many items of its graph are stored; null once it is built
  total bytea, digest bytea, submitted_by bytea,  -- of its graph: how many items, their digest, and the call that sent them
  state bytea,               -- open until it is decided or cancelled
  ended bytea, keep bytea, keep_until bytea,    -- when all members had ended, the longest retention, and the last window of a key
  cancel_policy bytea, cancel_reason bytea, cancelled_at bytea,
  answered bytea,            -- the answers to its last calls
  parent bytea,              -- the execution that spawned its members
  PRIMARY KEY (p, flow)
) WITH (fillfactor = 50);
CREATE INDEX flows_listed ON db.flows (p, namespace, flow) WHERE building IS NULL;

-- An edge. Its result counts if it is s, or if it is of the life of its group; so a group is opened again in one step.
CREATE TABLE db.edges (
  p smallint NOT NULL, flow uuid NOT NULL, id bytea NOT NULL,
  up uuid NOT NULL, down uuid NOT NULL,
  ref bytea, kind bytea, created bytea,
  ordinal int NOT NULL,       -- its place in the order of staging
  applied boolean NOT NULL,
  result "char" NOT NULL DEFAULT '',  -- s success; f failed, expired or cancelled; k skipped
  life int NOT NULL DEFAULT 0,
  PRIMARY KEY (p, flow, id)
) WITH (fillfactor = 70);
CREATE INDEX edges_out ON db.edges (p, up, id);
CREATE INDEX edges_of_flow ON db.edges (p, flow, up, id);
CREATE INDEX edges_in ON db.edges (p, down, id);
CREATE INDEX edges_with_data ON db.edges (p, down, ordinal) WHERE ref IS NOT NULL;

-- All edges of a flow into one execution. The group of the children of an execution stands for its last wait, whose number is
-- the life: an edge counts if it is of that life, and its result is that of the child, whichever wait it belongs to.
CREATE TABLE db.groups (
  p smallint NOT NULL, down uuid NOT NULL, flow uuid NOT NULL,
  policy text NOT NULL, k int NOT NULL, others text NOT NULL,
  n int NOT NULL DEFAULT 0, ok int NOT NULL DEFAULT 0, bad int NOT NULL DEFAULT 0, skip int NOT NULL DEFAULT 0,
  state text NOT NULL DEFAULT 'pending', life int NOT NULL DEFAULT 0,
  force boolean NOT NULL DEFAULT false,  -- an edge was applied, so the group holds its execution back
  decided uuid,                          -- the upstream execution that decided it
  PRIMARY KEY (p, flow, down)
) WITH (fillfactor = 70);
CREATE INDEX groups_unreachable ON db.groups (p, flow) WHERE k > n;

-- The members that are not cancelled with their flow: detached children, and those whose end was acknowledged.
CREATE TABLE db.acknowledged (p smallint NOT NULL, flow uuid NOT NULL, uuid uuid NOT NULL, PRIMARY KEY (p, flow, uuid));
