"""Actor, critic, rollouts, objectives and the training loop (GPR 3.3)."""
