"""The parts of the decoding suite on tiny sizes: what they measure is what they say."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from agents.warm_start import build_model
from benchmarks.decoding import catalogues, peers, precision
from benchmarks.decoding.catalogues import Bench, catalogue_figures, measure_catalogue
from benchmarks.decoding.decoders import DecoderBench, measure_decoders
from benchmarks.decoding.inputs import random_paths
from benchmarks.decoding.peers import Peers, agreement, measure_peers, published_t5
from benchmarks.decoding.policies import TablePolicy, Trained, policy_file, recall
from benchmarks.decoding.precision import measure_precision, policies_of, quantised
from benchmarks.decoding.presets import (
    CatalogueSize,
    CatalogueSizes,
    DecoderSizes,
    DecodingPreset,
    PeerSizes,
    PrecisionSizes,
    WidthSizes,
)
from benchmarks.decoding.timings import read_observed
from benchmarks.decoding.widths import GROWING, NARROW, TREE, Searches, measure_widths
from benchmarks.decoding.work import useful_gflop
from benchmarks.measure.flops import training_flops
from benchmarks.runs.results import check_results, under
from gpr_rl.decoding import CodeTrie
from gpr_rl.models import HHDConfig
from gpr_rl.policy import save_policy
from simulators.world import World

LITTLE = DecodingPreset(
    world="tiny",
    num_seeds=1,
    num_repeats=1,
    limit_s=0.0,
    peers=PeerSizes(
        num_ads=30, num_codes=4, num_users=5, num_items=2, dim=8, num_heads=2, head_dim=6,
        ffn_dim=16, num_layers=1, num_beams=5, batches=(1, 3), num_compared=4,
    ),
    catalogues=CatalogueSizes(
        sizes=(CatalogueSize(num_ads=300, num_codes=8),), batch=3, num_beams=4, num_signatures=2,
        num_updated=10,
    ),
    widths=WidthSizes(
        flat=10_000, growing=(2, 4, 8), width_range=(1, 3), narrow=14, num_candidates=5, batch=4,
        num_requests=6,
    ),
    decoders=DecoderSizes(
        num_ads=30, num_codes=4, num_items=2, dim=8, num_layers=2, num_lazy_layers=1, num_beams=5,
        batch=2,
    ),
    precision=PrecisionSizes(num_beams=12, num_candidates=5, batch=4, num_requests=6),
)  # fmt: skip
TIME = r"(?:_s|_ms|_per_s)$"


@pytest.fixture(scope="module")
def out(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a policy that was not trained."""
    folder = tmp_path_factory.mktemp("run")
    policy_file(folder).parent.mkdir()
    model = build_model(world, HHDConfig(dim=16, num_hsd_layers=1), seed=3)
    with torch.no_grad():
        model.ptd.output.mul_(20.0)  # far from uniform
    save_policy(model, policy_file(folder))
    return folder


@pytest.fixture(scope="module")
def trained(out: Path) -> Trained:
    return Trained(out, "tiny", 0, ())


def _on_world(out: Path) -> dict:
    return {"out": out, "world": "tiny", "world_seed": 0, "seed": 1, "reward": (), "sizes": LITTLE}


def _values(rows: pd.DataFrame, **at: str | int) -> dict[str, float]:
    return under(rows, **at).set_index("metric")["value"].to_dict()


def test_useful_work_by_hand() -> None:
    sizes = PeerSizes(
        num_codes=4, num_levels=2, num_items=1, dim=2, num_heads=1, head_dim=3, ffn_dim=5,
        num_layers=2, num_beams=2,
    )  # fmt: skip
    assert (sizes.num_inputs, sizes.inner_dim) == (3, 3)
    # Encoder, a layer and an id: four maps 2 x 3 (48 operations), two maps 2 x 5 (40), three keys
    # and three values of width 3 (36). Two layers, three ids.
    # Memory: two maps 2 x 3 (24) for three ids and two layers.
    # Decoder, a row and a layer: as above, and two more maps 2 x 3: 148. Three rows, the first with
    # one key and value of its own (12), two others with two each (48): 504 a layer.
    # Head: 4 codes of width 2 (16) in three rows.
    want = {"encoder": 2 * 3 * 124, "memory": 2 * 3 * 24, "decoder": 2 * 504, "head": 48}
    assert useful_gflop(sizes) == pytest.approx({part: x / 1e9 for part, x in want.items()})


