import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.decoding.serving.answer import split
from gpr_rl.decoding.serving.collate import collate_requests
from gpr_rl.decoding.serving.masks import Mask, stacked
from gpr_rl.decoding.serving.stats import Meter
from gpr_rl.schema import Candidates
from tests.references.serving_fakes import GatedPolicy, every_path

ROOT = Path(__file__).resolve().parents[3]


def test_percentiles_are_of_the_latest_answers() -> None:
    meter = Meter()
    for _ in range(5_000):
        meter.answer(1_000.0)  # so long ago that they have left the window
    for ms in range(4_096):
        meter.answer(ms / 1_000.0)
    stats = meter.stats(queue_length=2, width=7)
    # of 0, 1, ..., 4095: the q-quantile is 4095 q
    assert stats.p50_ms == pytest.approx(2047.5)
    assert stats.p95_ms == pytest.approx(3890.25)
    assert stats.p99_ms == pytest.approx(4054.05)
    assert stats.answered == 9_096
    assert (stats.queue_length, stats.width) == (2, 7)


def test_means_are_over_batches_and_their_requests() -> None:
    meter = Meter()
    meter.batch(1, 40, 0.5)
    meter.batch(3, 20, 0.5)
    stats = meter.stats(0, 40)
    assert stats.mean_batch == 2.0
    assert stats.mean_width == 25.0  # (1 * 40 + 3 * 20) / 4
    assert meter.seconds_for(8) == 2.0  # 4 requests took a second


def test_nothing_was_measured_yet() -> None:
    stats = Meter().stats(0, 40)
    assert math.isnan(stats.p99_ms)
    assert math.isnan(stats.mean_batch)
    assert math.isnan(stats.hit_rate)
    assert stats.pending == 0


def test_masks_grow_with_the_catalogue() -> None:
    trie = CodeTrie(every_path()[:5], num_codes=4)
    mask = torch.tensor([True, False, True])
    table = stacked([Mask(mask, True), Mask(mask, False), Mask(None, False)], trie)
    assert table is not None
    assert table.int().tolist() == [[1, 0, 1, 0, 0], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert stacked([Mask(None, False)], trie) is None


def test_short_requests_are_padded_on_the_right(world) -> None:
    ids = world.request_ids("test")[:3]
    whole = world.request(ids)
    rows = [world.request(i[None]) for i in ids]
    length = (whole.tokens.kind != 0).sum(1).tolist()
    for row, n in zip(rows, length, strict=True):
        for name in ("kind", "codes", "action", "time_gap", "context"):
            setattr(row.tokens, name, getattr(row.tokens, name)[:, :n])
    before = rows[0].tokens.kind.shape
    batch = collate_requests(rows)
    for name in ("kind", "codes", "action", "time_gap", "context", "user", "preference"):
        expected = getattr(whole.tokens, name)
        if name not in ("user", "preference"):
            expected = expected[:, : max(length)]
        assert torch.equal(getattr(batch.tokens, name), expected)
    assert torch.equal(batch.request_id, ids)
    assert rows[0].tokens.kind.shape == before  # the caller's request is as it was


def weighted(policy, request, trie, num_candidates) -> Candidates:
    found = beam_search(policy, request, trie, num_candidates)
    found.log_weight = found.log_prob.sum(-1)
    return found


@pytest.mark.parametrize("search", [beam_search, weighted])
def test_who_keeps_an_answer_does_not_keep_its_batch(search) -> None:
    trie = CodeTrie(every_path(), num_codes=4)
    whole = search(GatedPolicy(), torch.arange(8), trie, 4)
    rows = split(whole)
    assert len(rows) == 8
    for i, row in enumerate(rows):
        assert row.batch_size == (1,)
        assert (row.log_weight is None) == (whole.log_weight is None)
        for name, value in row.items():
            assert torch.equal(value, getattr(whole, name)[i : i + 1])
            assert value.untyped_storage().nbytes() == value.nbytes


@pytest.mark.slow
def test_a_service_that_nobody_closed_ends_with_its_answers() -> None:
    program = """
from gpr_rl.decoding import CodeTrie, Recommender
from tests.references.serving_fakes import GatedPolicy, every_path, one
service = Recommender(GatedPolicy(), CodeTrie(every_path(), 4), deadline_ms=3_600_000.0)
for i in range(3):
    service.recommend(one(i)).add_done_callback(lambda answer: print(answer.result().valid.sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tensor(40)\n" * 3
