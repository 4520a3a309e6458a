"""What changes the result of a training run, beside its seed: every dial of every method."""

from dataclasses import dataclass

from agents.objectives.dpo import DPOConfig
from agents.objectives.hepo import HEPOConfig
from agents.objectives.raft import RAFTConfig
from agents.objectives.rspo import RSPOConfig
from agents.objectives.surrogate import check_above, check_clip, check_range
from agents.objectives.unified import UnifiedConfig
from agents.rollout import RolloutConfig

_CHOICES = {
    "popularity": ("codes", "prefix", "shuffled"),
    "terminal": ("zscore", "mean", "batch"),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(UnifiedConfig, RAFTConfig, RSPOConfig, DPOConfig, HEPOConfig, RolloutConfig):
    """One training run. Every default that the paper leaves open says so.

    What all methods share is here; what only one family reads is beside its loss.
    """

    num_steps: int = 100
    """Rollout batches, the critic's warm-up included: the budget of ranker evaluations is
    num_steps x num_requests x num_candidates for every method. Not given in the paper."""
    num_requests: int = 64
    """B, requests per step. Not given in the paper."""
    num_epochs: int = 2
    """Policy updates per step, each over the whole batch. Not given in the paper."""
    kl_stop: float | None = 2.0
    """No further update in a step once KL(behaviour || policy) of the batch is above this, nats per
    path. None: all epochs. Not given in the paper."""
    arr_share: float = 0.0
    """Share of a step's requests that rehearse users' current states (ARR, GPR 3.3); needs
    `simulators.synthetic.arr.RehearsalWorld`."""
    learning_rate: float | None = None
    """Adam's, for HSD and PTD. None: the method's own (1e-3; hepo as printed 3e-4)."""
    max_grad_norm: float = 1.0
    """The policy's gradient is scaled down to this norm. Not given in the paper."""
    clip: float = 0.2
    """epsilon of Eq. 9. Not given in the paper."""
    discount: float = 1.0
    """gamma of Eq. 8. Not given in the paper; an episode is only L steps long."""
    gae_lambda: float = 0.95
    """lambda of Eq. 8. Not given in the paper."""
    popularity: str = "codes"
    """`codes` (Eq. 6), `prefix` (among successes that match the chosen prefix) or `shuffled` (a
    control: the same numbers on the wrong codes)."""
    terminal: str = "zscore"
    """HEPO's and GRPO's advantage from R: `zscore` within the request (Eq. 8), `mean` (no division
    by the deviation) or `batch` (z-score over the whole batch)."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus per level and nat (not dpo, rspo). Not in the paper."""
    kl_penalty: float = 0.2
    """Weight of KL(policy || warm start) per level and nat, for methods whose loss has no
    reference of its own (not dpo, rspo). Not in the paper; without it policies collapse
    onto a few ads (`docs/log.md`)."""
    critic_learning_rate: float = 1e-3
    """Adam's, for the HTE. Not given in the paper."""
    critic_updates: int = 4
    """Critic updates per step. Not given in the paper."""
    critic_requests: int = 16
    """Requests per critic update, with all their candidates; the updates walk through the batch. A
    batch of fewer (`num_requests`) is taken whole, and methods without a critic read nothing of
    it. Not given in the paper."""
    critic_warmup_steps: int = 15
    """First steps that train the critic only, for methods with a critic; they count in
    num_steps. Departs from the paper, which trains the HTE before RL and is silent on this."""
    critic_replay: int = 0
    """Earlier steps whose requests the critic's updates draw from as well. Not in the paper."""
    critic_moves_trunk: bool = False
    """Let the value loss move the HSD too; the paper stops that gradient."""

    def __post_init__(self) -> None:
        for part in (RolloutConfig, HEPOConfig, DPOConfig, RSPOConfig, UnifiedConfig):
            part.__post_init__(self)
        for name in (
            "num_steps", "num_requests", "num_epochs", "critic_updates", "critic_requests",
        ):  # fmt: skip
            check_range(name, getattr(self, name), 1)
        for name in ("discount", "gae_lambda", "arr_share"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        for name in (
            "entropy_coefficient", "kl_penalty", "critic_warmup_steps",
            "critic_replay",
        ):  # fmt: skip
            check_range(name, getattr(self, name), 0)
        for name in (
            "learning_rate",
            "critic_learning_rate",
            "max_grad_norm",
            "kl_stop",
        ):
            value = getattr(self, name)
            if value is not None:
                check_above(name, value, 0.0)
        check_clip(self.clip)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
