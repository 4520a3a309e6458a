"""Configuration of the Heterogeneous Hierarchical Decoder."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class HHDConfig:
    """Sizes and switches of GPR 2.2. The paper gives no sizes except the number of MTP heads."""

    dim: int = 64
    """D, width of every embedding. Not given in the paper."""
    num_heads: int = 4
    """Attention heads; divides `dim`. Not given in the paper."""
    num_hsd_layers: int = 2
    """Blocks of the HSD. Not given in the paper."""
    num_ptd_layers: int = 1
    """Blocks of the PTD. Not given in the paper."""
    num_thinking_tokens: int = 2
    """K_t, learned queries before the start token; 0 switches thinking off. Not given."""
    num_mtp_heads: int = 4
    """N, next ads learned in parallel. GPR 3.1; head 1 is the policy."""
    num_hte_layers: int = 1
    """Blocks of the HTE. Not given in the paper."""
    ffn_multiple: int = 2
    """Hidden width of every feed-forward network, in units of `dim`. Not given."""
    num_ecpm_buckets: int = 0
    """Q, equal-frequency buckets of the eCPM token after the path (GR4AD); 0: no such token."""
    hybrid_attention: bool = True
    """Two-way attention among U/O/E tokens of the prompt block (Eq. 2); False is causal."""
    token_aware_norm: bool = True
    """One pair of block norms per token type; False shares them."""
    token_aware_ffn: bool = True
    """One feed-forward network per token type; False shares it."""

    def __post_init__(self) -> None:
        for name in ("dim", "num_heads", "num_hsd_layers", "num_ptd_layers", "num_mtp_heads"):
            _at_least(1, name, getattr(self, name))
        _at_least(1, "num_hte_layers", self.num_hte_layers)
        _at_least(1, "ffn_multiple", self.ffn_multiple)
        _at_least(0, "num_thinking_tokens", self.num_thinking_tokens)
        _at_least(0, "num_ecpm_buckets", self.num_ecpm_buckets)
        if self.num_ecpm_buckets == 1:
            raise ValueError("num_ecpm_buckets must be 0 or at least 2, got 1")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim={self.dim}, got {self.num_heads}")

    def to_json(self) -> dict[str, object]:
        """Return plain JSON types, for a checkpoint's metadata."""
        return asdict(self)


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
