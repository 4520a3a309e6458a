"""The hidden truth, for evaluation only. Training code has no way to it through a `World`.

Dims: B requests, K candidates, N ads.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simulators.rewards import Outcome
from simulators.synthetic.behavior import HiddenTruth
from simulators.synthetic.cascade import Cascade
from simulators.world import World
from simulators.world.history import DAY_S, count_kinds
from simulators.world.info import read_file


def read_truth(world: World) -> HiddenTruth:
    """Return the truth in a world's directory; ValueError for a world made from real logs."""
    if not world.info.has_truth or world.directory is None:
        raise ValueError(f"world {world.info.name!r} has no known truth")
    return HiddenTruth.from_tensors(read_file(world.directory / "truth.safetensors"))


class TruthEvaluator:
    """What would really have happened, and what the production system would have shown.

    Raises:
        ValueError: The world was made from real logs and has no known truth.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._truth = read_truth(world)
        assert world.directory is not None  # or `read_truth` had raised
        self._cascade = Cascade(**read_file(world.directory / "cascade.safetensors"))

    def outcome(self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"]) -> Outcome:
        """Return the true outcome of candidates `ad_id` (int64 [B, K]; -1 is scored as ad 0)."""
        world = self._world
        ids = request_id.numpy()
        user, time = world.request_user[ids], world.request_time[ids]
        ad_id = ad_id.clamp_min(0)
        recent = count_kinds(torch.from_numpy(world.history.counts(user, time)))[..., 4]
        scene, position, hour, _ = torch.from_numpy(world.request_context[ids]).unbind(-1)
        pctr, pcvr = self._truth.probabilities(
            torch.from_numpy(user),
            torch.from_numpy(time // DAY_S),
            hour,
            scene,
            position,
            ad_id,
            recent.gather(1, world.group[ad_id, 2]),
        )
        return world.make_outcome(request_id, ad_id, pctr, pcvr)

    def outcome_all(self, request_id: Int[Tensor, " B"]) -> Outcome:
        """Return the true outcome of every ad, [B, N]."""
        ads = torch.arange(self._world.num_ads).expand(len(request_id), -1)
        return self.outcome(request_id, ads)

    def logging_distribution(self, request_id: Int[Tensor, " B"]) -> Float[Tensor, "B N"]:
        """Return the production system's probability of every ad, float32 [B, N]."""
        world = self._world
        ids = request_id.numpy()
        user = torch.from_numpy(world.request_user[ids])
        day = torch.from_numpy(world.request_time[ids] // DAY_S)
        return self._cascade.distribution(user, day, world.eligible(request_id))
