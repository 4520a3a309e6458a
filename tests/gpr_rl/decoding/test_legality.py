"""No search ever shows an ad that may not be shown: random requests, policies and updates.

More rounds: `python -c "from tests.gpr_rl.decoding.test_legality import check; check(2_500)"` asks
for ten million requests.
"""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gpr_rl.decoding import CodeTrie, beam_search, gumbel_paths, sample_paths, tree_search

BATCH, ADS, CODES, LEVELS, KEPT = 4_096, 300, 8, 3, 4


class RandomPolicy:
    """Any code may be likely, or next to impossible."""

    def encode(self, request: SimpleNamespace) -> Tensor:
        return request.request_id

    def step(self, context: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = 20.0 * torch.rand(*prefix.shape[:2], CODES).log()
        return log_prob, torch.randn(prefix.shape[:2])


def eligible_rows(number: int) -> Tensor:
    """Rows of all kinds: many ads, few, one, none."""
    eligible = torch.rand(number, ADS) < torch.rand(number, 1) ** 3
    eligible[::7] = False
    eligible[3::7] = False
    eligible[torch.arange(3, number, 7), torch.randint(ADS, (len(range(3, number, 7)),))] = True
    return eligible


def check(rounds: int) -> int:
    """Search for `BATCH` requests so often, while ads come and go; return how many were shown."""
    torch.manual_seed(rounds)
    codes = torch.randint(CODES, (ADS, LEVELS))
    trie, policy = CodeTrie(codes, CODES), RandomPolicy()
    rows = eligible_rows(64)
    trie.signatures(rows)
    stop = threading.Event()

    def come_and_go() -> None:
        generator = torch.Generator().manual_seed(0)
        while not stop.is_set():
            ads = torch.randperm(ADS, generator=generator)[:30]
            trie.retire(ads)
            trie.add(codes[ads], ads)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    shown = 0
    try:
        for number in range(rounds):
            asked = SimpleNamespace(request_id=torch.arange(BATCH) + number * BATCH)
            signature = torch.randint(64, (BATCH,))
            by_row = number % 2 == 0
            eligible = eligible_rows(BATCH) if by_row else rows[signature]
            who = {"eligible": eligible} if by_row else {"signature": signature}
            search = number % 5
            if search == 0:
                found = gumbel_paths(policy, asked, trie, KEPT, 0, number, **who)
            elif search == 1:
                found = sample_paths(policy, asked, trie, KEPT, 0, number, **who)
            else:
                more = {"value_weight": 0.5} if search == 2 else {"width_range": (1, 3)}
                found = beam_search(policy, asked, trie, KEPT, **who, **more)
            shown += count_shown(found.codes, found.ad_id, found.valid, codes, eligible)
    finally:
        stop.set()
        thread.join()
    return shown


def count_shown(
    paths: Tensor, ad_id: Tensor, valid: Tensor, codes: Tensor, eligible: Tensor
) -> int:
    """Return how many ads were shown, each of which must be eligible and have its own path."""
    assert torch.equal(valid, ad_id >= 0)
    ad = ad_id.clamp_min(0)
    assert (eligible.gather(1, ad) | ~valid).all()
    assert ((codes[ad] == paths).all(-1) | ~valid).all()
    assert not valid[~eligible.any(1)].any()
    return int(valid.sum())


@pytest.mark.slow
def test_nobody_sees_what_may_not_be_shown() -> None:
    assert check(rounds=25) > 25 * BATCH


def test_a_tree_search_neither() -> None:
    torch.manual_seed(0)
    codes, eligible = torch.randint(CODES, (ADS, LEVELS)), eligible_rows(64)
    asked = SimpleNamespace(request_id=torch.arange(64))
    found = tree_search(RandomPolicy(), asked, CodeTrie(codes, CODES), KEPT, 40, 0, 0, eligible)
    assert count_shown(found.codes, found.ad_id, found.valid, codes, eligible) > 64
