"""Past steps that the critic goes on learning from."""

from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer, RoundRobinWriter


class CriticReplay:
    """torchrl's replay buffer over the requests of the last steps, the oldest leave first.

    It is read at keyed indices, so that runs are the same bit for bit: torchrl's samplers draw from
    the global generator.
    """

    def __init__(self, num_requests: int) -> None:
        """Make an empty buffer for `num_requests` requests with their candidates."""
        self._buffer = ReplayBuffer(
            storage=LazyTensorStorage(num_requests), writer=RoundRobinWriter()
        )

    def __len__(self) -> int:
        return len(self._buffer)

    def extend(self, data: TensorDict) -> None:
        """Add requests, batch [B]."""
        self._buffer.extend(data.to_tensordict())

    def read(self, index: Tensor, like: TensorDict) -> TensorDict:
        """Return the requests at int64 [n] indices, in the types that `like` has."""
        part = self._buffer[index]
        part["context"] = type(like["context"]).from_tensordict(part["context"])
        return part

    def tensors(self) -> tuple[dict[str, Tensor], int]:
        """Return the content, flat, and where the next request goes."""
        flat = self._buffer[:].flatten_keys(".")
        return dict(flat.items()), self._buffer.writer.state_dict()["_cursor"]

    def load(self, tensors: dict[str, Tensor], cursor: int) -> None:
        """Take in what `tensors` returned; the buffer must be empty."""
        size = len(next(iter(tensors.values())))
        self._buffer.extend(TensorDict(tensors, batch_size=[size]).unflatten_keys("."))
        self._buffer.writer.load_state_dict({"_cursor": cursor})
