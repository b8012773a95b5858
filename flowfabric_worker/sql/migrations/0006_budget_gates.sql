-- What a partition knows of budgets of other partitions that its executions name: whether each is full, and the turn of this news.
CREATE TABLE db.budget_news (
  p smallint NOT NULL, budget bytea NOT NULL, turn bigint NOT NULL, is_full boolean NOT NULL, PRIMARY KEY (p, budget)
);
