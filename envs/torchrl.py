"""Ad requests and days of them as batched TorchRL environments.

Dims: B rows, K rows that share a request, N ads, L levels, V codes per level.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.data.tensor_specs import TensorSpec
from torchrl.envs import EnvBase

from envs.arguments import positive_integer, row_seeds
from envs.days import DayArguments, Days
from envs.engine import Arrays
from envs.requests import Episodes
from envs.spaces import Field, observation_fields
from simulators.world import World

_ENDS = ("done", "terminated", "truncated")


class TorchEnv(EnvBase):
    """B rows of an engine behind TorchRL's interface; the subclasses say of which.

    A TensorDict holds, next to `action`, `reward`, `done`, `terminated` and `truncated`:

    ==========================================  ============  ====================================
    key                                         shape         meaning
    ==========================================  ============  ====================================
    the observation's keys                      [B, ...]      request tensors, `prefix`, `level`
    `action_mask`                               bool [B, V]   legal codes; else all True
    what `info` always has                      [B]           see the Gymnasium environment
    what `info` has at a request's end          [B]           0 (`ad_id`, -1) at all other times
    (`components`, name)                        float32 [B]   likewise
    ==========================================  ============  ====================================

    The mask of `action_spec` follows the state, so `rand_action` and `rollout` without a policy
    draw legal codes; behind transforms, which keep a copy of the specs, append torchrl's
    `ActionMask`. Rows that ended may be reset alone (`_reset`) and then have a level of their own.
    A row that is stepped after its end stays there.

    Row i of an environment seeded with s plays what the single one seeded with s + i plays. With
    `candidates=K`, K neighbouring rows share a request: row i plays that of seed s + i // K, and
    the K rows end together (`agents.torchrl.GroupCandidates` folds what they did).
    Collectors reset an environment when they take it: seed it before that (`seed`), or call
    `reset` after their `set_seed`. Environments side by side need seeds of their own.
    """

    batch_locked = True

    engine_class: type[Any]
    default_batch_size: int

    def __init__(
        self,
        world: str | Path | World = "tiny",
        batch_size: Sequence[int] | torch.Size | int | None = None,
        *,
        seed: int = 0,
        device: torch.device | str | int | None = None,
        **arguments: Unpack[DayArguments],
    ) -> None:
        """Load the world (once per process) and declare the specs.

        Args:
            world: A name, a world's directory, or a `World`.
            batch_size: [B]; None: `default_batch_size`.
            seed: Of row 0; row i has seed + i // K. `set_seed` starts anew.
            device: Of the TensorDicts. The world itself works on the CPU.
            arguments: As the Gymnasium environment takes them: `reward`, `split`, ...; and
                `candidates`, K of the rows that share a request.

        Raises:
            ValueError: A batch size that is not one positive number, or no multiple of K; another
                wrong argument.
        """
        size = self.default_batch_size if batch_size is None else _num_rows(batch_size)
        engine = self.engine_class(world, size, **arguments)
        super().__init__(device=device, batch_size=torch.Size([size]))
        self.world, self._engine = engine.world, engine
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

        def said(value: NDArray | Arrays) -> TensorSpec:
            if isinstance(value, dict):
                inner = {key: said(part) for key, part in value.items()}
                return Composite(inner, shape=size, device=device)
            dtype = torch.from_numpy(value).dtype
            if dtype == torch.bool:
                return Categorical(2, shape=size, dtype=dtype, device=device)
            return Unbounded(shape=size, dtype=dtype, device=device)

        entries = {key: leaf(field) for key, field in observation_fields(spec).items()}
        entries["action_mask"] = Binary(
            spec.num_codes, shape=(*size, spec.num_codes), dtype=torch.bool, device=device
        )
        for key, value in (self._engine.info() | self._engine.report()).items():
            entries[key] = said(value)
        self.observation_spec = Composite(entries, shape=size, device=device)
        self.action_spec = Categorical(spec.num_codes, shape=size, dtype=torch.int64, device=device)
        self.reward_spec = Unbounded(shape=(*size, 1), device=device)
        ended = Categorical(2, shape=(*size, 1), dtype=torch.bool, device=device)
        flags = {name: ended.clone() for name in _ENDS}
        self.done_spec = Composite(flags, shape=size, device=device)

    @property
    def candidates(self) -> int:
        """K, how many neighbouring rows share a request."""
        return self._engine.candidates

    def eligible_ads(self) -> Bool[Tensor, "B N"]:
        """Return the ads that each request's user may see now."""
        return torch.from_numpy(self._engine.eligible()).to(self.device)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            seeds, _ = row_seeds(seed, self.batch_size[0], self.candidates)
            self._engine.seed(seeds)

    def _reset(self, tensordict: TensorDictBase | None, **options: Any) -> TensorDictBase:
        rows = None if tensordict is None else self._rows(tensordict, "_reset")
        wanted = {key: _as_numpy(value) for key, value in options.items() if value is not None}
        self._engine.reset(rows, wanted)
        return self._state()

    def _rows(self, tensordict: TensorDictBase, key: str) -> NDArray[np.bool_] | None:
        rows = tensordict.get(key, None)
        return None if rows is None else rows.reshape(self.batch_size).cpu().numpy()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action").cpu().numpy()
        reward = self._engine.step(action, self._rows(tensordict, "_step"))
        return self._state().set("reward", torch.from_numpy(reward).unsqueeze(-1).to(self.device))

    def _state(self) -> TensorDict:
        """Return what the policy may see and what has been scored, and move the spec's mask."""
        engine = self._engine
        arrays = {
            **engine.observation(),
            "action_mask": engine.legal_mask,
            **engine.info(),
            **engine.report(),
        }
        ends = engine.terminated | engine.truncated, engine.terminated, engine.truncated
        state = _copied(arrays, self.batch_size)
        for name, flag in zip(_ENDS, ends, strict=True):
            state.set(name, torch.from_numpy(flag.copy()).unsqueeze(-1))
        state = state.to(self.device)
        self.action_spec.update_mask(state["action_mask"])
        return state


class AdRequestTorchEnv(TorchEnv):
    """B ad requests side by side, under the rules of `AdRequestEnv`; see `TorchEnv` for the keys.

    Rows move in step unless an illegal code ends one early. `reset(request_id=ids)` plays requests
    `ids`, int64 [B].
    """

    engine_class = Episodes
    default_batch_size = 1024


class AdDayTorchEnv(TorchEnv):
    """B days side by side, under the rules of `AdDayEnv`; see `TorchEnv` for the keys.

    `reset(day=d)` plays day d, an integer or int64 [B].
    """

    engine_class = Days
    default_batch_size = 64


def _num_rows(batch_size: Sequence[int] | torch.Size | int) -> int:
    sizes = list(batch_size) if isinstance(batch_size, Sequence) else [batch_size]
    try:
        (size,) = sizes
        return positive_integer("batch_size", size)
    except ValueError:
        raise ValueError(
            f"batch_size must be one positive number, [B], got {batch_size!r}"
        ) from None


def _as_numpy(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _copied(arrays: Arrays, batch_size: torch.Size) -> TensorDict:
    """Return copies: TorchRL may write into what it gets; the engine's own stay."""
    entries = {
        key: _copied(value, batch_size)
        if isinstance(value, dict)
        else torch.from_numpy(np.array(value))
        for key, value in arrays.items()
    }
    return TensorDict(entries, batch_size=batch_size)
