-- Budgets: what executions may spend, and what budgets know of single executions.

-- pack{budget, ...}: the budgets that have a share of an execution.
ALTER TABLE db.executions ADD COLUMN budgets bytea;

CREATE TABLE db.budgets (
  p smallint NOT NULL, budget bytea NOT NULL,
  entry bytea,  -- see prelude_budgets.sql
  PRIMARY KEY (p, budget)
) WITH (fillfactor = 50);

-- The answers to the last calls of a budget: of callers' keys (k and the key), and of other calls (c and their ids).
CREATE TABLE db.budget_reports (
  p smallint NOT NULL, budget bytea NOT NULL, key bytea NOT NULL, until bigint NOT NULL,
  answer bytea NOT NULL,  -- pack{call id, the parts of the answer}
  PRIMARY KEY (p, budget, key), FOREIGN KEY (p, budget) REFERENCES db.budgets ON DELETE CASCADE
);
CREATE INDEX budget_reports_until ON db.budget_reports (p, budget, until);

-- What a budget knows of single executions, which may be in other partitions.
CREATE TABLE db.budget_shares (
  p smallint NOT NULL, budget bytea NOT NULL, uuid uuid NOT NULL,
  share bytea,  -- pack{recorded, reserved}, see prelude_shares.sql
  PRIMARY KEY (p, budget, uuid), FOREIGN KEY (p, budget) REFERENCES db.budgets ON DELETE CASCADE
);
