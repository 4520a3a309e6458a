"""Rows and sizes of the tokenizers suite."""

from dataclasses import dataclass

from gpr_rl.tokenizers.kinds import TOKENIZERS

SUITE = "tokenizers"
METHODS = tuple(TOKENIZERS)
MACHINE = "machine"
FIRST_TUNING_SEED = 1_000
"""No test uses it and those after it."""


@dataclass(frozen=True, kw_only=True)
class TokenizersPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world, for the items of `world`."""
    num_seeds: int = 5
    num_trials: int = 6
    """Settings tried per tokenizer and catalogue; 0: defaults."""
    num_tuning_seeds: int = 1
    """Catalogues that a trial is averaged over."""
    max_items: int = 5_000
    """Of `journey` and `file`, drawn anew for each seed."""
    text_dim: int = 64
    """Width of text embeddings (TF-IDF, truncated SVD)."""
    speed_items: int = 100_000
    """Rows of the timed fit, 64 wide, with 3 x 256 codes."""
    stream_items: int = 1_000_000
    """Rows of the Parquet file that is encoded in pieces."""

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds that no test may use."""
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds)
        return tuple(seeds) if self.num_trials else ()


PRESETS = {
    "smoke": TokenizersPreset(
        world="tiny",
        num_seeds=2,
        num_trials=0,
        max_items=600,
        text_dim=16,
        speed_items=5_000,
        stream_items=20_000,
    ),
    "quick": TokenizersPreset(),
    "paper": TokenizersPreset(
        num_seeds=10,
        num_trials=8,
        num_tuning_seeds=2,
        max_items=20_000,
        stream_items=10_000_000,
    ),
}


def row_name(method: str, catalogue: str) -> str:
    """Return the name of a row, e.g. `rq_vae@journey`."""
    return f"{method}@{catalogue}"
