"""Counted operations are those of the formulas, worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure.flops import training_flops


@pytest.mark.parametrize("kind", ["none", "causal", "mask"])
def test_attention_on_the_cpu_counts(kind: str) -> None:
    query = torch.randn(2, 3, 5, 8)
    key = value = torch.randn(2, 3, 7, 8)
    mask = torch.ones(5, 7, dtype=torch.bool) if kind == "mask" else None

    def attend() -> None:
        F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=kind == "causal"
        )

    assert training_flops(attend) == 3 * 2 * (2 * 3 * 5 * 7 * 8) * 2


def test_linear_layers_and_batched_products_count() -> None:
    layer, x = nn.Linear(4, 6), torch.randn(10, 4)
    assert training_flops(lambda: layer(x)) == 3 * 2 * 10 * 4 * 6
    bias, left, right = torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.randn(2, 5, 4)
    product = 3 * 2 * (2 * 3 * 5 * 4)
    assert training_flops(lambda: torch.baddbmm(bias, left, right)) == product
