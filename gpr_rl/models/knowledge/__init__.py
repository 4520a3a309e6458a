"""External knowledge of the HSD (GPR 2.2): a provider's thought per user, as text, embedded.

Imports `gpr_rl.schema` and scikit-learn; no model.
Start with `providers.KnowledgeProvider`.
"""

from gpr_rl.models.knowledge.providers import (
    Click,
    HistoryThoughts,
    InformedPolicy,
    KnowledgeProvider,
    KnowledgeSlot,
    PreparedThoughts,
    TextEmbedder,
    embed_thoughts,
)
from gpr_rl.models.knowledge.text_embedding import SentenceEmbedder, TfidfEmbedder

__all__ = [
    "Click",
    "HistoryThoughts",
    "InformedPolicy",
    "KnowledgeProvider",
    "KnowledgeSlot",
    "PreparedThoughts",
    "SentenceEmbedder",
    "TextEmbedder",
    "TfidfEmbedder",
    "embed_thoughts",
]
