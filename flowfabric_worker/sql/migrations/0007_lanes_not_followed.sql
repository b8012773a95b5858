-- The few lanes whose pause other partitions have not followed yet, which each upkeep looks for.
CREATE INDEX lanes_not_followed ON db.lanes (p, lane) WHERE NOT is_followed;
