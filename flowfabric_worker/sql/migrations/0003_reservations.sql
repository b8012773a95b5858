-- Reservations, executions that wait for a budget, and what one partition owes to another.

-- The place of an execution that waits for the budget; null if it does not wait.
ALTER TABLE db.budget_shares ADD COLUMN waits bigint;
CREATE INDEX budget_shares_waiting ON db.budget_shares (p, budget, waits, uuid) WHERE waits IS NOT NULL;

-- What this partition owes to budgets or executions of others: pack{what, budget, uuid, partition}.
CREATE TABLE db.owed (
  p smallint NOT NULL, turn bigint GENERATED ALWAYS AS IDENTITY, debt bytea NOT NULL, PRIMARY KEY (p, debt)
);
CREATE INDEX owed_turns ON db.owed (p, turn);
