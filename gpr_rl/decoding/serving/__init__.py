"""What the service of `gpr_rl.decoding.serve` is made of: queue, cache, masks, counts."""
