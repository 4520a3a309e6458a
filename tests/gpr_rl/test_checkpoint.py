import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpr_rl import checkpoint
from gpr_rl.checkpoint import (
    CheckpointError,
    flatten_optimizer_state,
    load_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)

META = {"step": 7, "rate": 0.1, "names": ["a", "b"], "spec": {"num_codes": 5, "none": None}}


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return {
        "float": base,
        "view": base.T,
        "double": torch.randn(3, dtype=torch.float64),
        "bfloat": torch.randn(3).bfloat16(),
        "half": torch.randn(3).half(),
        "int": torch.tensor([2**62, -1]),
        "bool": torch.tensor([True, False]),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "special": torch.tensor([float("inf"), float("-inf"), float("nan")]),
    }


def test_round_trip_keeps_bits_dtypes_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, _tensors(), META)
    tensors, meta = load_checkpoint(path)
    assert meta == META
    assert list(sorted(tensors)) == sorted(_tensors())
    for name, want in _tensors().items():
        assert tensors[name].dtype == want.dtype, name
        torch.testing.assert_close(tensors[name], want, rtol=0, atol=0, equal_nan=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, _tensors(), META)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"x": torch.ones(2)}, {"step": 1})

    def interrupted(tensors: object, file: Path, **_: object) -> None:
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"x": torch.zeros(2)}, {"step": 2})
    tensors, meta = load_checkpoint(path)
    assert meta == {"step": 1}
    assert tensors["x"].eq(1).all()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_metadata_that_json_cannot_hold_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "a", {}, {"x": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 4, 8, 60, 300, -1])
def test_a_truncated_file_is_named_and_left_alone(tmp_path: Path, size: int) -> None:
    path = tmp_path / "broken.safetensors"
    save_checkpoint(path, _tensors(), META)
    path.write_bytes(path.read_bytes()[:size])
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"broken\.safetensors: .+"):
        load_checkpoint(path)
    assert path.read_bytes() == before


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    for content in (b"plain text, nothing else", bytes(range(256)), b"{}", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="foreign"):
            load_checkpoint(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="no 'gpr_rl' entry"):
        load_checkpoint(path)
    save_file({"x": torch.ones(1)}, path, metadata={"gpr_rl": "{"})
    with pytest.raises(CheckpointError, match="metadata is not JSON"):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=path.name) as caught:
            load_checkpoint(path)
        assert isinstance(caught.value, ValueError)


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a checkpoint was unpickled",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "pickled"
    path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_training_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.randn(6, 16, 4)

    def optimizer_of(net: torch.nn.Module) -> torch.optim.Optimizer:
        first, second = net[0].parameters(), net[2].parameters()  # type: ignore[index]
        groups = [{"params": list(first), "lr": 1e-2}, {"params": list(second), "lr": 1e-3}]
        if kind == "adam":
            return torch.optim.Adam(groups, betas=(0.8, 0.99), amsgrad=True)
        if kind == "adamw":
            return torch.optim.AdamW(groups)
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    def steps(
        net: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: torch.Tensor
    ) -> None:
        for batch in batches:
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()

    optimizer = optimizer_of(model)
    steps(model, optimizer, x[:3])
    tensors, meta = flatten_optimizer_state(optimizer)
    named = {f"optimizer.{name}": value for name, value in tensors.items()}
    named.update({f"model.{name}": value for name, value in model.state_dict().items()})
    save_checkpoint(tmp_path / "a", named, {"optimizer": meta})
    resumed = copy.deepcopy(model)
    for parameter in resumed.parameters():
        torch.nn.init.zeros_(parameter)
    steps(model, optimizer, x[3:])

    tensors, meta = load_checkpoint(tmp_path / "a")

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}

    resumed.load_state_dict(part("model."))
    again = optimizer_of(resumed)
    restore_optimizer_state(again, part("optimizer."), meta["optimizer"])
    steps(resumed, again, x[3:])
    for got, want in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want)


def test_state_of_another_optimizer_is_refused() -> None:
    a, b = torch.nn.Linear(2, 3), torch.nn.Linear(5, 3)
    optimizer = torch.optim.Adam(a.parameters())
    a(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors, meta = flatten_optimizer_state(optimizer)
    with pytest.raises(ValueError, match=r"has shape \[3, 2\], its parameter \[3, 5\]"):
        restore_optimizer_state(torch.optim.Adam(b.parameters()), tensors, meta)
    with pytest.raises(ValueError, match="has no parameter, of 1"):
        restore_optimizer_state(torch.optim.Adam([a.weight]), tensors, meta)
