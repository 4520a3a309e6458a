"""The loop of supervised stages: early stopping, checkpoints, resume, precision."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpr_rl.checkpoint import CheckpointError, load_checkpoint
from gpr_rl.pretraining.trainer import Keep, StageConfig, StageResult, has_bf16, train_stage

CONFIG = StageConfig(num_steps=12, learning_rate=0.1, warmup_steps=2, validate_every=3)


def model(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 1)


def loss_of(net: nn.Linear):  # type: ignore[no-untyped-def]
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (net(x) - x.sum(1, keepdim=True)).square().mean(), {"step": float(step)}

    return loss


def test_stops_after_patience_and_keeps_the_best_weights() -> None:
    net, scores = model(), iter([0.3, 0.7, 0.7, 0.2])
    seen: list[Tensor] = []

    def validate() -> float:
        seen.append(net.weight.detach().clone())
        return next(scores)

    config = StageConfig(num_steps=30, validate_every=3, patience=2, warmup_steps=1)
    result = train_stage([net.parameters()], loss_of(net), config, keep=Keep(net, validate))
    # the third score only equals the best, the fourth is worse: two failures
    assert (result.num_steps, result.best_step, result.best_score) == (12, 6, 0.7)
    assert torch.equal(net.weight, seen[1])


def test_without_validation_the_last_weights_stay() -> None:
    net = model()
    result = train_stage([net.parameters()], loss_of(net), CONFIG)
    assert (result.num_steps, result.best_step) == (12, 12)
    assert result.best_score != result.best_score


@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_an_interrupted_stage_ends_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    whole = model()
    scores = {3: 0.1, 6: 0.5, 9: 0.4, 12: 0.3}

    def scorer(net: nn.Linear, steps: list[int]):  # type: ignore[no-untyped-def]
        return lambda: scores[steps[-1] + 1]

    def run(net: nn.Linear, path: Path | None, last: int | None):  # type: ignore[no-untyped-def]
        steps: list[int] = []

        def on_step(step: int, logged: dict[str, float]) -> None:
            steps.append(step)
            if step == last:
                raise KeyboardInterrupt

        return train_stage(
            [net.parameters()],
            loss_of(net),
            CONFIG,
            on_step,
            keep=Keep(net, scorer(net, steps), path),
        ), steps

    expected, _ = run(whole, None, None)
    path = tmp_path / "stage.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(model(), path, stop)
    again = model(seed=9)  # the checkpoint knows the weights
    if not path.exists():
        again = model()
    result, steps = run(again, path, None)
    assert steps[0] == stop // 3 * 3
    assert result == expected
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_a_checkpoint_of_another_stage_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    net, path = model(), tmp_path / "stage.safetensors"
    train_stage([net.parameters()], loss_of(net), CONFIG, keep=Keep(net, checkpoint=path))
    other = StageConfig(num_steps=12, learning_rate=0.2, warmup_steps=2, validate_every=3)
    with pytest.raises(ValueError, match=r"learning_rate=0\.1, this run has 0\.2"):
        train_stage([net.parameters()], loss_of(net), other, keep=Keep(net, checkpoint=path))
    with pytest.raises(ValueError, match=r"validates=False, this run has True"):
        train_stage(
            [net.parameters()],
            loss_of(net),
            CONFIG,
            keep=Keep(net, lambda: 1.0, path),
        )
    wider = nn.Linear(4, 1)
    with pytest.raises(ValueError, match=r"stage\.safetensors is of another model: .*weight"):
        train_stage([wider.parameters()], loss_of(net), CONFIG, keep=Keep(wider, checkpoint=path))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"stage\.safetensors"):
        train_stage([net.parameters()], loss_of(net), CONFIG, keep=Keep(net, checkpoint=path))


def test_a_loss_that_is_not_finite_stops_the_stage() -> None:
    net = model()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        return net.weight.sum() * (float("nan") if step == 4 else 1.0), {}

    with pytest.raises(FloatingPointError, match="warm: loss is nan at step 4"):
        train_stage([net.parameters()], loss, CONFIG, name="warm")
    with pytest.raises(FloatingPointError, match=r"at step 4; request ids \[4, 5\]"):
        train_stage(
            [net.parameters()],
            loss,
            CONFIG,
            requests_of_step=lambda step: torch.tensor([step, step + 1]),
        )


@pytest.mark.parametrize(("factor", "norm"), [(float("nan"), "nan"), (3e38, "inf")])
def test_a_gradient_that_is_not_finite_leaves_weights_and_checkpoint(
    factor: float, norm: str, tmp_path: Path
) -> None:
    net, path = model(), tmp_path / "stage.safetensors"
    before: list[Tensor] = []

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        value = loss_of(net)(step)[0]
        if step == 5:  # the last one before a checkpoint
            before.append(net.weight.detach().clone())
            net.weight.register_hook(lambda grad: torch.full_like(grad, factor))
        return value, {}

    with pytest.raises(FloatingPointError, match=f"stage: gradient norm is {norm} at step 5$"):
        train_stage([net.parameters()], loss, CONFIG, keep=Keep(net, checkpoint=path))
    assert torch.equal(net.weight, before[0])
    kept = load_checkpoint(path)[1]
    assert kept["step"] == 3


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), float("nan")])
def test_a_score_that_is_not_finite_survives_an_interruption(score: float, tmp_path: Path) -> None:
    net, path = model(), tmp_path / "stage.safetensors"

    def run() -> StageResult:
        return train_stage(
            [net.parameters()],
            loss_of(net),
            CONFIG,
            keep=Keep(net, lambda: score, path),
        )

    assert str(run()) == str(run())


def test_something_must_be_trained() -> None:
    net = model().requires_grad_(False)
    for group in ([], list(net.parameters())):
        with pytest.raises(ValueError, match="warm: no parameter to train"):
            train_stage([group], loss_of(net), CONFIG, name="warm")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", -1),
        ("warmup_steps", -5),
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("weight_decay", float("inf")),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", float("nan")),
        ("max_grad_norm", float("inf")),
    ],
)
def test_settings_outside_of_their_range_name_themselves(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        StageConfig(**{name: value})  # type: ignore[arg-type]


def test_bf16_is_used_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net, kinds = model(), []

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        out = net(torch.ones(2, 3))
        kinds.append(out.dtype)
        return out.float().square().mean(), {}

    for has, wanted in ((True, True), (False, True), (True, False)):
        monkeypatch.setattr("gpr_rl.pretraining.trainer.has_bf16", lambda device, has=has: has)
        config = StageConfig(num_steps=1, warmup_steps=1, bf16=wanted)
        train_stage([net.parameters()], loss, config)
    assert kinds == [torch.bfloat16, torch.float32, torch.float32]
    assert isinstance(has_bf16(torch.device("cpu")), bool)


@pytest.mark.parametrize("name", ["num_steps", "validate_every", "patience"])
def test_refuses_sizes_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got -1"):
        StageConfig(**{name: -1})
