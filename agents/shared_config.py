"""What every training run can be told, whatever its method."""

from dataclasses import dataclass, field

from agents.candidates import check_above, check_choice, check_range
from agents.rollout import RolloutConfig
from gpr_rl.pretraining.auxiliary import AuxiliaryConfig

BASELINES = ("none", "ad")


@dataclass(frozen=True, kw_only=True)
class SharedConfig(RolloutConfig):
    """The dials of all methods; a method's own are in a subclass beside its loss."""

    num_steps: int = 100
    """Rollout batches, the critic's warm-up included: the budget of ranker evaluations is
    num_steps x num_requests x num_candidates for every method. Not given in the paper."""
    num_requests: int = 64
    """B, requests per step. Not given in the paper."""
    num_shards: int | None = None
    """S, equal parts that a step's requests are computed in (`agents.training.shards`). With a
    number the bits are the same for 1 to S processes; None: a part for each process. 1 is one whole
    batch."""
    max_staleness: int = 0
    """Updates that a candidate's policy may be behind; older ones end the run. The trainer draws
    its own, which are never behind; offline methods may be as old as the run."""
    num_epochs: int = 2
    """Policy updates per step, each over the whole batch. Not given in the paper."""
    kl_stop: float | None = 2.0
    """No further update in a step once KL(behaviour || policy) of the batch is above this, nats per
    path. None: all epochs. Not given in the paper."""
    baseline: str = "none"
    """Subtracted from a candidate's terminal reward: `none`, or `ad`, the running mean of what its
    ad earned before (decay .99 a step). What is left is who an ad is shown to."""
    arr_share: float = 0.0
    """Share of a step's requests that rehearse users' current states (ARR, GPR 3.3); needs
    `simulators.synthetic.arr.RehearsalWorld`."""
    learning_rate: float | None = None
    """Adam's, for HSD and PTD. None: the method's own (1e-3; hepo as printed 3e-4)."""
    max_grad_norm: float = 1.0
    """The policy's gradient is scaled down to this norm. Not given in the paper."""
    kl_penalty: float = 0.2
    """Weight of KL(policy || warm start) per level and nat, for methods whose loss has no
    reference of its own (not dpo, rspo). Not in the paper; without it policies collapse
    onto a few ads (`docs/log.md`)."""
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    """Weights of what parts of the model learn beside the policy's loss, on one of each request's
    candidates; nothing where the model has no such part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_steps", "num_requests", "num_epochs"):
            check_range(name, getattr(self, name), 1)
        if self.num_shards is not None:
            check_range("num_shards", self.num_shards, 1)
            if self.num_requests % self.num_shards:
                raise ValueError(
                    f"num_requests must be a multiple of num_shards, {self.num_shards}, "
                    f"got {self.num_requests}"
                )
        check_range("max_staleness", self.max_staleness, 0)
        check_choice("baseline", self.baseline, BASELINES)
        check_range("arr_share", self.arr_share, 0.0, 1.0)
        check_range("kl_penalty", self.kl_penalty, 0)
        for name in ("learning_rate", "max_grad_norm", "kl_stop"):
            value = getattr(self, name)
            if value is not None:
                check_above(name, value)
