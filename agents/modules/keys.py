"""Names of TensorDict entries that a user may change, as torchrl's modules have them.

A module declares the entries that it reads and writes by our names; `default_keys` and `set_keys`
know them by torchrl's, where torchrl has a word for the same thing.
"""

from collections.abc import Iterable
from dataclasses import field, make_dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey

_TORCHRL = {
    "codes": "action",
    "action_log_prob": "sample_log_prob",
    "state_value": "value",
}
"""Our default key -> torchrl's name of what it holds."""


def accepted_keys(owner: type, keys: Iterable[str]) -> type:
    """Return the dataclass `_AcceptedKeys` of a module class, with `keys` as the defaults."""
    fields = [(_TORCHRL.get(key, key), NestedKey, field(default=key)) for key in keys]
    made = make_dataclass("_AcceptedKeys", fields)
    made.__module__ = owner.__module__
    made.__qualname__ = f"{owner.__qualname__}._AcceptedKeys"  # so that instances can be pickled
    return made


def key_of(tensor_keys: Any, key: str) -> NestedKey:
    """Return what the entry that we call `key` is called now."""
    return getattr(tensor_keys, _TORCHRL.get(key, key))


def read_keys(tensor_keys: Any, keys: Iterable[str], tensordict: TensorDictBase) -> TensorDictBase:
    """Return a shallow copy in which the entries have our names."""
    data = tensordict.copy()
    for key in keys:
        name = key_of(tensor_keys, key)
        if name != key:
            data.set(key, tensordict.get(name))
    return data


class KeyedModule(TensorDictModuleBase):
    """A module that writes advantages: keys as those of torchrl's GAE.

    A subclass names what it `reads` and `writes`, and adds its formula in `write`. One that reads
    `state_value` may be given a `value_network` that writes it (`take_values`).
    """

    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[tuple[str, ...]]
    default_keys: ClassVar[type]
    value_network: TensorDictModuleBase | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "reads" in vars(cls) or "writes" in vars(cls):
            cls._AcceptedKeys = accepted_keys(cls, (*cls.reads, *cls.writes))  # type: ignore[attr-defined]
            cls.default_keys = cls._AcceptedKeys  # type: ignore[attr-defined]

    def __init__(self) -> None:
        super().__init__()
        self.tensor_keys = self.default_keys()
        self._name_keys()

    def _name_keys(self) -> None:
        read = [key_of(self.tensor_keys, key) for key in self.reads]
        self.out_keys = [key_of(self.tensor_keys, key) for key in self.writes]
        if self.value_network is not None:
            value = key_of(self.tensor_keys, "state_value")
            read.remove(value)
            read = list(dict.fromkeys([*read, *self.value_network.in_keys]))
            self.out_keys = [value, *self.out_keys]
        self.in_keys = read

    def set_keys(self, **keys: NestedKey | None) -> None:
        """Read or write entries under other names; None: under the default one again.

        Raises:
            ValueError: A name that the module neither reads nor writes.
        """
        known = self.default_keys.__dataclass_fields__  # type: ignore[attr-defined]
        for name, key in keys.items():
            if name not in known:
                raise ValueError(
                    f"{name} is not an accepted key of {type(self).__name__}; accepted: "
                    f"{', '.join(known)}"
                )
            setattr(self.tensor_keys, name, known[name].default if key is None else key)
        self._name_keys()

    def take_values(self, value_network: TensorDictModuleBase | None) -> None:
        """Ask this network for `state_value`; it is not a submodule, as in torchrl's estimators."""
        self.__dict__["value_network"] = value_network
        self._name_keys()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-keys set."""
        if self.value_network is not None:
            name = key_of(self.tensor_keys, "state_value")
            with torch.no_grad():
                values = self.value_network(tensordict.copy())
            tensordict.set(name, values.get(name))
        data = self.write(read_keys(self.tensor_keys, self.reads, tensordict))
        for key in self.writes:
            tensordict.set(key_of(self.tensor_keys, key), data.get(key))
        return tensordict

    def write(self, data: TensorDictBase) -> TensorDictBase:
        """Set the entries of `writes` in `data`, which has those of `reads`, and return it."""
        raise NotImplementedError
