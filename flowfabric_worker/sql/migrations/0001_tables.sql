-- The tables of a store. `db.` stands for the configured schema.
--
-- A record is bytes, exactly as the same release stores it on Valkey; a function checks what it reads, so a damaged record
-- harms itself alone. The columns behind "indexes" are typed and say what the indexes hold. Only functions write them.

CREATE TABLE db.partitions (
  p smallint PRIMARY KEY,
  major bytea, partitions bytea, testing bytea, created bigint,
  clock bigint,                       -- the stopped clock of a store for tests, in ms
  latest bigint NOT NULL DEFAULT 0,   -- the latest time that was seen, in ms
  feed_age bigint,                    -- how long ends stay in the feed, in ms
  feed_ms bigint NOT NULL DEFAULT 0,  -- the newest id of the feed, <feed_ms>-<feed_n>
  feed_n bigint NOT NULL DEFAULT 0,
  trimmed_ms bigint, trimmed_n bigint,    -- the newest id that was trimmed
  prepared bytea, removed bytea, upkeep bytea,  -- remembered calls
  kid bytea,                                    -- that of the secret which signs waitpoint tokens
  rotated bytea                                 -- remembered rotations
) WITH (fillfactor = 50);

CREATE TABLE db.executions (
  p smallint NOT NULL,
  uuid uuid NOT NULL,
  -- The record.
  state bytea, class bytea, priority bytea, place bytea, created bytea, mutated bytea, policy bytea, payload bytea,
  codec bytea, tags bytea, headers bytea, creator bytea, max_signals bytea, idempotency_key bytea, dedup_until bytea,
  deadline bytea, delay_until bytea, fence bytea, expires bytea, timeout_at bytea, timeout_left bytea, holder bytea,
  topic bytea, attempt bytea, attempts bytea, started bytea, closed bytea, ended bytea, result bytea, error bytea,
  error_class bytea, error_detail bytea, cancel_reason bytea, cancelled_by bytea, revoke_reason bytea, retry_count bytea,
  reclaim_count bytea, replay_count bytea, reserved_for bytea, reserved_until bytea, watchers bytea, last bytea,
  reported bytea, answered bytea, steps bytea, journal_bytes bytea, progress_percent bytea, progress_message bytea,
  progress_at bytea, suspension bytea, suspended_at bytea, suspended_until bytea, flow bytea, stream bytea, keys bytea,
  -- The indexes.
  namespace bytea NOT NULL,  -- packed
  lane_id int,               -- null once the execution is set aside, as all that follow
  class_id int,
  ready bigint,              -- place minus priority of an execution that may be claimed
  due bigint,                -- when time will change it, in ms
  due_in "char",             -- d: leases, deadlines and reservations; y: delays; r: retention
  listed text,               -- its public state, if that has an index
  suspended bigint,          -- since when it is suspended, in ms
  PRIMARY KEY (p, uuid)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);

CREATE INDEX executions_ready ON db.executions (p, class_id, ready, uuid) WHERE ready IS NOT NULL;
CREATE INDEX executions_due ON db.executions (p, due, uuid) WHERE due_in = 'd';
CREATE INDEX executions_delays ON db.executions (p, lane_id, due, uuid) WHERE due_in = 'y';
CREATE INDEX executions_delayed ON db.executions (p, due) WHERE due_in = 'y';
CREATE INDEX executions_retention ON db.executions (p, due, uuid) WHERE due_in = 'r';
CREATE INDEX executions_ids ON db.executions (p, namespace, uuid);
CREATE INDEX executions_of_lane ON db.executions (p, lane_id, uuid) WHERE lane_id IS NOT NULL;
CREATE INDEX executions_of_state ON db.executions (p, namespace, listed, uuid) WHERE listed IS NOT NULL;

CREATE INDEX executions_suspended ON db.executions (p, namespace, suspended, uuid) WHERE suspended IS NOT NULL;

