"""Ad requests as a batched TorchRL environment.

Dims: B requests, N ads, L levels, V codes per level.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.data.tensor_specs import TensorSpec
from torchrl.envs import EnvBase

from envs.engine import Arrays
from envs.episodes import OUTCOME_KEYS, Episodes, Reward
from envs.spaces import Field, observation_fields
from simulators.make import load_world
from simulators.world import World


class AdRequestTorchEnv(EnvBase):
    """B ad requests side by side; each takes L code choices, then the rankers speak, once.

    The rules are those of `AdRequestEnv`. A TensorDict holds, next to `action`, `reward`, `done`
    and `terminated`:

    ==========================================  ============  ====================================
    key                                         shape         meaning
    ==========================================  ============  ====================================
    the observation's keys (`AdRequestEnv`)     [B, ...]      request tensors, `prefix`, `level`
    `action_mask`                               bool [B, V]   legal codes; all True at the end
    `request_id`, `user_id`, `timestamp`        int64 [B]     whose request, and when
    `illegal`                                   bool [B]      an illegal code ended the episode
    `ad_id`                                     int64 [B]     the ad chosen; -1 before the end
    `pctr`, `pcvr`, `ecpm`, `final_value`       float32 [B]   what the rankers say of it; 0 before
    (`components`, name)                        float32 [B]   unweighted rewards; 0 before
    ==========================================  ============  ====================================

    The mask of `action_spec` follows the state, so `rand_action` and `rollout` without a policy
    draw legal codes; behind transforms, which keep a copy of the specs, append torchrl's
    `ActionMask`. Rows move in step; one that an illegal code ends early may be reset alone
    (`_reset`) and then has a level of its own. A row that is stepped after its end stays there.

    Row i of an environment seeded with s plays the requests of `AdRequestEnv` seeded with s + i.
    `reset(request_id=ids)` plays requests `ids`, int64 [B].
    """

    batch_locked = True

    def __init__(
        self,
        world: str | Path | World = "tiny",
        batch_size: Sequence[int] | torch.Size | int = (1024,),
        *,
        reward: Reward = None,
        split: str = "train",
        seed: int = 0,
        illegal_reward: float = -1.0,
        strict: bool = False,
        world_seed: int = 0,
        device: torch.device | str | int | None = None,
    ) -> None:
        """Load the world (once per process) and declare the specs.

        Args:
            world: A name, a world's directory, or a `World`.
            batch_size: [B].
            reward: See `envs.episodes.make_reward`; default `final_value`.
            split: `train`, `validation` or `test`.
            seed: Of row 0; row i has seed + i. `set_seed` starts anew.
            illegal_reward: Reward of an illegal code, which ends the row's episode.
            strict: Raise `IllegalActionError` at an illegal code instead.
            world_seed: Of a named world.
            device: Of the TensorDicts. The world itself works on the CPU.

        Raises:
            ValueError: A batch size that is not one positive number; an unknown split.
        """
        size = torch.Size([batch_size] if isinstance(batch_size, int) else batch_size)
        if len(size) != 1 or size[0] < 1:
            raise ValueError(f"batch_size must be one positive number, [B], got {list(size)}")
        super().__init__(device=device, batch_size=size)
        self.world = load_world(world, seed=world_seed)
        self._engine = Episodes(
            self.world,
            size[0],
            reward=reward,
            split=split,
            illegal_reward=illegal_reward,
            strict=strict,
        )
        self._make_specs()
        self._set_seed(seed)

    def _make_specs(self) -> None:
        size, device, spec = self.batch_size, self.device, self.world.spec

        def leaf(field: Field) -> TensorSpec:
            shape = (*size, *field.shape)
            high = torch.tensor(field.high, dtype=field.dtype).expand(shape)
            return Bounded(
                torch.zeros_like(high), high, shape=shape, dtype=field.dtype, device=device
            )

        def number(dtype: torch.dtype) -> TensorSpec:
            return Unbounded(shape=size, dtype=dtype, device=device)

        entries = {key: leaf(field) for key, field in observation_fields(spec).items()}
        entries["action_mask"] = Binary(
            spec.num_codes, shape=(*size, spec.num_codes), dtype=torch.bool, device=device
        )
        for key in ("request_id", "user_id", "timestamp", "ad_id"):
            entries[key] = number(torch.int64)
        for key in OUTCOME_KEYS:
            entries[key] = number(torch.float32)
        entries["illegal"] = Categorical(2, shape=size, dtype=torch.bool, device=device)
        components = {name: number(torch.float32) for name in self._engine.reward.functions}
        self.observation_spec = Composite(
            entries | {"components": Composite(components, shape=size, device=device)},
            shape=size,
            device=device,
        )
        self.action_spec = Categorical(spec.num_codes, shape=size, dtype=torch.int64, device=device)
        self.reward_spec = Unbounded(shape=(*size, 1), device=device)
        ended = Categorical(2, shape=(*size, 1), dtype=torch.bool, device=device)
        self.done_spec = Composite(done=ended, terminated=ended.clone(), shape=size, device=device)

    def eligible_ads(self) -> Bool[Tensor, "B N"]:
        """Return the ads that each request's user may see now."""
        return self._on_device(torch.from_numpy(self._engine.eligible()))

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._engine.seed(np.arange(self.batch_size[0]) + seed)

    def _reset(
        self,
        tensordict: TensorDictBase | None,
        request_id: Int[Tensor, " B"] | NDArray[np.int64] | None = None,
    ) -> TensorDictBase:
        rows = None if tensordict is None else self._rows(tensordict, "_reset")
        options = {}
        if request_id is not None:
            options["request_id"] = torch.as_tensor(request_id).cpu().numpy()
        self._engine.reset(rows, options)
        return self._state()

    def _rows(self, tensordict: TensorDictBase, key: str) -> NDArray[np.bool_] | None:
        rows = tensordict.get(key, None)
        return None if rows is None else rows.reshape(self.batch_size).cpu().numpy()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action").cpu().numpy()
        reward = self._engine.step(action, self._rows(tensordict, "_step"))
        return self._state().set("reward", self._on_device(torch.from_numpy(reward).unsqueeze(-1)))

    def _state(self) -> TensorDict:
        """Return what the policy may see and what has been scored, and move the spec's mask."""
        engine = self._engine
        arrays = {
            **engine.observation(),
            "action_mask": engine.legal_mask,
            **engine.info(),
            **engine.report(),
        }
        terminated = torch.from_numpy(engine.terminated).unsqueeze(-1)
        state = _copied(arrays, self.batch_size)
        state.set("terminated", terminated.clone()).set("done", terminated.clone())
        state = state if self.device is None else state.to(self.device)
        self.action_spec.update_mask(state["action_mask"])
        return state

    def _on_device(self, x: Tensor) -> Tensor:
        return x if self.device is None else x.to(self.device)


def _copied(arrays: Arrays, batch_size: torch.Size) -> TensorDict:
    """Return copies: TorchRL may write into what it gets; the engine's own stay."""
    entries = {
        key: _copied(value, batch_size)
        if isinstance(value, dict)
        else torch.from_numpy(np.array(value))
        for key, value in arrays.items()
    }
    return TensorDict(entries, batch_size=batch_size)
