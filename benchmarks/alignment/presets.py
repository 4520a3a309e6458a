"""Rows and sizes of the alignment suite."""

from dataclasses import dataclass, field

from agents.registry import SearchSpace
from agents.train_config import TrainConfig
from agents.warm_start import WarmStartConfig
from benchmarks.alignment.ablations import ABLATIONS
from benchmarks.settings import Settings
from gpr_rl.models import HHDConfig
from gpr_rl.pretraining.trainer import StageConfig

SUITE = "alignment"
WARM_ROWS = ("mtp", "vaft")
MAIN_METHODS = ("dpo", "ppo", "grpo", "reinforce", "raft", "rspo", "hepo", "hepo_terminal")
QUICK_METHODS = ("dpo", "ppo", "grpo", "rspo", "hepo", "hepo_terminal")
DISTILLED = {"distilled": 1, "distilled_x10": 10}
"""The architecture's upper bounds, in units of `AlignmentPreset.distil_steps`."""
EXTRA_METHODS = ("vsl", "exp_sft", "dpo_offline", "sdpo", "grpo_mean", "ecpo", "gbpo", "vsl_rspo")
SUPERVISED = (*DISTILLED, "vsl", "exp_sft")
"""Rows without RL that are compared like methods."""
SUPERVISED_SPACES: dict[str, SearchSpace] = {"exp_sft": {"exp_temperature": (0.1, 0.3, 1, 3, 10)}}
"""What tuning may change of rows without RL: fields of `WarmStartConfig`."""
METHODS = (*WARM_ROWS, *DISTILLED, *MAIN_METHODS, *EXTRA_METHODS)
CONDITION_MARKETS = ("deep_tree", "sparse_rewards", "coarse_0", "coarse_100", "shuffled_tree")
"""Conditions under which HEPO might differ from its rivals; only `CONDITION_METHODS` run there."""
CONDITION_METHODS = ("ppo", "grpo", "hepo", "hepo_terminal")
MARKETS = ("second_price", "tight_budgets", "sparse_logs", "drift", *CONDITION_MARKETS)
"""Beside the base market; `simulators.markets` has them."""
SYNTHETIC_ONLY = (*MARKETS, "arr")
"""Other worlds have one set of dials, and know only what could be shown to logged requests."""


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """How every method's dials are chosen before the comparison."""

    num_trials: int = 0
    """Settings tried per method, its defaults first; 0: every method keeps its defaults."""
    num_steps: int = 150
    """Training steps of a trial."""
    num_seeds: int = 2
    """Worlds and warm starts that a trial is averaged over."""
    first_seed: int = 1_000
    """The tuning seeds; no test uses them."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The tuning seeds."""
        return tuple(range(self.first_seed, self.first_seed + self.num_seeds))


@dataclass(frozen=True, kw_only=True)
class AlignmentPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world."""
    num_seeds: int = 3
    num_other_seeds: int = 3
    """Seeds of extra methods, of markets beside the base and of ablations."""
    methods: tuple[str, ...] = (*WARM_ROWS, "distilled", *MAIN_METHODS)
    """Default of `--methods`."""
    extra_methods: tuple[str, ...] = EXTRA_METHODS
    """Methods with `num_other_seeds`, on the base market only."""
    markets: tuple[str, ...] = ()
    """Default of `--markets`."""
    ablations: tuple[str, ...] = ()
    """Default of `--ablate`."""
    tuning: TuningPlan = field(default_factory=TuningPlan)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    distil_steps: int = 100
    """Steps of `distilled`, each of which scores all ads of 64 requests."""
    num_test_requests: int = 600
    """Held-out requests that every row is measured on."""
    num_validation_requests: int = 300
    """Requests of the first held-out day for the curves during training, and for tuning."""
    validate_every: int = 20
    """Training steps between points of the curves."""
    list_size: int = 40
    """K of beams and shared lists (GPR 3.3)."""

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds that no test may use."""
        return self.tuning.seeds if self.tuning.num_trials else ()


AlignmentSettings = Settings[AlignmentPreset]
PRESETS = {
    "smoke": AlignmentPreset(
        world="tiny",
        num_seeds=2,
        warm_start=WarmStartConfig(
            model=HHDConfig(dim=32, num_hsd_layers=1),
            mtp=StageConfig(num_steps=30),
            vaft=StageConfig(num_steps=15, learning_rate=1e-3),
            critic=StageConfig(num_steps=10),
            num_windows=32,
        ),
        training=TrainConfig(
            num_steps=10,
            num_requests=32,
            num_candidates=8,
            critic_warmup_steps=2,
        ),
        tuning=TuningPlan(num_steps=10),
        distil_steps=10,
        num_test_requests=60,
        num_validation_requests=24,
        validate_every=5,
    ),
    "quick": AlignmentPreset(
        warm_start=WarmStartConfig(
            mtp=StageConfig(num_steps=150),
            vaft=StageConfig(num_steps=60, learning_rate=1e-3),
        ),
        methods=("vaft", "distilled", *QUICK_METHODS),
        training=TrainConfig(num_steps=80, critic_warmup_steps=0),
    ),
    "paper": AlignmentPreset(
        world="medium",
        num_seeds=10,
        methods=METHODS,
        markets=MARKETS,
        ablations=tuple(ABLATIONS),
        tuning=TuningPlan(num_trials=8),
        training=TrainConfig(num_steps=600, critic_warmup_steps=0),
        num_test_requests=2_000,
        num_validation_requests=1_000,
        validate_every=150,
    ),
}