def test_useful_work_of_the_published_sizes() -> None:
    sizes = PeerSizes()
    assert (sizes.num_ids, sizes.num_inputs, sizes.inner_dim) == (2_770, 61, 384)
    found = {part: round(gflop, 3) for part, gflop in useful_gflop(sizes).items()}
    assert found == {"encoder": 0.247, "memory": 0.048, "decoder": 0.393, "head": 0.005}
    # With heads that share the width of 128 among them the work is .43 GFLOP.
    narrow = {k: round(x, 3) for k, x in useful_gflop(replace(sizes, num_heads=2)).items()}
    assert narrow == {"encoder": 0.168, "memory": 0.016, "decoder": 0.244, "head": 0.005}


def test_work_of_the_encoder_is_what_torch_counts() -> None:
    pytest.importorskip("transformers")
    sizes = LITTLE.peers
    model = published_t5(sizes).eval()
    ids = torch.zeros(1, sizes.num_inputs, dtype=torch.long) + 3
    counted = training_flops(lambda: model.encoder(ids)) / 3
    assert counted == pytest.approx(1e9 * useful_gflop(sizes)["encoder"], rel=1e-6)


def test_the_published_t5_has_the_published_sizes() -> None:
    pytest.importorskip("transformers")
    sizes = PeerSizes(num_layers=1)
    model = published_t5(sizes)
    assert tuple(model.shared.weight.shape) == (2_770, 128)
    attention, feed = (
        model.decoder.block[0].layer[1].EncDecAttention,
        model.encoder.block[0].layer[1],
    )
    assert tuple(attention.q.weight.shape) == (384, 128)
    assert tuple(feed.DenseReluDense.wi.weight.shape) == (1_024, 128)


def test_both_searches_find_the_same_legal_paths() -> None:
    pytest.importorskip("transformers")
    found = Peers(LITTLE.peers, seed=2)
    tokens, (ids, mask) = found.part(0, 3)
    assert ids.shape == (3, LITTLE.peers.num_inputs)
    assert mask.all()
    ours, (codes, score) = found.ours(tokens), found.scored(ids, mask)
    assert torch.equal(ours.codes, codes)
    torch.testing.assert_close(ours.log_prob.sum(-1), score, rtol=1e-5, atol=1e-5)
    legal = {tuple(path) for path in found.trie.paths.tolist()}
    assert {tuple(path) for path in codes.flatten(0, 1).tolist()} <= legal
    agreed = agreement(found, 4)
    assert (agreed["same_paths_share"], agreed["shared_share"]) == (1.0, 1.0)
    assert 0 <= agreed["largest_difference"] < 1e-4


def test_agreement_sees_a_search_that_is_off() -> None:
    pytest.importorskip("transformers")
    found = Peers(LITTLE.peers, seed=2)
    exact = found.scored

    def off(ids, mask):
        codes, score = exact(ids, mask)
        codes = codes.clone()
        codes[0, 0] = -1  # one of five paths of the first request is another
        return codes, score + 0.25

    found.scored = off
    agreed = agreement(found, 4)  # three requests, then one: the first of both is off
    assert agreed["same_paths_share"] == 0.5
    assert agreed["shared_share"] == pytest.approx((0.8 + 1 + 1 + 0.8) / 4)
    assert agreed["largest_difference"] == pytest.approx(0.25, abs=1e-4)


def test_rows_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(peers, "product_rate", lambda *shape: 50.0)
    rows = check_results(measure_peers(seed=2, sizes=LITTLE), "rows")
    assert set(rows["method"]) == {"peers"}
    for batch in (1, 3):
        for mode in ("ours", "transformers"):
            assert _values(rows, mode=mode, batch=batch)["requests_per_s"] > 0
    assert _values(rows, mode="bf16")["product_gflop_per_s"] == 50.0


def test_without_transformers_there_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "is_installed", lambda: False)
    rows = check_results(measure_peers(seed=2, sizes=LITTLE), "rows")
    assert rows[["mode", "metric", "value"]].to_numpy().tolist() == [
        ["transformers", "is_installed", 0.0]
    ]


def test_the_table_policy_is_one_and_free() -> None:
    policy = TablePolicy(4, num_levels=2, num_codes=6, seed=0)
    prefix = torch.zeros(4, 3, 1, dtype=torch.int64)
    log_prob, value = policy.step(torch.arange(4), prefix)
    assert log_prob.shape == (4, 3, 6)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(4, 3))
    assert torch.equal(log_prob[:, 0], log_prob[:, 2])
    assert not torch.equal(log_prob[0], log_prob[1])
    assert value.eq(0).all()
    again, _ = policy.step(torch.arange(2), prefix[:2])
    assert again.data_ptr() == log_prob.data_ptr()  # nothing is made anew
    assert torch.equal(again, log_prob[:2])


