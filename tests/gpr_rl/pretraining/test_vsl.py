"""GR4AD's value-aware supervised learning against loops, and the eCPM token."""

import dataclasses
import math

import pytest
import torch

from agents.warm_start import WarmStartConfig, build_model, train_mtp, train_vsl
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.ecpm_head import EcpmHead
from gpr_rl.pretraining.trainer import StageConfig
from gpr_rl.pretraining.vsl import VSLConfig, vsl_loss, vsl_weight
from gpr_rl.schema import Action, Targets
from simulators.make import load_world
from simulators.world import World
from simulators.world.supervision import WindowBatches
from tests.gpr_rl.models.model_inputs import SPEC, make_request


@pytest.fixture(scope="module")
def world() -> World:
    return load_world("tiny", seed=0)


def targets(batch: int = 2, positions: int = 3, heads: int = 2) -> Targets:
    g = torch.Generator().manual_seed(0)
    shape = (batch, positions, heads)
    codes = torch.randint(3, (*shape, 2), generator=g)
    legal = torch.rand(*shape, 2, 3, generator=g) < 0.7
    legal = legal.scatter(-1, codes[..., None], True)
    valid = torch.rand(shape, generator=g) < 0.8
    valid[:, 0] = True
    return Targets(
        position=torch.zeros(batch, positions, dtype=torch.int64),
        codes=codes,
        action=torch.randint(2, 5, shape, generator=g),
        valid=valid,
        legal_mask=legal,
        pctr=torch.rand(shape, generator=g),
        pcvr=torch.rand(shape, generator=g),
        ecpm=100.0 * torch.rand(shape, generator=g),
        final_value=torch.rand(shape, generator=g),
        batch_size=[batch],
    )


def test_weights_equal_a_loop_and_rise_with_the_action() -> None:
    data, config = targets(4, 5), VSLConfig()
    found = vsl_weight(data, config)
    raw = {}
    value = {
        b: [float(data.ecpm[b, p, 0]) for p in range(5) if data.valid[b, p, 0]] for b in range(4)
    }
    mean = sum(sum(v) for v in value.values()) / sum(len(v) for v in value.values())
    for b in range(4):
        user = min(max(sum(value[b]) / len(value[b]) / mean, 1 / 3), 3.0)
        for p in range(5):
            if data.valid[b, p, 0]:
                weight = {Action.IMPRESSION: 1.0, Action.CLICK: 3.0, Action.CONVERSION: 9.0}
                raw[b, p] = user * weight[Action(int(data.action[b, p, 0]))]
    total = sum(raw.values()) / len(raw)
    for b in range(4):
        for p in range(5):
            expected = raw.get((b, p), 0.0) / total
            assert float(found[b, p]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="weights must rise from impression"):
        VSLConfig(click_weight=9.0, conversion_weight=3.0)


def test_the_loss_equals_a_loop() -> None:
    data, config = targets(), VSLConfig(mtp_weight=0.0, ecpm_weight=0.5)
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 2, 2, 3, generator=g)
    ecpm_logits = torch.randn(2, 3, 4, generator=g)
    bucket = torch.randint(4, (2, 3), generator=g)
    found, parts = vsl_loss(logits, ecpm_logits, bucket, data, torch.zeros(2), config)
    weight = vsl_weight(data, config)
    total = count = 0.0
    for b in range(2):
        for p in range(3):
            if not data.valid[b, p, 0]:
                continue
            nll = 0.0
            for level in range(2):
                row = logits[b, p, 0, level].tolist()
                legal = data.legal_mask[b, p, 0, level].tolist()
                norm = sum(math.exp(x) for x, ok in zip(row, legal, strict=True) if ok)
                nll -= row[int(data.codes[b, p, 0, level])] - math.log(norm)
            row = ecpm_logits[b, p].tolist()
            ecpm = math.log(sum(math.exp(x) for x in row)) - row[int(bucket[b, p])]
            total += float(weight[b, p]) * (nll + 0.5 * ecpm)
            count += 1
    assert float(found) == pytest.approx(total / count, rel=1e-5)
    assert set(parts) == {"sid", "ecpm", "mtp"}
    with_mtp, _ = vsl_loss(logits, ecpm_logits, bucket, data, torch.zeros(2), VSLConfig())
    without = parts["sid"] + 0.3 * parts["ecpm"]
    assert float(with_mtp) == pytest.approx(float(without + 0.3 * parts["mtp"]), rel=1e-5)


def test_buckets_hold_equally_many() -> None:
    head = EcpmHead(8, 4, 10)
    value = torch.randn(5_000).exp()
    head.fit_buckets(value)
    counts = torch.bincount(head.bucket(value), minlength=10)
    assert counts.min() >= 498
    assert counts.max() <= 502
    assert int(head.bucket(torch.tensor(-1.0))) == 0
    assert int(head.bucket(torch.tensor(1e9))) == 9


def test_all_else_starts_as_it_does_without_the_token() -> None:
    plain = HHDConfig(dim=16, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        without = HHD(plain, SPEC).state_dict()
        torch.manual_seed(5)
        model = HHD(dataclasses.replace(plain, num_ecpm_buckets=6), SPEC)
    state = model.state_dict()
    assert set(without) < set(state)
    assert all(torch.equal(state[name], value) for name, value in without.items())
    request = make_request([9, 12])
    context = model.eval().encode(request)
    codes = torch.zeros(len(request.request_id), 3, SPEC.num_levels, dtype=torch.int64)
    assert model.ecpm_logits(context, codes).shape == (len(codes), 3, 6)
    with pytest.raises(ValueError, match="num_ecpm_buckets is 0"):
        HHD(plain, SPEC).ecpm_logits(context, codes)
    with pytest.raises(ValueError, match="must be 0 or at least 2, got 1"):
        HHDConfig(num_ecpm_buckets=1)


def test_training_learns_paths_and_buckets(world: World) -> None:
    config = WarmStartConfig(
        model=HHDConfig(dim=32, num_hsd_layers=1, num_ecpm_buckets=8),
        mtp=StageConfig(num_steps=10),
        vaft=StageConfig(num_steps=200, learning_rate=3e-3),
        num_windows=64,
    )
    model = build_model(world, config.model, 0)
    train_mtp(model, world, config, 0)
    logged: list[dict[str, float]] = []
    train_vsl(model, world, config, 0, lambda stage, step, values: logged.append(values))

    def mean(name: str, part: slice) -> float:
        values = [entry[name] for entry in logged[part]]
        return sum(values) / len(values)

    assert mean("sid", slice(-10, None)) < mean("sid", slice(0, 10))
    head = model.eval().ecpm_head
    assert head is not None
    # Windows of another seed: better than the base rate of one in eight.
    tokens, held_out = WindowBatches(world, 77, 64, 6, 4)(0)
    with torch.no_grad():
        context = model.window(tokens, held_out.position)
        logits = model.ecpm_logits(context, held_out.codes[:, :, 0])
    valid = held_out.valid[..., 0]
    bucket = head.bucket(held_out.ecpm[..., 0])[valid]
    assert float(torch.nn.functional.cross_entropy(logits[valid], bucket)) < math.log(8) - 0.1
    with pytest.raises(ValueError, match="VSL needs a model with num_ecpm_buckets"):
        train_vsl(build_model(world, HHDConfig(dim=16, num_heads=2), 0), world, config, 0)
