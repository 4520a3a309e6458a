"""What the advantages and losses have around their formulas, as TorchRL's modules do."""
