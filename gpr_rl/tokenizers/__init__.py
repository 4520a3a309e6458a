"""Semantic IDs: embeddings to code paths and back (GPR 2.1)."""

from gpr_rl.tokenizers.quality import Quality, quality
from gpr_rl.tokenizers.rq_kmeans import RQKMeans

__all__ = ["Quality", "RQKMeans", "quality"]
