"""A world that answers on a device: logs and numpy stay on the CPU, scores are made there.

Dims: B requests, K candidates, N ads.
"""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpr_rl.decoding import CodeTrie
from gpr_rl.schema import Request
from simulators.rewards import Outcome

_COLUMNS = (
    "bid",
    "bid_type",
    "price",
    "ad_advertiser",
    "_category",
    "alpha",
    "_small_advertiser",
    "codes",
)
"""What an outcome is described by."""


class PlacedWorld:
    """A `World` whose requests, legal ads, outcomes and tree are on a device.

    Ids may come from anywhere. What is not named here is that of the world itself, on the CPU.
    Rankers that are no torch module are asked on the CPU, and so is a world with an outcome of its
    own (a market).
    """

    def __init__(self, world: Any, device: torch.device | str) -> None:
        """Copy trie, rankers and the ads' columns to the device; use `World.to`."""
        self.world, self.device = world, torch.device(device)
        self.trie: CodeTrie = world.trie.to(self.device)
        rankers = world.rankers
        self._is_moved = isinstance(rankers, nn.Module)
        if isinstance(rankers, nn.Module):
            rankers = copy.deepcopy(rankers).to(self.device)
        self._rankers = rankers
        for name in _COLUMNS:
            setattr(self, name, getattr(world, name).to(self.device))

    def __getattr__(self, name: str) -> Any:
        if name == "world":  # while a copy is being made there is none yet
            raise AttributeError(name)
        return getattr(self.world, name)

    def __deepcopy__(self, memo: dict) -> "PlacedWorld":
        """Return itself: a world is read-only."""
        return self

    def to(self, device: torch.device | str) -> Any:
        """Return the world on a device; this one where it is that already."""
        return self if torch.device(device) == self.device else self.world.to(device)

    def request_ids(self, split: str) -> Int[Tensor, " R"]:
        """Return `World.request_ids`, on the device."""
        return self.world.request_ids(split).to(self.device)

    def request(self, request_id: Int[Tensor, " B"]) -> Request:
        """Return `World.request`, on the device."""
        return self.world.request(request_id.cpu()).to(self.device)

    def eligible(self, request_id: Int[Tensor, " B"]) -> Bool[Tensor, "B N"]:
        """Return `World.eligible`, on the device."""
        return self.world.eligible(request_id.cpu()).to(self.device)

    def outcome(
        self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"], *, exact: bool = False
    ) -> Outcome:
        """Return `World.outcome`; the rankers are asked on the device, or `exact` on the CPU."""
        if exact or not self.world.is_plain:
            said = self.world.outcome(request_id.cpu(), ad_id.cpu(), exact=exact)
            return said.to(self.device)
        inputs, past = self.world.features(request_id.cpu())
        shown = ad_id.clamp_min(0).to(self.device)
        if self._is_moved:
            pctr, pcvr = self._rankers(inputs.to(self.device), past, shown)
        else:
            pctr, pcvr = (x.to(self.device) for x in self._rankers(inputs, past, shown.cpu()))
        return self.make_outcome(request_id.to(self.device), shown, pctr, pcvr)

    def make_outcome(
        self,
        request_id: Int[Tensor, " B"],
        ad_id: Int[Tensor, "B K"],
        pctr: Float[Tensor, "B K"],
        pcvr: Float[Tensor, "B K"],
    ) -> Outcome:
        """Return `World.make_outcome`, on the device."""
        user = torch.from_numpy(self.world.request_user[request_id.cpu().numpy()]).to(self.device)
        describe = self.world.describe.__func__  # with this world's columns, which are there
        return describe(self, request_id, user, ad_id, pctr, pcvr, self.bid[ad_id])

    def outcome_all(self, request_id: Int[Tensor, " B"]) -> Outcome:
        """Return `World.outcome_all`, on the device."""
        ads = torch.arange(self.world.num_ads, device=self.device).expand(len(request_id), -1)
        return self.outcome(request_id, ads)
