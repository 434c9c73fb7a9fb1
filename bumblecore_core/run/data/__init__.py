"""Data: files to rows, rows to token shards, shards to a batch plan, the plan to micro-batches."""
