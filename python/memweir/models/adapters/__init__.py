"""What a pool has to know about a kind of model, and nothing else."""
