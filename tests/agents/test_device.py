"""Everything that trains and serves runs on a device, and finds there what the CPU finds."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.methods import TrainConfig, method_names
from agents.placing import beside
from agents.rollout import RolloutConfig, rollout, score_reference
from agents.trainer import train
from agents.warm_start import WarmStartConfig, build_model, train_exp_sft, train_vsl, warm_start
from benchmarks.evaluation import evaluate_model, make_evaluation_set, policy_beam
from gpr_rl.models import HHDConfig
from gpr_rl.pretraining.trainer import StageConfig
from gpr_rl.tokenizers import UASID, RQKMeans, Tokenizer
from simulators.markets import Market, MarketWorld, train_view
from simulators.synthetic.arr import RehearsalWorld
from simulators.world import World
from tests.gpr_rl.models.model_inputs import make_model
from tests.references.accelerator import DEVICE, Accelerator, OnDevice

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # jaxtyping knows no tensor subclass

SMALL = TrainConfig(
    num_steps=2,
    num_requests=6,
    num_candidates=4,
    dpo_num_pairs=2,
    sdpo_num_negatives=3,
    critic_warmup_steps=0,
    critic_replay=1,
    baseline="ad",
)


def check(on_cpu: Tensor, on_device: Any, name: str, tolerance: float = 1e-7) -> None:
    assert isinstance(on_device, OnDevice), name
    torch.testing.assert_close(on_device.inner, on_cpu, rtol=tolerance, atol=tolerance, msg=name)


def check_weights(on_cpu: nn.Module, on_device: nn.Module, tolerance: float = 1e-7) -> None:
    own = on_device.state_dict()
    for name, weight in on_cpu.state_dict().items():
        check(weight, own[name], name, tolerance)


def test_the_device_is_as_strict_as_a_real_one() -> None:
    with Accelerator():
        x = torch.randn(4, 3, device=DEVICE)
        assert x.device == DEVICE
        assert torch.arange(3, device=x.device).device == DEVICE
        assert (x * torch.tensor(2.0)).device == DEVICE
        assert x[torch.tensor([0, 2])].device == DEVICE
        assert type(x.cpu()) is Tensor
        for mixed in (
            lambda: x + torch.ones(4, 3),
            lambda: torch.cat([x, torch.ones(1, 3)]),
            lambda: x.gather(1, torch.zeros(4, 1, dtype=torch.int64)),
            lambda: torch.ones(3)[torch.zeros(2, dtype=torch.int64, device=DEVICE)],
        ):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mixed()
        with pytest.raises(TypeError, match=r"use \.cpu\(\) first"):
            x.numpy()


@pytest.mark.parametrize("behavior", ["sample", "gumbel", "beam", "tree"])
def test_rollouts(world: World, behavior: str) -> None:
    model = make_model(spec=world.spec).eval()
    for size in (4, 16):  # few candidates are looked up, many counted
        config = RolloutConfig(num_candidates=size, behavior=behavior)
        ids = world.request_ids("train")[:6]
        wanted = score_reference(rollout(model, world, ids, None, config, 0, 0), model)
        with Accelerator():
            placed, own = world.to(DEVICE), copy.deepcopy(model).to(DEVICE)
            ids = placed.request_ids("train")[:6]
            found = score_reference(rollout(own, placed, ids, None, config, 0, 0), own)
            for key in wanted.keys(True, True):
                check(wanted[key], found[key], str(key), 1e-6)


@pytest.mark.parametrize("method", method_names())
def test_every_method_trains(world: World, method: str) -> None:
    start = make_model(spec=world.spec).eval()
    on_cpu = copy.deepcopy(start)
    history = train(on_cpu, world, method, SMALL, 0)
    with Accelerator():
        on_device = copy.deepcopy(start).to(DEVICE)
        log = train(on_device, world, method, SMALL, 0)  # the world follows the model
        check_weights(on_cpu, on_device, 1e-5)
    for step, expected in zip(log, history, strict=True):
        timed = {name for name in expected if name.endswith("_s")}
        for name in expected.keys() - timed - {"pair_accuracy"}:  # of margins that begin at 0
            assert step[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_a_run_resumes_on_another_device(world: World, tmp_path: Any) -> None:
    start, path = make_model(spec=world.spec).eval(), tmp_path / "run.safetensors"
    whole, first = copy.deepcopy(start), copy.deepcopy(start)
    train(whole, world, "hepo", SMALL, 0)
    train(first, world, "hepo", replace(SMALL, num_steps=1), 0, checkpoint_path=path)
    with Accelerator():
        rest = copy.deepcopy(start).to(DEVICE)
        train(rest, world, "hepo", SMALL, 0, checkpoint_path=path, resume=True)
        check_weights(whole, rest, 1e-5)


STAGE = {"mtp": StageConfig(num_steps=2), "vaft": StageConfig(num_steps=2)}
WARM = WarmStartConfig(
    model=HHDConfig(dim=16, num_heads=2),
    critic=StageConfig(num_steps=2),
    num_windows=8,
    num_requests=8,
    num_candidates=4,
    **STAGE,
)
PARTS = {
    "plain": {},
    "refiner": {"num_refining_steps": 2},
    "lazy": {"decoder": "lazy_ar", "num_lazy_layers": 1, "num_ptd_layers": 2},
    "recursions": {"num_recursions": 2},
}


@pytest.mark.parametrize("part", PARTS)
def test_warm_start_and_rl_of_every_decoder(world: World, part: str) -> None:
    config = replace(WARM, model=replace(WARM.model, **PARTS[part]))
    on_cpu = warm_start(world, config, 0)
    with Accelerator():
        on_device = warm_start(world.to(DEVICE), config, 0)
        check_weights(on_cpu, on_device, 2e-3)  # Adam divides float32's rounding by itself
        train(on_device, world, "hepo", replace(SMALL, critic_replay=0), 0)


def test_the_other_stages(world: World) -> None:
    with Accelerator():
        placed = world.to(DEVICE)
        model = build_model(placed, replace(WARM.model, num_ecpm_buckets=4), 0)
        train_vsl(model, placed, WARM, 0)
        train_exp_sft(build_model(placed, WARM.model, 0), placed, WARM, 0)
        assert all(isinstance(x, OnDevice) for x in model.state_dict().values())


def test_evaluation_is_that_of_the_cpu(world: World) -> None:
    model = make_model(spec=world.spec).float().eval()
    data = make_evaluation_set(world, None, 12)
    beam = policy_beam(model, world, data.request_id, data.eligible, 5)
    wanted = evaluate_model(model, world, data, beam.ad_id, None, 5)
    with Accelerator():
        found = evaluate_model(copy.deepcopy(model).to(DEVICE), world, data, beam.ad_id, None, 5)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_rankers_and_outcomes(world: World, exact: bool) -> None:
    ids = world.request_ids("test")[:5]
    generator = torch.Generator().manual_seed(0)
    for size in (3, 30):
        ads = torch.randint(-1, world.num_ads, (5, size), generator=generator)
        wanted = world.outcome(ids, ads, exact=exact)
        with Accelerator():
            found = world.to(DEVICE).outcome(ids.to(DEVICE), ads.to(DEVICE), exact=exact)
            for key in wanted.keys():  # noqa: SIM118
                check(getattr(wanted, key), getattr(found, key), key, 1e-5)


@pytest.mark.parametrize("rule", ["second_price", "realised"])
def test_a_market_keeps_its_rules(world: World, rule: str) -> None:
    market = train_view(MarketWorld(world, Market(summary="", **{rule: True})))
    ids, ads = world.request_ids("train")[:4], torch.arange(12).view(4, 3)
    wanted, plain = market.outcome(ids, ads), world.outcome(ids, ads)
    assert not (torch.equal(wanted.payment, plain.payment) and torch.equal(wanted.pctr, plain.pctr))
    with Accelerator():
        placed = market.to(DEVICE)
        found = placed.outcome(ids.to(DEVICE), ads.to(DEVICE))
        for key in ("payment", "ecpm", "pctr"):
            check(getattr(wanted, key), getattr(found, key), key)
        assert placed.reward_scale == market.reward_scale


def test_rehearsed_requests_come_along(world: World) -> None:
    start = make_model(spec=world.spec).eval()
    config = replace(SMALL, num_requests=8, arr_share=0.25, critic_replay=0)
    rehearsed = RehearsalWorld(world, 0)
    assert beside(rehearsed, start) is rehearsed
    on_cpu = copy.deepcopy(start)
    train(on_cpu, rehearsed, "grpo", config, 0)
    with Accelerator():
        on_device = copy.deepcopy(start).to(DEVICE)
        train(on_device, rehearsed, "grpo", config, 0)
        check_weights(on_cpu, on_device, 1e-5)
        assert beside(rehearsed.to(DEVICE), on_cpu) is rehearsed


def test_rankers_of_ones_own_are_asked_on_the_cpu(world: World) -> None:
    class Own:
        def __call__(
            self, inputs: Any, past: Any, ad_id: Tensor, **_: Any
        ) -> tuple[Tensor, Tensor]:
            assert type(inputs.user) is Tensor
            return ad_id.float() / 1000, torch.full(ad_id.shape, 0.5)

    own = world.replace(rankers=Own())
    ads = torch.tensor([[3, 7]])
    ids = world.request_ids("test")[:1]
    with Accelerator():
        found = own.to(DEVICE).outcome(ids.to(DEVICE), ads.to(DEVICE))
        check(torch.tensor([[0.003, 0.007]]), found.pctr, "pctr")


def test_a_tree_moves_there_and_back(world: World) -> None:
    trie, eligible = world.trie, world.eligible(world.request_ids("train")[:4])
    with Accelerator():
        moved = trie.to(DEVICE)
        legal, own = moved.restrict(eligible.to(DEVICE)), trie.restrict(eligible)
        check(own.path_ad, legal.path_ad, "path_ad")
        check(own.root_mask, legal.root_mask, "root_mask")
        assert moved.to(DEVICE) is moved
        with pytest.raises(ValueError, match="ads are retired on the CPU; this catalogue is on"):
            moved.retire(torch.tensor([0]))
        back = moved.to("cpu")
        assert torch.equal(back.paths, trie.paths)
        assert back.runs.first_ads.tolist() == trie.runs.first_ads.tolist()
    assert world.to("cpu") is world


@pytest.mark.parametrize("kind", [RQKMeans, UASID])
def test_tokenizers_answer_where_they_are_asked(kind: Any) -> None:
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    tokenizer: Tokenizer = kind(num_levels=2, num_codes=8)
    tokenizer.fit(rows)
    codes = tokenizer.encode(rows)
    with Accelerator():
        check(codes, tokenizer.encode(rows.to(DEVICE)), "codes")
        check(tokenizer.decode(codes), tokenizer.decode(codes.to(DEVICE)), "embeddings")


def test_bf16_is_close_and_leaves_the_losses_in_float32(world: World) -> None:
    model = make_model(spec=world.spec).float().eval()
    ids = world.request_ids("train")[:32]
    low = RolloutConfig(num_candidates=8, precision="bf16")
    one = rollout(model, world, ids, None, RolloutConfig(num_candidates=8), 0, 0)
    other = rollout(model, world, ids, None, low, 0, 0)
    assert other["logits"].dtype == other["context"].h.dtype == torch.float32
    same = (one["codes"] == other["codes"]).all(-1)
    assert 0.9 < same.float().mean() < 1.0  # a draw near an edge may fall on the other side
    gap = (one["log_probs"] - other["log_probs"]).nan_to_num(0.0).exp() - 1
    assert 0.0 < gap[same].abs().max() < 0.2
    config = replace(SMALL, critic_replay=0, num_requests=32)
    runs = []
    for precision in ("float32", "bf16"):
        trained = copy.deepcopy(model)
        log = train(trained, world, "hepo", replace(config, precision=precision), 0)
        assert all(weight.dtype == torch.float32 for weight in trained.parameters())
        runs.append(log[0])
    assert runs[0]["loss"] != runs[1]["loss"]
    for name in ("reward", "entropy", "critic_loss", "grad_norm"):
        assert runs[1][name] == pytest.approx(runs[0][name], rel=0.1), name
    with pytest.raises(ValueError, match="precision must be one of"):
        RolloutConfig(precision="fp8")
