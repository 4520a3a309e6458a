"""Legal codes, beam search and sampling over an ad catalogue (GPR 2.3)."""

from gpr_rl.decoding.beam import WidthRule, beam_search, greedy
from gpr_rl.decoding.gumbel import gumbel_paths
from gpr_rl.decoding.policy import Policy
from gpr_rl.decoding.sample import sample_paths
from gpr_rl.decoding.serve import Closed, Overloaded, Recommender
from gpr_rl.decoding.signatures import Signatures
from gpr_rl.decoding.tree_search import TreeSearchConfig, tree_search
from gpr_rl.decoding.trie import CodeTrie, LegalTrie

__all__ = [
    "Closed",
    "CodeTrie",
    "LegalTrie",
    "Overloaded",
    "Policy",
    "Recommender",
    "Signatures",
    "TreeSearchConfig",
    "WidthRule",
    "beam_search",
    "greedy",
    "gumbel_paths",
    "sample_paths",
    "tree_search",
]
