"""B episodes of one request each, side by side: the rules of AdRequest.

Dims: B rows (environments), n requests prepared at a time, N ads, L levels, V codes per level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from envs.arguments import row_integers
from envs.engine import SPLIT_ROOTS, Arrays, Engine, Settings, checked_options
from envs.render import auction_text, clock
from envs.spaces import IDENTITY, request_tensors
from gpr_rl.decoding.trie import EligibleTrie
from gpr_rl.random import Purpose, uniform
from simulators.rewards import final_value
from simulators.world import World
from simulators.world.features import Features

OUTCOME_KEYS = ("pctr", "pcvr", "ecpm", "final_value")
"""What the rankers say of the ad at the end of an episode."""
_MOST_AHEAD = 32
"""Requests that a single row prepares ahead at most, in one batch."""


@dataclass(frozen=True)
class _Requests:
    """What can be known of n requests before an ad is chosen."""

    entries: dict[str, NDArray]
    """Request entries of the observation, and `request_id`, `user_id`, `timestamp`, [n, ...]."""
    legal: EligibleTrie
    features: Features | None
    """What the rankers take of them, if they are played one by one."""

    @classmethod
    def of(
        cls, world: World, request_id: NDArray[np.int64], *, singly: bool = False, times: int = 1
    ) -> "_Requests":
        """Prepare requests, each for `times` rows; `singly`: they will be played one by one."""
        ids = torch.from_numpy(request_id)
        request = world.request(ids)
        tensors = request_tensors(request)
        tensors |= {key: getattr(request, key) for key in IDENTITY}
        eligible = world.eligible(ids)
        if times > 1:
            tensors = {key: x.repeat_interleave(times, 0) for key, x in tensors.items()}
            eligible = eligible.repeat_interleave(times, 0)
        entries = {key: value.numpy() for key, value in tensors.items()}
        legal = world.trie.restrict(eligible)
        return cls(entries, legal, world.prepared(ids) if singly else None)

    def row(self, row: int) -> "_Requests":
        """Return one of the requests; nothing is copied."""
        entries = {key: value[row : row + 1] for key, value in self.entries.items()}
        return _Requests(entries, self.legal.part(row, row + 1), self.features)


class Episodes(Engine):
    """Draws requests, follows the codes chosen, and scores the ads reached.

    Each row has its own seed, its own episode count and its own level. The n-th request of a row
    is a function of its seed, n and the split.
    """

    blank = MappingProxyType({"ad_id": np.int64(-1)} | dict.fromkeys(OUTCOME_KEYS, np.float32(0)))

    def __init__(
        self, world: str | Path | World, num_rows: int, **settings: Unpack[Settings]
    ) -> None:
        """Start without requests.

        Raises:
            ValueError: A wrong argument, or a split without requests.
        """
        super().__init__(world, num_rows, **settings)
        self.request_ids = self.world.request_ids(self.split).numpy()
        if len(self.request_ids) == 0:
            raise ValueError(
                f"split {self.split!r} of this world has no request with an eligible ad"
            )
        self._ended = np.zeros(num_rows, dtype=np.bool_)
        self._requests: _Requests | None = None
        self._ahead: list[_Requests] = []
        self._num_ahead = 0

    def seed(self, seed: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> None:
        """Start the streams of `rows` (None: all) anew, and drop what was prepared."""
        super().seed(seed, rows)
        self._ahead, self._num_ahead = [], 0

    def draw(self, ahead: int = 1) -> NDArray[np.int64]:
        """Return every row's next `ahead` requests, int64 [B, ahead]."""
        episode = torch.from_numpy(self._episode)[:, None] + torch.arange(ahead)
        seed = torch.from_numpy(self._seed)[:, None]
        u = uniform(SPLIT_ROOTS[self.split], Purpose.ENVIRONMENT_REQUEST, seed, episode).numpy()
        return self.request_ids[(u * len(self.request_ids)).astype(np.int64)]

    def reset(
        self, rows: NDArray[np.bool_] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Begin the next episode of `rows` (None: all; the first time always all).

        The option `request_id`, an integer or [B], plays these requests instead of drawn ones. An
        episode counts either way.

        Raises:
            ValueError: Another option, an unknown request, or one without an eligible ad; a part
                of a group.
        """
        rows = self.whole_groups(rows)
        if rows is not None and (self._requests is None or rows.all()):
            rows = None
        chosen = slice(None) if rows is None else rows
        options = checked_options(options, "request_id")
        if "request_id" in options:
            ids = self._check_request_ids(options["request_id"], chosen)
            ids = self.of_group("request_id", ids)
            requests = _Requests.of(self.world, ids, times=self.candidates)
            self._ahead = self._ahead[1:]
        elif self.num_rows == 1:
            requests = self._next()
        else:
            ids = self.draw()[chosen, 0][:: self.candidates]
            requests = _Requests.of(self.world, ids, times=self.candidates)
        self._choices.open(requests.legal, rows)
        if rows is None:
            self._requests = requests
            self._identity = {key: requests.entries[key] for key in IDENTITY}
        else:
            assert self._requests is not None
            for key, values in requests.entries.items():
                self._requests.entries[key][rows] = values
        self._episode[chosen] += 1
        for flags in (self.terminated, self.reported, self._illegal, self._ended):
            flags[chosen] = False
        self._blank_report(chosen)

    def _next(self) -> _Requests:
        """Return a single row's next request; some are prepared at once: 1, 2, 4, ..."""
        if not self._ahead:
            self._num_ahead = min(max(2 * self._num_ahead, 1), _MOST_AHEAD)
            ids = self.draw(self._num_ahead)[0]
            block = _Requests.of(self.world, ids, singly=True)
            self._ahead = [block.row(row) for row in range(self._num_ahead)]
        first, *self._ahead = self._ahead
        return first

    def _check_request_ids(self, request_id: Any, rows: Any) -> NDArray[np.int64]:
        """Return the ids of `rows` as int64, naming the first that can't be played."""
        ids = row_integers("request_id", request_id, self.num_rows)[rows]
        number = self.world.num_requests
        unknown = (ids < 0) | (ids >= number)
        if unknown.any():
            raise ValueError(f"request_id must lie in [0, {number}), got {int(ids[unknown][0])}")
        without = ~self.world.eligible(torch.from_numpy(ids)).any(-1).numpy()
        if without.any():
            raise ValueError(f"request {int(ids[without][0])} has no eligible ad")
        return ids

    def step(
        self, action: NDArray[np.int64], rows: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Choose the next code; see `Engine`. A row that awaits no choice stays as it is."""
        finished, illegal = self._choices.step(
            action, rows, strict=self.strict, request_id=self._identity["request_id"]
        )
        self.reported = finished | illegal
        self._ended |= self.reported
        self.terminated = self.by_row(np.all(self._ended.reshape(-1, self.candidates), axis=1))
        self._illegal |= illegal
        reward = np.where(illegal, np.float32(self.illegal_reward), np.float32(0))
        if finished.any():
            self._score(np.flatnonzero(finished), reward)
        return reward

    def _score(self, index: NDArray[np.int64], reward: NDArray[np.float32]) -> None:
        """Ask the rankers about the ads of rows `index`, once; write what they say."""
        assert self._requests is not None
        outcome = self.world.outcome(
            torch.from_numpy(self._identity["request_id"][index]),
            torch.from_numpy(self._choices.ad_id[index, None]),
            exact=True,
            features=self._requests.features,
        )
        total, components = self.reward(outcome)
        reward[index] = total.detach().numpy()[:, 0]
        said = {key: getattr(outcome, key) for key in ("ad_id", *OUTCOME_KEYS[:-1])}
        known = self.reward.functions.get("final_value") is final_value
        said["final_value"] = components["final_value"] if known else final_value(outcome)
        self._write_report(index, said, components)

    def shown(self) -> dict[str, NDArray]:
        """Return the request tensors."""
        assert self._requests is not None
        entries = self._requests.entries
        return {key: entries[key] for key in entries if key not in IDENTITY}

    def info(self) -> Arrays:
        """Return `request_id`, `user_id`, `timestamp` and `illegal`."""
        return self._identity | {"illegal": self._illegal}

    def eligible(self) -> NDArray[np.bool_]:
        """Return bool [B, N], the ads that each row's user may see now."""
        return self.world.eligible(torch.from_numpy(self._identity["request_id"])).numpy()

    def view(self, row: int) -> str:
        """Return the ad that a row chose: one candidate, one slot, first price."""
        request_id, user_id, time = (int(self._identity[key][row]) for key in IDENTITY)
        title = f"request {request_id} of user {user_id}, {clock(time)}"
        codes = self._choices.prefix[row, : self._choices.level[row]].tolist()
        ad_id = int(self._choices.ad_id[row])
        if ad_id < 0:
            illegal = ", the last one illegal" if self._illegal[row] else ""
            return auction_text(title, None, f"codes {codes}{illegal}")
        bid = self.world.bid[ad_id].item()
        said = {name: [float(self._report[name][row])] for name in OUTCOME_KEYS[:3]}
        terms = {"bid_type": [int(self.world.bid_type[ad_id])], "bid": [bid], "price": [bid]}
        ad = pd.DataFrame({"ad_id": [ad_id], **said, **terms, "slot": [0], "note": ["chosen"]})
        return auction_text(title, ad, f"codes {codes}")
