"""Configuration of the Heterogeneous Hierarchical Decoder."""

from dataclasses import dataclass
from typing import Literal

from gpr_rl.checks import check_finite, check_whole


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
    ffn_multiple: int | float = 2
    """Hidden width of every feed-forward network, in units of `dim`, at least 1. Not given."""
    num_ecpm_buckets: int = 0
    """Q, equal-frequency buckets of the eCPM token after the path (GR4AD); 0: no such token."""
    hybrid_attention: bool = True
    """Two-way attention among U/O/E tokens of the prompt block (Eq. 2); False is causal."""
    token_aware_norm: bool = True
    """One pair of block norms per token type; False shares them."""
    token_aware_ffn: bool = True
    """One feed-forward network per token type; False shares it."""
    num_recursions: int = 0
    """R, how often the HSD's shared blocks may be applied to a token (Mixture-of-Recursions, GPR
    2.2); 0 applies every block once. Not given in the paper."""
    attention_bias: Literal["distance", "rotary", "none"] = "distance"
    """How the HSD knows positions: a learned bias per bucket of distance; rotary queries and keys;
    or not at all. Without a learned bias attention takes memory linear in T."""
    relative_time: bool = False
    """A learned bias per head and log2 bucket of the time between query and key (as in HSTU)."""
    attention_chunk: int = 0
    """Queries that meet their keys at a time, for long histories with a learned bias: same
    numbers, less memory, scores computed twice in training; 0: all at once."""
    decoder: Literal["plain", "lazy_ar"] = "plain"
    """The PTD's layers: all autoregressive, or GR4AD's LazyAR."""
    num_lazy_layers: int = 1
    """K_d, how many of the `num_ptd_layers` (L_d) do not read the codes, under `lazy_ar`."""
    num_refining_steps: int = 0
    """Steps of the deterministic reverse process that makes the refining token (GPR 2.2); 0: no
    such token. Not given in the paper."""
    num_noise_steps: int = 50
    """T_d, noise levels that the denoiser learns. Not given in the paper."""
    num_denoiser_layers: int = 1
    """Transformer layers of the denoiser. Not given in the paper."""
    knowledge_dim: int = 0
    """Width of the vectors of external knowledge (GPR 2.2); 0: none. Not given in the paper."""

    def __post_init__(self) -> None:
        optional = ["num_thinking_tokens", "num_ecpm_buckets", "num_recursions"]
        optional += ["attention_chunk", "num_refining_steps", "knowledge_dim"]
        sizes = ["dim", "num_heads", "num_hsd_layers", "num_ptd_layers", "num_mtp_heads"]
        sizes += ["num_hte_layers", "num_noise_steps"]
        for least, names in ((0, optional), (1, sizes)):
            check_whole(least, **{name: getattr(self, name) for name in names})
        check_finite(1, ffn_multiple=self.ffn_multiple)
        if self.num_ecpm_buckets == 1:
            raise ValueError("num_ecpm_buckets must be 0 or at least 2, got 1")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim={self.dim}, got {self.num_heads}")
        if self.attention_bias not in ("distance", "rotary", "none"):
            raise ValueError(
                f"attention_bias must be distance, rotary or none, got {self.attention_bias!r}"
            )
        if self.attention_bias == "rotary" and self.dim // self.num_heads % 2:
            raise ValueError(
                f"rotary positions need an even head width, got {self.dim} / {self.num_heads}"
            )
        self._check_decoder()

    def _check_decoder(self) -> None:
        if self.decoder not in ("plain", "lazy_ar"):
            raise ValueError(f"decoder must be plain or lazy_ar, got {self.decoder!r}")
        if self.decoder == "lazy_ar" and not 0 <= self.num_lazy_layers < self.num_ptd_layers:
            raise ValueError(
                "num_lazy_layers must lie in [0, num_ptd_layers), at least one layer reads the "
                f"codes, got {self.num_lazy_layers} of {self.num_ptd_layers}"
            )
        if not self.num_refining_steps:
            return
        check_whole(1, num_denoiser_layers=self.num_denoiser_layers)
        if self.num_thinking_tokens < 1:
            raise ValueError("refining needs num_thinking_tokens of at least 1, got 0")
        if self.num_noise_steps < self.num_refining_steps:
            raise ValueError(
                f"num_noise_steps must be at least num_refining_steps = {self.num_refining_steps}, "
                f"got {self.num_noise_steps}"
            )

    @property
    def ffn_dim(self) -> int:
        """Hidden width of every feed-forward network."""
        return round(self.ffn_multiple * self.dim)
