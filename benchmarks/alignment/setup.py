"""What all methods of a seed share: the market, the held-out requests and the warm start."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import Tensor

from agents.placing import device_of
from agents.warm_start import WarmStartConfig, build_model, train_critic
from benchmarks.alignment.presets import SUITE, AlignmentSettings
from benchmarks.evaluation import (
    EvaluationSet,
    ad_distribution,
    path_log_prob,
    policy_beam,
    served_metrics,
    value_metrics,
)
from benchmarks.runs.results import applicable, tidy
from benchmarks.worlds import BASE, on_market, open_world
from gpr_rl.checkpoint import below, load_checkpoint, save_checkpoint
from gpr_rl.models import HHD
from gpr_rl.policy import load_policy
from simulators.markets import train_view
from simulators.rewards import RewardMix
from simulators.world import World


def rows_frame(
    method: str,
    seed: int,
    step: int,
    split: str,
    metrics: Mapping[str, float],
    **conditions: str | int,
) -> pd.DataFrame:
    """Return tidy rows; what is not finite does not apply and has none.

    The trainer's `NAME/LEVEL` becomes NAME of a level.
    """
    by_level: dict[int, dict[str, float]] = {0: {}}
    for name, value in applicable(metrics).items():
        front, _, end = name.rpartition("/")
        level = int(end) if end.isdigit() else 0
        by_level.setdefault(level, {})[front if level else name] = value
    frames = [
        tidy(SUITE, method, seed, own, step=step, split=split, level=level, **conditions)
        for level, own in by_level.items()
    ]
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class Setup:
    """What the tasks of one seed share."""

    world: World
    reward: RewardMix
    data: EvaluationSet
    validation: EvaluationSet
    shared: Tensor
    """int64 [E, K], the list of ads that all methods rank: the warm start's beam."""
    warm: Tensor
    """float32 [E, P], the warm start's path log-probabilities, for the KL."""

    def save(self, path: Path) -> None:
        """Write everything but the world, so that methods need not score all ads again."""
        tensors = {"shared": self.shared, "warm": self.warm}
        for name in ("data", "validation"):
            parts = getattr(self, name).tensors()
            tensors.update({f"{name}.{key}": value for key, value in parts.items()})
        save_checkpoint(path, tensors, {})

    @classmethod
    def load(cls, settings: AlignmentSettings, seed: int, market: str = BASE) -> "Setup":
        """Read what `prepare_seed` saved of a run's seed, and open its world."""
        loaded = open_world(settings.world, seed, market)
        mix = RewardMix.from_specs(list(settings.reward))
        tensors, _ = load_checkpoint(checkpoint(settings.out, "evaluation", seed, market))
        data, validation = (
            EvaluationSet.from_tensors(below(start, tensors)) for start in ("data.", "validation.")
        )
        return cls(loaded, mix, data, validation, tensors["shared"], tensors["warm"])


def checkpoint(out: Path, row: str, seed: int, market: str = BASE) -> Path:
    """Return where a row's weights are kept."""
    return out / "checkpoints" / f"{on_market(row, market)}-seed{seed}.safetensors"


def validation_metrics(model: HHD, setup: Setup, list_size: int) -> dict[str, float]:
    """Return the values expected and served on validation requests, for curves."""
    data = setup.validation
    log_prob = path_log_prob(model, setup.world, data.request_id, data.eligible)
    by_ad = ad_distribution(log_prob.exp(), data)
    expected = value_metrics(data, "expected", distribution=by_ad)
    return {**expected, **served_on_validation(model, setup, list_size)}


def served_on_validation(model: HHD, setup: Setup, list_size: int) -> dict[str, float]:
    """Return what is served of a beam of `list_size` ads on validation requests."""
    data = setup.validation
    beam = policy_beam(model, setup.world, data.request_id, data.eligible, list_size)
    return served_metrics(data, beam.ad_id)


def saved_model(settings: AlignmentSettings, row: str, seed: int, market: str = BASE) -> HHD:
    """Return a row's model as it was saved, on the run's device."""
    return load_policy(checkpoint(settings.out, row, seed, market)).to(settings.device)


def starting_model(
    start: str, settings: AlignmentSettings, setup: Setup, market: str, seed: int
) -> HHD:
    """Return what RL starts from; see `Ablation.start`."""
    stages = settings.sizes.warm_start
    fresh = build_model(setup.world, stages.model, seed).to(settings.device)
    if start == "none":
        return fresh.eval()
    model = saved_model(settings, "mtp" if start == "mtp" else "vaft", seed, market)
    if start == "mtp":
        train_critic(model, train_view(setup.world), stages, seed, setup.reward)
    elif start == "fresh_critic":
        model.hte.load_state_dict(fresh.hte.state_dict())
    return model.eval()


def vsl_model(mtp: HHD, world: World, stages: WarmStartConfig, seed: int) -> HHD:
    """Return the MTP model with the head for the eCPM token that VSL needs, beside it."""
    config = replace(stages.model, num_ecpm_buckets=stages.num_ecpm_buckets)
    model = build_model(world, config, seed).to(device_of(mtp))
    model.load_state_dict({**model.state_dict(), **mtp.state_dict()})
    return model
