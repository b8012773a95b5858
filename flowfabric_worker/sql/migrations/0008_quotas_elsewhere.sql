-- A quota limits the executions of all partitions. Its row and what began are in its own partition, and a slot is in that of its
-- execution.
CREATE INDEX quotas_named ON db.quotas (quota);
CREATE INDEX slots_of_quota ON db.slots (quota, until, uuid);
