"""Target policies and outcomes of the off-policy suite, in full: every request, every ad.

With the probabilities and the outcomes of all ads at hand, the truth of a policy is a sum and a
log is a few look-ups, so many logs can be drawn from one evaluation of the world.

Dims: P requests, N ads, R replications (logs), n rows, S positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.off_policy.plackett_luce import draw_slates
from benchmarks.evaluation import (
    EvaluationSet,
    ad_distribution,
    make_evaluation_set,
    path_log_prob,
    popularity_distribution,
)
from benchmarks.off_policy.presets import OffPolicyPreset
from gpr_rl.models import HHD
from gpr_rl.random import Purpose, uniform
from simulators.rewards import RewardMix
from simulators.rewards.outcome import ecpm
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World

REWARDS = ("revenue", "clicks")
"""What is estimated, per impression: the charge in eCPM units, and the clicks."""


@dataclass(frozen=True)
class Tables:
    """P requests in full; all tables are float64 [P, N]."""

    request_id: Tensor  # int64 [P]
    logging: Tensor
    """Probability of the policy that writes the logs."""
    targets: dict[str, Tensor]
    """Probabilities of the policies to be judged."""
    pctr: Tensor
    """True click probability."""
    pcvr: Tensor
    truth: dict[str, Tensor]
    """Expected rewards under the truth, by name."""
    predicted: dict[str, Tensor]
    """Expected rewards under the frozen rankers: the reward model of DM and DR."""
    bid: Tensor  # [N]
    bid_type: Tensor  # int64 [N]


def make_tables(
    world: World, reward: RewardMix, model: HHD, sizes: OffPolicyPreset, num_requests: int
) -> Tables:
    """Score all ads of a fixed choice of test requests and build the target policies."""
    data = make_evaluation_set(world, reward, num_requests)
    evaluator = TruthEvaluator(world)
    parts = []
    for ids in data.request_id.split(64):
        true, ranked = evaluator.outcome_all(ids), world.outcome_all(ids)
        parts.append((true.pctr, true.pcvr, true.ecpm, ranked.pctr, ranked.ecpm))
    tables = (torch.cat(columns).double() for columns in zip(*parts, strict=True))
    pctr, pcvr, revenue, ranked_clicks, ranked_revenue = tables
    return Tables(
        request_id=data.request_id,
        logging=_normalised(data.logging),
        targets={k: _normalised(v) for k, v in _targets(world, data, model, sizes).items()},
        pctr=pctr,
        pcvr=pcvr,
        truth={"revenue": revenue, "clicks": pctr},
        predicted={"revenue": ranked_revenue, "clicks": ranked_clicks},
        bid=world.bid.double(),
        bid_type=world.bid_type,
    )


def _normalised(probability: Tensor) -> Tensor:
    probability = probability.double()
    return probability / probability.sum(-1, keepdim=True)


def _targets(
    world: World, data: EvaluationSet, model: HHD, sizes: OffPolicyPreset
) -> dict[str, Tensor]:
    """Return the probabilities of every target policy by name, [P, N]."""
    legal = data.eligible.double()
    uniform_draw = legal / legal.sum(-1, keepdim=True)
    value = data.value.double().masked_fill(~data.eligible, -torch.inf)
    unit = data.value.double()[data.eligible].std()
    favourite = torch.nn.functional.one_hot(value.argmax(-1), value.shape[1]).double()
    targets = {"uniform": uniform_draw, "popularity": popularity_distribution(world, data)}
    targets["logging"] = data.logging
    for temperature in sizes.temperatures:
        targets[f"softmax {temperature:g}"] = torch.softmax(value / (unit * temperature), dim=-1)
    targets["greedy"] = (1 - sizes.epsilon) * favourite + sizes.epsilon * uniform_draw
    log_prob = path_log_prob(model, world, data.request_id, data.eligible)
    targets["hhd"] = ad_distribution(log_prob.exp(), data)
    return targets


@dataclass(frozen=True)
class Logs:
    """R logs of n rows; a row is a request, S ads drawn one below the other, and what happened."""

    row: Tensor  # int64 [R, n], index of the request in the tables
    ad_id: Tensor  # int64 [R, n, S]
    click: Tensor  # bool [R, n, S], what would happen if the user got there
    conversion: Tensor  # bool [R, n, S]
    noise: Tensor  # float64 [R, n, S], decides whether the user goes on

    def take(self, table: Tensor) -> Tensor:
        """Return table [P, N] at the logged ads, [R, n, S]."""
        return table.flatten()[self.row[..., None] * table.shape[1] + self.ad_id]

    def reward(self, tables: Tables, name: str) -> Tensor:
        """Return the realised reward `name` of every ad, float64 [R, n, S]."""
        click, conversion = self.click.double(), self.conversion.double()
        if name == "clicks":
            return click
        return ecpm(click, conversion, tables.bid[self.ad_id], tables.bid_type[self.ad_id])


def draw_logs(
    tables: Tables,
    logging: Tensor,
    sizes: OffPolicyPreset,
    *,
    seed: int,
    num_positions: int,
) -> Logs:
    """Draw R logs of n rows from a policy, float64 [P, N]; keyed by (seed, replication, row).

    Requests are drawn with replacement, ads from the policy, clicks and conversions from the truth.
    """
    replication = torch.arange(sizes.num_replications)[:, None]
    number = torch.arange(max(sizes.log_sizes))
    position = torch.arange(num_positions)
    keys = replication[..., None], number[:, None], position
    row = (uniform(seed, Purpose.LOGGED_REQUEST, replication, number) * len(logging)).long()
    noise = uniform(seed, Purpose.LOGGED_AD, *keys)
    ads = draw_slates(logging, row.flatten(), noise.flatten(0, 1)).view(noise.shape)
    logs = Logs(row, ads, ads.bool(), ads.bool(), noise)
    click = uniform(seed, Purpose.LOGGED_CLICK, *keys) < logs.take(tables.pctr)
    converted = uniform(seed, Purpose.LOGGED_CONVERSION, *keys) < logs.take(tables.pcvr)
    stay = uniform(seed, Purpose.LOGGED_EXAMINATION, *keys)
    return Logs(row, ads, click, click & converted, stay)
