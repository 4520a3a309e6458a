"""Rows and sizes of the architecture suite."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gpr_rl.models import HHDConfig
from gpr_rl.pretraining.trainer import StageConfig

SUITE = "architecture"
RIVALS = ("popularity", "sasrec", "hstu", "onerec", "tiger")
SCORING = ("popularity", "sasrec", "hstu")
"""Rows that score every ad. The others decode paths, each of which gives one ad."""
BASE, FULL = "base", "full"
OFF: Mapping[str, object] = {
    "hybrid_attention": False,
    "token_aware_norm": False,
    "token_aware_ffn": False,
    "num_thinking_tokens": 0,
    "num_mtp_heads": 1,
}
"""The base: gated causal attention and a plain code decoder."""
PARTS: Mapping[str, Mapping[str, object]] = {
    "hybrid_attention": {"hybrid_attention": True},
    "token_aware_ffn": {"token_aware_ffn": True},
    "token_aware_norm": {"token_aware_norm": True},
    "recursions": {"num_recursions": 3},
    "knowledge": {"knowledge_dim": 16},
    "thinking": {"num_thinking_tokens": 2},
    "refining": {"num_thinking_tokens": 2, "num_refining_steps": 4},
    "hte": {},
    "mtp": {"num_mtp_heads": 4},
}
"""One addition to the base each, as in GPR Tab. 2; refining needs thinking, so it is read against
that row. `hte` trains the evaluator beside the base and lets it guide the beam."""
GUIDED = ("hte", FULL)
"""Rows whose beam looks at the evaluator's values."""
CONTROLS = ("token_aware_ffn", "refining", "mtp", FULL)
"""Rows that add parameters to the policy, 2 % or more, and get a base that is made as large by
wider feed-forward networks. `hte` trains the same policy as the base."""
LAZY = "lazy_ar"
"""The base with three decoder layers, two of which don't read the codes; against `deep`."""
DEEP = "deep"
METHODS = (*RIVALS, BASE, *PARTS, FULL, *(f"control_{row}" for row in CONTROLS), DEEP, LAZY)
NO_TRAINING = ("popularity",)
MACHINE = "machine"
"""Not a row: the figures of the speed measurement."""


@dataclass(frozen=True, kw_only=True)
class ArchitecturePreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world."""
    num_seeds: int = 3
    methods: tuple[str, ...] = ()
    """Default of `--methods`; empty: all."""
    model: HHDConfig = field(default_factory=HHDConfig)
    """Sizes of the HHD rows; the rivals get the same width, heads and layers."""
    training: StageConfig = field(default_factory=lambda: StageConfig(num_steps=200))
    num_windows: int = 32
    """Windows per step."""
    num_positions: int = 12
    """Supervised requests per window."""
    learning_rates: tuple[float, ...] = (3e-3, 1e-3)
    """Each a whole training of every row, on a seed of its own; one value: no tuning."""
    tuning_seed: int = 1_000
    num_test_requests: int = 600
    """Held-out requests whose ad was clicked, or as many as there are."""
    num_validation_requests: int = 150
    """Of the first held-out day, for early stopping and tuning."""
    list_size: int = 100
    """HitR@100."""
    value_weight: float = 0.1
    """Of the guided rows' beam."""
    speed_batch: int = 32
    """Sequences of 128 tokens in the timed calls; a quarter of it in the decoder's."""
    speed_repeats: int = 15
    """Timed calls each; their median counts."""

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds that no test may use."""
        return (self.tuning_seed,) if len(self.learning_rates) > 1 else ()


PRESETS = {
    "smoke": ArchitecturePreset(
        world="tiny",
        num_seeds=2,
        model=HHDConfig(dim=16, num_heads=2, num_hsd_layers=1),
        training=StageConfig(num_steps=8, warmup_steps=2, validate_every=8),
        num_windows=8,
        learning_rates=(3e-3,),
        num_test_requests=30,
        num_validation_requests=20,
        list_size=20,
        speed_batch=4,
        speed_repeats=3,
    ),
    "quick": ArchitecturePreset(
        # TIGER takes two seconds a step on one core; it, controls and LazyAR are a flag away
        methods=("popularity", "sasrec", "hstu", "onerec", BASE, *PARTS, FULL),
    ),
    "paper": ArchitecturePreset(
        num_seeds=10,
        # smaller batches, more steps: of as many requests the rows that were tried learn more
        training=StageConfig(num_steps=1_000, validate_every=100),
        num_windows=16,
        num_test_requests=2_000,
        num_validation_requests=300,
    ),
}


def row_config(row: str, model: HHDConfig) -> HHDConfig:
    """Return the configuration of an HHD row of these sizes; of any other row that of the base."""
    base = replace(model, **OFF)  # type: ignore[arg-type]
    if row in (DEEP, LAZY):
        deep = replace(base, num_ptd_layers=3)
        return replace(deep, decoder="lazy_ar", num_lazy_layers=2) if row == LAZY else deep
    changes: dict[str, object] = {}
    for name in PARTS if row == FULL else (row,):
        changes |= PARTS.get(name, {})
    return replace(base, **changes)  # type: ignore[arg-type]