def _bench() -> Bench:
    generator = torch.Generator().manual_seed(0)
    trie = CodeTrie(random_paths(300, 8, 3, generator), 8)
    return Bench(trie, LITTLE, 0, generator)


def test_signatures_and_rows_show_the_same_ads() -> None:
    bench = _bench()
    by_row = bench.search(**bench.restriction("eligible"))
    by_signature = bench.search(**bench.restriction("signature"))
    assert torch.equal(by_row.ad_id, by_signature.ad_id)
    assert not torch.equal(by_row.ad_id, bench.search(**bench.restriction("all")).ad_id)
    assert bench.restriction("eligible")["eligible"].gather(1, by_row.ad_id).all()


def test_updates_change_the_catalogue() -> None:
    bench = _bench()
    rows = [(metrics, at) for metrics, at in bench.updates() if "update_ms" in metrics]
    assert [at["part"] for _, at in rows] == ["add", "retire", "set_active"]
    # a round to warm up and one that counts: ten ads each time
    assert bench.trie.num_ads == 320
    assert len(bench.trie.tree.ad_id) == 300
    assert bench.trie.version == 6
    resting = ~bench.trie.tree.active_ads[bench.trie.tree.ad_id.long()]
    assert 0 < resting.sum() <= 10


def test_figures_of_a_catalogue() -> None:
    size = LITTLE.catalogues.sizes[0]
    found = catalogue_figures(size=size, seed=0, sizes=LITTLE)
    figures = {
        (name, at.get("mode", at.get("part", ""))) for metrics, at in found for name in metrics
    }
    for mode in ("all", "eligible", "signature"):
        assert {("step_ms", mode), ("prepare_ms", mode), ("search_ms", mode)} <= figures
    for name in ("build_s", "array_mib", "save_s", "load_s", "signature_ms"):
        assert (name, "") in figures
    few = replace(LITTLE, catalogues=replace(LITTLE.catalogues, max_masked=299))
    masked = [at for _, at in catalogue_figures(size=size, seed=0, sizes=few)]
    assert {at.get("mode") for at in masked} == {None, "all", "signature"}


def test_rows_of_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = [({"build_s": 0.5}, {}), ({"peak_mib": 7.0}, {"part": "build"})]
    monkeypatch.setattr(catalogues, "in_fresh_process", lambda call, **kwargs: figures)
    size, file = CatalogueSize(num_ads=300), tmp_path / "parts" / "observed-300.csv"
    rows = measure_catalogue(size=size, seed=2, sizes=LITTLE, file=file)
    columns = ["method", "num_ads", "seed", "part", "metric", "value"]
    assert rows[columns].to_numpy().tolist() == [["catalogues", 300, 2, "", "build_s", 0.5]]
    seen = read_observed(tmp_path)
    assert seen[columns].to_numpy().tolist() == [["catalogues", 300, 2, "build", "peak_mib", 7.0]]
    monkeypatch.setattr(catalogues, "free_bytes", lambda: 300.0 * catalogues.BYTES_PER_AD - 1)
    assert len(measure_catalogue(size=size, seed=2, sizes=LITTLE, file=file)) == 0
    assert len(read_observed(tmp_path)) == 0


def test_recall_by_hand() -> None:
    found = torch.tensor([[3, 1, 9], [4, -1, -1], [5, 6, 7]])
    wanted = torch.tensor([[1, 2, 3], [4, 5, -1], [7, 6, 5]])
    torch.testing.assert_close(recall(found, wanted), torch.tensor([2 / 3, 1 / 2, 1.0]))


def test_a_beam_as_wide_as_the_catalogue_leaves_nothing_out(trained: Trained) -> None:
    """Against log-probabilities of all paths, scored in one pass each."""
    (asked,) = trained.asked(trained.drawn(0, 3), 3)
    searches, trie = Searches(trained, LITTLE.widths, seed=0), trained.world.trie
    codes = trie.paths.expand(3, -1, -1)
    with torch.no_grad():
        context = trained.model.encode(asked.request)
        logits = trained.model.logits(context, codes).log_softmax(-1)
    total = logits.gather(-1, codes[..., None])[..., 0].sum(-1)
    ads = trie.restrict(asked.eligible).path_ad
    best = total.masked_fill(ads < 0, -torch.inf).topk(5).indices
    assert torch.equal(searches.exhaustive(asked), ads.gather(1, best))


