"""A pretended accelerator: tensors that compute on the CPU and insist on being somewhere else.

PyTorch's fake tensors have no values, so nothing that looks at one (`if mask.any()`) can run under
them. These have values. As on a real device, an operation that mixes places fails, a factory call
makes a tensor where it is told to, and numpy gets nothing without `.cpu()`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class _Backend(_DummyBackendModule):
    """What torch and tensordict ask of a device; this one has no generator of its own."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def synchronize(self, device: Any = None) -> None:
        pass


_setup_privateuseone_for_python_backend("pretended", backend_module=_Backend())
DEVICE = torch.device("pretended:0")
_CPU_INDICES = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
"""A CPU tensor may index one of another device."""


class OnDevice(Tensor):
    """A tensor of the pretended device; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy: use .cpu() first")

    def __array__(self, *_: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy: use .cpu() first")

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(function, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """While it is on, `device="pretended"` means the pretended device."""

    def __enter__(self) -> "Accelerator":
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) comes by here too
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; its result is where the operands are, or where it says."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, OnDevice)]
    wanted = kwargs.get("device")
    target = bool(here) if wanted is None else torch.device(wanted).type == DEVICE.type
    if wanted is not None:
        kwargs = {**kwargs, "device": "cpu"}
    elif here and function not in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
        strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.ndim > 0]
        if function in _CPU_INDICES and isinstance(args[0], OnDevice):
            strangers = []
        if strangers:
            raise RuntimeError(
                f"{function}: expected all tensors on one device, got {DEVICE} and cpu "
                f"{[list(x.shape) for x in strangers]}"
            )
    if function is torch.ops.aten.copy_.default:
        target = isinstance(args[0], OnDevice)

    def inner(x: Any) -> Any:
        return x.inner if isinstance(x, OnDevice) else x

    result = function(*tree_map(inner, args), **tree_map(inner, kwargs))
    by_identity = {id(x.inner): x for x in here}

    def outer(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, OnDevice):
            return x
        if id(x) in by_identity:
            return by_identity[id(x)]  # an operation in place
        return OnDevice(x) if target else x

    return tree_map(outer, result)


def moved(x: Tensor) -> OnDevice:
    """Return a tensor on the pretended device."""
    return OnDevice(x)


def on_device(work: Callable[[], Any]) -> Any:
    """Run `work` with the pretended device present."""
    with Accelerator():
        return work()