CREATE TABLE db.steps (
  p smallint NOT NULL, uuid uuid NOT NULL, name bytea NOT NULL, number int NOT NULL, value bytea,
  PRIMARY KEY (p, uuid, name),
  FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

-- An idempotency key and the execution that it stands for.
CREATE TABLE db.keys (p smallint NOT NULL, key bytea NOT NULL, uuid uuid NOT NULL, PRIMARY KEY (p, key));

CREATE TABLE db.lanes (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  p smallint NOT NULL,
  lane bytea NOT NULL,     -- pack{namespace, lane}
  listed bytea NOT NULL,   -- pack{namespace} and the name
  revision bigint NOT NULL DEFAULT 0,
  paused bigint,
  turn bigint NOT NULL DEFAULT 0,            -- the turn of that pause, see admin.sql
  is_followed boolean NOT NULL DEFAULT true,  -- all other partitions have followed it
  answered bytea,
  UNIQUE (p, lane)
);
CREATE INDEX lanes_listed ON db.lanes (p, listed);

CREATE TABLE db.classes (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  p smallint NOT NULL,
  class bytea NOT NULL,
  lane bytea NOT NULL,
  UNIQUE (p, class)
);
CREATE INDEX classes_of_lane ON db.classes (p, lane, class);

-- Changes of the depth counters, folded into one row per counter by upkeep, so that no two calls update one row.
CREATE TABLE db.depths (
  p smallint NOT NULL, lane_id int NOT NULL, class_id int NOT NULL, state text NOT NULL, change bigint NOT NULL
);
CREATE INDEX depths_of_lane ON db.depths (p, lane_id);
CREATE INDEX depths_of_class ON db.depths (p, class_id);

-- What has to be looked at other than executions. kind: c class, f feed, k claims, l lane, q waiter, t task, w worker.
CREATE TABLE db.entries (
  p smallint NOT NULL, due_in "char" NOT NULL DEFAULT 'r', kind text NOT NULL, member bytea NOT NULL, due bigint NOT NULL,
  PRIMARY KEY (p, due_in, kind, member)
);
CREATE INDEX entries_due ON db.entries (p, due_in, due);

-- Waiters are hints, which a crash of the server may lose: each worker looks by itself after ten seconds.
CREATE UNLOGGED TABLE db.waiters (
  p smallint NOT NULL, waiter text NOT NULL,
  turn bigint GENERATED ALWAYS AS IDENTITY,
  set_name text NOT NULL,  -- 'feed', or the name of a set of classes
  until bigint NOT NULL,
  lanes bytea[] NOT NULL,
  class_ids int[] NOT NULL,
  watches boolean NOT NULL DEFAULT false,  -- it calls again at the next due moment
  counted boolean NOT NULL DEFAULT false,  -- the server tells whether its topic is heard
  PRIMARY KEY (p, waiter)
);
CREATE UNLOGGED TABLE db.woken (
  p smallint NOT NULL, waiter text NOT NULL, stands_by text NOT NULL, PRIMARY KEY (p, waiter)
);

-- The last claims (and grants) of each worker instance, to answer them again.
CREATE TABLE db.claims (
  p smallint NOT NULL, field bytea NOT NULL, claim_id bytea NOT NULL,
  turn bigint GENERATED ALWAYS AS IDENTITY,
  kept bigint NOT NULL, worker bytea NOT NULL, answer bytea[] NOT NULL,
  PRIMARY KEY (p, field, turn)
);

CREATE TABLE db.damaged (
  p smallint NOT NULL, uuid text COLLATE "C" NOT NULL, damage bytea, PRIMARY KEY (p, uuid)
);

-- Every end of an execution. Readers number committed ends, so that no two commits wait for each other.
CREATE TABLE db.feed (
  p smallint NOT NULL, seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  ms bigint, n bigint,  -- the id <ms>-<n>, once a reader has numbered the end
  ended bigint NOT NULL, uuid uuid NOT NULL, outcome bytea NOT NULL, class bytea, tags bytea
);
CREATE INDEX feed_ids ON db.feed (p, ms, n) WHERE ms IS NOT NULL;
CREATE INDEX feed_new ON db.feed (p, seq) WHERE ms IS NULL;

CREATE TABLE db.workers (p smallint NOT NULL, worker bytea NOT NULL, entry bytea, PRIMARY KEY (p, worker));
-- Why a worker died, in a partition without the registry.
CREATE TABLE db.deaths (p smallint NOT NULL, worker bytea NOT NULL, entry bytea, PRIMARY KEY (p, worker));
CREATE TABLE db.tasks (p smallint NOT NULL, task bytea NOT NULL, entry bytea, PRIMARY KEY (p, task));
CREATE TABLE db.schedules (p smallint NOT NULL, schedule bytea NOT NULL, entry bytea, PRIMARY KEY (p, schedule));
CREATE TABLE db.leaders (
  p smallint NOT NULL, schedule_group bytea NOT NULL, process bytea NOT NULL, until bigint NOT NULL, PRIMARY KEY (p, schedule_group)
);

-- The secrets that sign waitpoint tokens: pack{secret, fingerprint, until}.
CREATE TABLE db.secrets (
  p smallint NOT NULL, kid bytea NOT NULL, turn bigint GENERATED ALWAYS AS IDENTITY, secret bytea, PRIMARY KEY (p, kid)
);

-- An execution that has or had waitpoints: its lives, counted by its ends, and the number of its last signal.
CREATE TABLE db.waits (
  p smallint NOT NULL, uuid uuid NOT NULL, life int NOT NULL DEFAULT 0, last_signal int NOT NULL DEFAULT 0,
  forgotten int NOT NULL DEFAULT 0,  -- no name means a waitpoint of a life before this one
  PRIMARY KEY (p, uuid), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

-- A waitpoint is never rewritten when it closes: what closed it is written once, for all waitpoints of a suspension or of a
-- life of the execution.
CREATE TABLE db.waitpoints (
  p smallint NOT NULL, uuid uuid NOT NULL, id bytea NOT NULL, name bytea NOT NULL,
  turn bigint GENERATED ALWAYS AS IDENTITY,  -- the last waitpoint of a name is the one that the name means
  waitpoint bytea,    -- pack{name, kid, created, expires, activated, suspension, life, first buffered signal, ...}
  shown bytea,        -- '=' and the document that it shows
  decision bytea,     -- pack{signal id, name, source type, source} of an approval
  open_until bigint,  -- null once it closed; the largest number while its suspension decides
  PRIMARY KEY (p, uuid, id), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

CREATE INDEX waitpoints_named ON db.waitpoints (p, uuid, name, turn);

-- Why a suspension (s and its number) or a life (e and its number) closed.
CREATE TABLE db.closings (
  p smallint NOT NULL, uuid uuid NOT NULL, what text NOT NULL, closing bytea,
  PRIMARY KEY (p, uuid, what), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

CREATE TABLE db.signals (
  p smallint NOT NULL, uuid uuid NOT NULL, number int NOT NULL, id bytea NOT NULL, head bytea, payload bytea,
  PRIMARY KEY (p, uuid, number), UNIQUE (p, uuid, id), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

-- The idempotency keys of signals, each until its window is over.
CREATE TABLE db.signal_keys (
  p smallint NOT NULL, uuid uuid NOT NULL, waitpoint bytea NOT NULL, key bytea NOT NULL, number int NOT NULL,
  until bigint NOT NULL, PRIMARY KEY (p, uuid, waitpoint, key),
  FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

-- The last suspension and the one before it, or a draft of the next, which has a request and a position.
CREATE TABLE db.suspensions (
  p smallint NOT NULL, uuid uuid NOT NULL, number int NOT NULL,
  id bytea, at bytea, until bytea, behavior bytea, reason bytea, delay bytea, continuation bytea, condition bytea,
  counts bytea, waitpoints bytea, first bytea, closed bytea, why bytea, resumed bytea, last bytea, unmatched bytea,
  request bytea, position bytea,
  PRIMARY KEY (p, uuid, number), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

-- What leaves of a condition have counted, where each waitpoint or source counts once.
CREATE TABLE db.counted (
  p smallint NOT NULL, uuid uuid NOT NULL, number int NOT NULL, leaf int NOT NULL, what bytea NOT NULL,
  PRIMARY KEY (p, uuid, number, leaf, what),
  FOREIGN KEY (p, uuid, number) REFERENCES db.suspensions ON DELETE CASCADE
);

-- The streams of an execution's attempts: ids grow over all attempts, and an attempt's state tells its frames from others.
CREATE TABLE db.streams (
  p smallint NOT NULL, uuid uuid NOT NULL,
  last bytea, live bytea, deltas bytea,  -- the newest id, that of a live frame, and that of a summary frame
  calls bytea,                           -- the replies to the last appends of frames without numbers
  readers bytea,                         -- pack{topic, until, topic, until, ...} of the processes that wait
  live_count int NOT NULL DEFAULT 0, delta_count int NOT NULL DEFAULT 0,
  PRIMARY KEY (p, uuid), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
) WITH (fillfactor = 70);

CREATE TABLE db.stream_attempts (
  p smallint NOT NULL, uuid uuid NOT NULL, attempt bytea NOT NULL,
  state bytea,    -- see prelude_frames.sql
  summary bytea,  -- the document
  PRIMARY KEY (p, uuid, attempt), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
) WITH (fillfactor = 70);

-- The replies to numbered frames: to every durable one, and to the newest others.
CREATE TABLE db.stream_replies (
  p smallint NOT NULL, uuid uuid NOT NULL, place bytea NOT NULL, reply bytea,
  PRIMARY KEY (p, uuid, place), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);

CREATE TABLE db.frames (
  p smallint NOT NULL, uuid uuid NOT NULL, ms bigint NOT NULL, n bigint NOT NULL,
  mode text NOT NULL,  -- durable, summary or best_effort
  frame bytea, payload bytea,
  before bytea,        -- the newest frame of the mode before it, so that the oldest names the newest that was dropped
  at bytea,            -- when it was appended, if that is not the time of its id
  PRIMARY KEY (p, uuid, ms, n), FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE
);
CREATE INDEX frames_of_mode ON db.frames (p, uuid, mode, ms, n) WHERE mode <> 'durable';
