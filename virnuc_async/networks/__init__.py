"""The three networks of the method, on packed tokens: load, forward, pool; nothing else."""