def test_widths_are_cut_to_the_prefixes_there_are(trained: Trained) -> None:
    tree = trained.world.trie.tree
    nodes = [len(code) - 1 for code in tree.code[1:]]
    assert trained.widths(10_000) == tuple(nodes)
    assert trained.widths(2, 4) == (2, 4, 4)
    searches = Searches(trained, LITTLE.widths, seed=0)
    assert searches.model_steps(GROWING) == 1 + 2 + 4
    # both ask about the empty prefix and what is kept at the first two levels
    first = min(14, nodes[0])
    assert searches.model_steps(NARROW) == searches.model_steps(TREE) == 1 + first + 14


def test_rows_of_widths(out: Path) -> None:
    rows = check_results(measure_widths(**_on_world(out)), "rows")
    found = {mode: _values(rows, mode=mode) for mode in rows["mode"].unique()}
    assert set(found) == {"flat", "growing", "value_guided", "narrow", "tree_search"}
    assert found["flat"]["recall"] == 1.0
    assert 0 < found["growing"]["recall"] < 1
    assert found["flat"]["model_steps"] > found["narrow"]["model_steps"]
    assert all(x["requests_per_s"] > 0 for x in found.values())
    steady = rows[~rows["metric"].str.contains(TIME)]
    again = measure_widths(**_on_world(out))
    again = again[~again["metric"].str.contains(TIME)]
    assert steady["value"].tolist() == again["value"].tolist()


def test_the_value_found_is_the_best_reward(trained: Trained) -> None:
    ids = trained.drawn(0, 2)
    ads = torch.tensor([[3, -1], [5, 7]])
    value = trained.reward(ids, ads)
    assert value[0, 1] == -torch.inf
    assert value[0].amax() == value[0, 0]
    want = trained.world.outcome(ids, ads.clamp_min(0))
    assert torch.allclose(value[1], trained._reward(want)[0][1])


def test_decoders_have_the_same_sizes_and_legal_lists() -> None:
    bench = DecoderBench(LITTLE.decoders, seed=1)
    plain, lazy = (model.policy for model in bench.models.values())
    assert lazy.config.decoder == "lazy_ar"
    assert lazy.config == replace(plain.config, decoder="lazy_ar", num_lazy_layers=1)
    for name in bench.models:
        found = bench.search(name)
        assert found.valid.all()
        assert (bench.trie.restrict().resolve(found.codes) == found.ad_id).all()
    rows = check_results(measure_decoders(seed=1, sizes=LITTLE), "rows")
    assert set(rows["mode"]) == {"plain", "lazy_ar"}


def test_rows_of_precision(out: Path) -> None:
    rows = check_results(measure_precision(**_on_world(out)), "rows")
    exact = _values(rows, mode="float32")
    assert (exact["top_1_share"], exact["top_k_share"], exact["largest_difference"]) == (1, 1, 0)
    for mode in ("bf16", "int8"):
        found = _values(rows, mode=mode)
        assert found["illegal_ads"] == 0
        assert 0 < found["largest_difference"] < 5
        assert found["top_k_share"] > 0.5
    assert set(rows["mode"]) == {"float32", "bf16", "int8"}


def test_int8_leaves_the_model_as_it_was(trained: Trained) -> None:
    before = {name: x.clone() for name, x in trained.model.state_dict().items()}
    made = quantised(trained.model)
    assert type(made.ptd.decoder.blocks[0].qkv).__module__.startswith("torch.ao")
    after = trained.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_precision_without_int8(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "can_quantise", lambda: False)
    assert list(policies_of(trained.model)) == ["float32", "bf16"]


def test_agreement_of_lists_by_hand(trained: Trained) -> None:
    (asked,) = trained.asked(trained.drawn(0, 2), 2)
    searches = Searches(trained, LITTLE.widths, seed=0)
    wanted = searches.by_name["flat"](asked)
    found = wanted.clone()
    found.ad_id[0, :2] = wanted.ad_id[0, :2].flip(0)
    found.log_prob[0, :2] = wanted.log_prob[0, :2].flip(0) + 0.5
    shown = torch.ones_like(asked.eligible)
    shown[1, wanted.ad_id[1, 3]] = False
    agreed = precision.agreement(found, wanted, shown)
    assert agreed["top_1_share"] == 0.5
    assert agreed["top_k_share"] == 1.0
    # three levels, each off by .5
    assert agreed["largest_difference"] == pytest.approx(1.5, abs=1e-5)
    assert agreed["illegal_ads"] == 1


def test_instructions_are_read_from_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_PROCESSOR", file)
    assert precision.has_instructions() == {}
    file.write_text("flags : sse avx2 avx512_vnni\n")
    assert precision.has_instructions() == {"bf16": False, "int8": True}
