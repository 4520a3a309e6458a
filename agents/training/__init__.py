"""One training run: its steps, its state, its shards, its command line."""
