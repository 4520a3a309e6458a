"""Semantic IDs: embeddings to code paths and back (GPR 2.1; GR4AD's UA-SID)."""

from gpr_rl.tokenizers.base import Tokenizer
from gpr_rl.tokenizers.code_index import CodeIndex, resolve_collisions
from gpr_rl.tokenizers.fitting.swing import swing_pairs
from gpr_rl.tokenizers.quality import Quality, quality
from gpr_rl.tokenizers.rq_kmeans import RQKMeans
from gpr_rl.tokenizers.rq_kmeans_plus import RQKMeansPlus
from gpr_rl.tokenizers.rq_vae import RQVAE
from gpr_rl.tokenizers.ua_sid import UASID

__all__ = [
    "RQVAE",
    "UASID",
    "CodeIndex",
    "Quality",
    "RQKMeans",
    "RQKMeansPlus",
    "Tokenizer",
    "quality",
    "resolve_collisions",
    "swing_pairs",
]
