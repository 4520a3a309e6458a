"""Training batches of a world: windows of logged behaviour and what the rankers said of them.

Dims: B windows, P supervised positions, N heads, L levels, V codes.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpr_rl.data.sequences import Windows
from gpr_rl.data.streams import IntArray
from gpr_rl.models.retrieval import NextAdBatch
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Targets, Tokens
from simulators.world.history import DAY_S
from simulators.world.world import World


class NoWindows(ValueError):
    """A world has no request that a window could end at."""


@dataclass(frozen=True)
class WindowBatches:
    """Draws the same windows for the same (seed, step), whoever asks.

    As it stands, targets and windows lie in the logged days, before every validation and test
    request. Where no request is left to end a window at, drawing raises `NoWindows`.
    """

    world: World
    seed: int
    num_windows: int = 64
    """B, windows per step."""
    num_positions: int = 6
    """P, supervised requests per window."""
    num_heads: int = 4
    """N, next ads per position."""
    first_time: int = 0
    """Windows end at requests from this time on, seconds."""
    last_time: int | IntArray | None = None
    """Windows and targets lie before this time, of all users or int64 [U] of each; None: the end of
    the logged days."""

    def __call__(self, step: int) -> tuple[Tokens, Targets]:
        """Return the windows of training step `step` with their targets."""
        windows = self.windows(step)
        return windows.tokens, self.targets(windows)

    def next_ads(self, step: int) -> NextAdBatch:
        """Return the same windows for models that know ads by number; head 1's targets."""
        windows = self.windows(step)
        valid = windows.valid[..., 0]
        request = windows.request_id[..., 0].clamp_min(0)
        ad_id = self.world.request_ad[request]
        return NextAdBatch(
            tokens=windows.tokens,
            item=torch.from_numpy(self.world.sequences.window_items(self._kept(step))),
            position=windows.position,
            ad_id=ad_id,
            codes=self.world.codes[ad_id],
            valid=valid,
        )

    def first_requests(self, windows: Windows) -> Tensor:
        """Return the first supervised request of each window, int64 [B]."""
        request, valid = windows.request_id[..., 0], windows.valid[..., 0]
        return request.gather(1, valid.to(torch.int8).argmax(1, keepdim=True))[:, 0]

    def request_ids(self, step: int) -> Tensor:
        """Return the supervised requests of a step, int64 [n], each once."""
        windows = self.windows(step)
        return windows.request_id[windows.valid].unique()

    def windows(self, step: int) -> Windows:
        """Return the windows of a step, without what is known of their targets."""
        sequences, kept = self.world.sequences, self._kept(step)
        return sequences.windows(kept, self.num_positions, self.num_heads, self._end)

    def _kept(self, step: int) -> IntArray:
        """Return the kept requests that the windows of a step end at, int64 [B]."""
        row = torch.arange(self.num_windows)
        draw = uniform(self.seed, Purpose.WINDOW, torch.tensor(step), row)
        return self._pool[(draw * len(self._pool)).long().numpy()]

    @cached_property
    def _pool(self) -> IntArray:
        pool = self.world.sequences.window_pool(self.first_time, self._end)
        if not len(pool):
            end = self._end if isinstance(self._end, int) else int(self._end.max(initial=0))
            raise NoWindows(
                f"world {self.world.info.name!r} has no request with an ad to learn or test on "
                f"days {self.first_time / DAY_S:g} to {end / DAY_S:g}"
            )
        return pool

    @property
    def _end(self) -> int | IntArray:
        if self.last_time is not None:
            return self.last_time
        return self.world.info.num_log_days * DAY_S

    def targets(self, windows: Windows) -> Targets:
        """Return what the log and the rankers say of the windows' targets."""
        position, request_id, valid = windows.position, windows.request_id, windows.valid
        world = self.world
        # a missing target repeats one that exists, so that every field stays legal
        anyone = request_id[valid][0]
        request_id = torch.where(valid, request_id, anyone)
        flat = request_id.flatten()
        codes = world.codes[world.request_ad[flat]]
        key, row = world.signature(flat).unique(return_inverse=True)
        example = torch.empty_like(key).scatter_(0, row, flat)
        legal = world.trie.restrict(world.eligible(example))
        mask = legal.select(row).path_masks(codes)
        shape = request_id.shape
        scores = {
            name: world.logged[name][request_id] for name in ("pctr", "pcvr", "ecpm", "final_value")
        }
        return Targets(
            position=position,
            codes=codes.view(*shape, -1),
            action=world.request_action[request_id],
            valid=valid,
            legal_mask=mask.view(*shape, *mask.shape[-2:]),
            **scores,
            batch_size=shape[:1],
        )
