"""From the steps of a collector to the candidates of requests, and back.

Dims: R rows of an environment, K candidates of a request (neighbouring rows), T steps, B requests,
L levels, V codes per level.
"""

import warnings
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import Transform

from agents.candidates import check_above, check_range, keep_valid, path_transitions
from envs.spaces import IDENTITY, TOKEN_KEYS, request_from_observation, request_tensors
from gpr_rl.schema import Request

_REQUEST_KEYS = (*TOKEN_KEYS, "popularity", *IDENTITY)
_OPTIONAL_KEYS = ("state_value", "policy_version")
_NEXT_KEYS = ("ad_id", "illegal", "components")


class GroupCandidates(Transform):
    """[R, T] steps -> the TensorDict of K candidates for each of B requests, as a `postproc`.

    The rows are those of `AdRequestTorchEnv` or `AdDayTorchEnv` with `candidates=K`, as a collector
    returns them with the policy of `make_code_actor`. The result has the keys of a rollout
    (`agents.rollout`) that advantages and losses read:

    ================  ===============  ============================================================
    key               shape            meaning
    ================  ===============  ============================================================
    request           batch [B]        who asks
    popularity        [B, L, V]        P_l(t) of Eq. 6
    codes, ad_id      [B, K, L], [B, K]  the paths and their ads; 0 and -1 where not valid
    valid             [B, K]           False where an illegal code ended the path
    legal_mask        [B, K, L, V]     all True where not valid
    action_log_prob   [B, K, L]        of the policy that drew the codes
    state_value       [B, K, L, 1]     if a critic wrote it
    reward            [B, K]           see `reward_key`
    terminal_reward   [B, K]           reward / reward_scale
    component         nested [B, K]    the reward's components by name
    next              [B, K, L, 1]     reward (scaled), done, terminated: a path as an episode
    policy_version    [B]              the oldest among the steps', if the collector tracks it
    ================  ===============  ============================================================

    Requests are in the order of their rows, then of time. One that a batch ends in the middle of
    waits for the next batch of the same environment (`reset` forgets it). One that is never
    finished, because the environment was reset, is dropped with a warning. An infinite or missing
    number is passed on; the trainer and the losses check.
    """

    def __init__(
        self,
        num_candidates: int,
        *,
        reward_key: NestedKey = ("next", "reward"),
        reward_scale: float = 1.0,
    ) -> None:
        """Set K, which step entry holds a path's reward, and what that is divided by.

        In days, ("next", "ranker_reward") is alike for the ad that is played and the others.
        """
        super().__init__()
        check_range("num_candidates", num_candidates, 1)
        check_above("reward_scale", reward_scale)
        self.num_candidates = num_candidates
        self.reward_key = reward_key
        self.reward_scale = reward_scale
        self.reset()

    def reset(self, *_: Any, **__: Any) -> None:
        """Forget the requests that the last batch ended in the middle of."""
        self._tail: tuple[TensorDictBase, Tensor] | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return the requests that are complete, batch [B].

        Args:
            tensordict: Batch [R, T] (leading dimensions are flattened), or [R * L] with all steps
                of a path side by side.

        Raises:
            ValueError: R is no multiple of K, the rows of a group are not at the same request, or
                a batch does not go on where the one before stopped.
            KeyError: An entry is missing.
        """
        rows, live = self._with_tail(self._rows(tensordict))
        size = self.num_candidates
        first = (rows["level"] == 0) & live
        starts = first.reshape(-1, size, first.shape[1])
        differs = (starts != starts[:, :1]).flatten(0, 1)
        if differs.any():
            row, step = differs.nonzero()[0]
            raise ValueError(
                f"row {int(row)} is not at the same request as the others of its {size} at step "
                f"{int(step)}: was the environment made with candidates={size}?"
            )
        headless = (rows["level"][:, 0] % rows["prefix"].shape[-1] > 0) & live[:, 0]
        if headless.any():
            self._warn(
                int(headless.reshape(-1, size).any(1).sum()), "their first steps are missing"
            )
        return self._fold(rows, *starts[:, 0].nonzero().unbind(1))

    def _rows(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the steps that are read, batch [R, T]."""
        wanted = (*_REQUEST_KEYS, "prefix", "level", "action", "action_log_prob", "action_mask")
        missing = [key for key in wanted if key not in tensordict]
        if missing:
            raise KeyError(
                f"the steps lack {missing}: are they of an environment of `envs`, with the policy "
                "of `make_code_actor`?"
            )
        found = tensordict.select(*wanted, *_OPTIONAL_KEYS, strict=False)
        following = [("next", key) for key in _NEXT_KEYS]
        found.update(tensordict.select(*following, self.reward_key, strict=False))
        found["_reward"] = tensordict.get(self.reward_key)
        levels = tensordict["prefix"].shape[-1]
        if found.ndim == 1:
            if len(found) % levels:
                raise ValueError(
                    f"a flat batch must have a multiple of {levels} steps, got {len(found)}"
                )
            found = found.reshape(-1, levels)
        found = found.flatten(0, found.ndim - 2)
        if len(found) % self.num_candidates:
            raise ValueError(
                f"rows must be a multiple of num_candidates, {self.num_candidates}, "
                f"got {len(found)}"
            )
        return found

    def _with_tail(self, rows: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        """Return the steps after those kept from the last batch, and which of them count."""
        live = torch.ones(rows.shape, dtype=torch.bool, device=rows["level"].device)
        if self._tail is None:
            return rows, live
        tail, waiting = self._tail
        if len(tail) != len(rows):
            raise ValueError(f"the batch before had {len(tail)} rows, this one has {len(rows)}")
        goes_on = tail["request_id"][:, -1] == rows["request_id"][:, 0]
        broken = waiting[:, -1] & ~goes_on & (rows["level"][:, 0] > 0)
        if broken.any():
            raise ValueError(
                f"row {int(broken.nonzero()[0])} is in the middle of another request than where "
                "the batch before stopped: batches must be of one environment, in order"
            )
        return torch.cat([tail, rows], dim=1), torch.cat([waiting, live], dim=1)

    def _fold(self, rows: TensorDictBase, group: Tensor, column: Tensor) -> TensorDict:
        """Return the complete requests among those that begin at (group, column), [S] each."""
        size, steps = self.num_candidates, rows.shape[1]
        levels = rows["popularity"].shape[-2]
        length = _lengths(group, column, steps)
        row = group[:, None] * size + torch.arange(size, device=group.device)
        place = torch.arange(levels, device=group.device)
        inside = place < length[:, None]
        step = (column[:, None] + place).clamp_max(steps - 1)
        at = row[:, :, None], step[:, None, :]  # [S, K, L]

        ad_id = rows["next", "ad_id"][at].masked_fill(~inside[:, None], -1)
        illegal = rows["next", "illegal"][at] & inside[:, None]
        ended = ((ad_id >= 0) | illegal).any(-1)
        complete = ended.all(1)
        self._keep(rows, group, column, length, complete)
        row, step = row[complete], step[complete]
        at = row[:, :, None], step[:, None, :]
        ad_id, valid = ad_id[complete][:, :, -1], (ad_id >= 0)[complete][:, :, -1]

        at_start = rows["request_id"][row, step[:, :1]]
        differs = (at_start != at_start[:, :1]).any(1)
        if differs.any():
            found = at_start[differs][0].tolist()
            raise ValueError(
                f"rows do not share their request by {size}, they are at {found}: was the "
                f"environment made with candidates={size}?"
            )
        asked = {key: rows[key][row[:, 0], step[:, 0]] for key in _REQUEST_KEYS}
        request = request_from_observation(asked)
        reward = keep_valid(_squeezed(rows["_reward"][at])[:, :, -1], valid)
        scaled = reward / self.reward_scale
        data = TensorDict(
            {
                "request": request,
                "popularity": request.popularity,
                "codes": rows["action"][at].masked_fill(~valid[..., None], 0),
                "ad_id": ad_id.masked_fill(~valid, -1),
                "valid": valid,
                "legal_mask": rows["action_mask"][at].bool() | ~valid[..., None, None],
                "action_log_prob": keep_valid(rows["action_log_prob"][at], valid),
                "reward": reward,
                "terminal_reward": scaled,
                "next": path_transitions(scaled, levels),
            },
            batch_size=[len(row)],
        )
        if "state_value" in rows:
            data["state_value"] = keep_valid(rows["state_value"][at], valid)
        if "policy_version" in rows:
            data["policy_version"] = _squeezed(rows["policy_version"][at]).amin((1, 2))
        if ("next", "components") in rows.keys(True):
            data["component"] = TensorDict(
                {
                    name: keep_valid(value[at][:, :, -1], valid)
                    for name, value in rows["next", "components"].items()
                },
                batch_size=[len(row)],
            )
        return data

    def _keep(
        self,
        rows: TensorDictBase,
        group: Tensor,
        column: Tensor,
        length: Tensor,
        complete: Tensor,
    ) -> None:
        """Keep the steps of requests that the batch ends in; warn of those that are lost."""
        steps = rows.shape[1]
        open_ended = ~complete & (column + length == steps)
        lost = int((~complete & ~open_ended).sum())
        if lost:
            self._warn(lost, "a reset cut them")
        self._tail = None
        if not open_ended.any():
            return
        since = int(column[open_ended].min())
        begin = torch.full((len(rows) // self.num_candidates,), steps, device=column.device)
        begin[group[open_ended]] = column[open_ended]
        begin = begin.repeat_interleave(self.num_candidates)
        waiting = torch.arange(since, steps, device=column.device) >= begin[:, None]
        self._tail = rows[:, since:].clone(), waiting

    @staticmethod
    def _warn(number: int, why: str) -> None:
        warnings.warn(f"{number} unfinished requests were dropped: {why}", stacklevel=4)

    def inverse(self, tensordict: TensorDictBase) -> TensorDict:
        """Return the steps of B requests' candidates, batch [B * K, L]: `forward` undone.

        Entries [B, K, L, ...] such as `advantage` become entries of the steps. A candidate that is
        not valid becomes a path whose first code is illegal.
        """
        return unfolded(tensordict, self.reward_scale)


def unfolded(data: TensorDictBase, reward_scale: float = 1.0) -> TensorDict:
    """Return `GroupCandidates.inverse` of candidates."""
    codes, valid = data["codes"], data["valid"]
    shape = codes.shape
    levels = shape[2]
    last = torch.zeros_like(codes, dtype=torch.bool)
    last[..., -1] = True
    level = torch.arange(levels, device=codes.device)
    ends = torch.where(valid[..., None], last, level == 0)
    chosen = codes[:, :, None, :].expand(-1, -1, levels, -1)
    reward = data["reward"] if "reward" in data else data["terminal_reward"] * reward_scale
    request: Request = data["request"]
    asked = request_tensors(request) | {key: getattr(request, key) for key in IDENTITY}
    steps: dict[str, Any] = {
        key: value[:, None, None].expand(*shape, *value.shape[1:]) for key, value in asked.items()
    }
    steps |= {
        key: value
        for key, value in data.items()
        if isinstance(value, Tensor) and value.shape[:3] == shape and key != "legal_mask"
    }
    steps["action"] = steps.pop("codes")
    steps["action_mask"] = data["legal_mask"]
    steps["level"] = level.expand(shape)
    steps["prefix"] = torch.where(level < level[:, None], chosen, 0)
    following: dict[str, Any] = {
        "reward": (reward[..., None] * (ends & valid[..., None]))[..., None],
        "done": ends[..., None],
        "terminated": ends[..., None],
        "truncated": torch.zeros_like(ends)[..., None],
        "illegal": ends & ~valid[..., None],
        "ad_id": torch.where(ends & valid[..., None], data["ad_id"][..., None], -1),
    }
    if "component" in data:
        following["components"] = TensorDict(
            {
                name: torch.where(ends, value[..., None], 0.0)
                for name, value in data["component"].items()
            },
            batch_size=shape,
        )
    steps["next"] = TensorDict(following, batch_size=shape)
    return TensorDict(steps, batch_size=shape).flatten(0, 1)


def _lengths(group: Tensor, column: Tensor, steps: int) -> Tensor:
    """Return how many steps each request has, given where it begins, in order of group and time."""
    following = torch.full_like(column, steps)
    if len(column) > 1:
        same = group[1:] == group[:-1]
        following[:-1] = torch.where(same, column[1:], steps)
    return following - column


def _squeezed(value: Tensor) -> Tensor:
    """Return [S, K, L] of what may have a last dimension of 1."""
    return value.squeeze(-1) if value.ndim == 4 else value
