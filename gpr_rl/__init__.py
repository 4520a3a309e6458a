"""The generative model and its data: semantic IDs, HHD, decoding, pre-training (GPR 2, 3)."""
