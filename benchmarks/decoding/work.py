"""How many operations a search needs at least, from the sizes of the model alone.

Dims: S input ids, W beams, L levels, V codes, D width, I width of all heads, F of the hidden layer.
"""

from benchmarks.decoding.presets import PeerSizes

PARTS = {
    "encoder": "encoder, all input ids",
    "memory": "the decoder's keys and values of the encoder's states, once per request",
    "decoder": "decoder, a row per prefix that is gone on from",
    "head": "scores of the next level's codes",
}
"""Parts of the work, in words."""


def useful_gflop(sizes: PeerSizes) -> dict[str, float]:
    """Return the useful work of one request's beam search with TIGER, by part, in GFLOP.

    A multiply-add is two operations. What a search can share is counted once: the first decoder
    input is one row for all beams, and keys and values of the encoder's states are those of the
    request. Norms, softmax, the choice of beams and the scores of ids that can't come next are not
    counted, though T5's probabilities are over all ids.
    """
    dim, inner, hidden = sizes.dim, sizes.inner_dim, sizes.ffn_dim
    layers, length = sizes.num_layers, sizes.num_inputs
    # queries, keys, values and output of self-attention: four maps between D and I
    attention = 2 * 4 * dim * inner
    # into the hidden layer and out of it: D F each
    feed_forward = 2 * 2 * dim * hidden
    # a query meets n keys (I multiply-adds each) and adds up n values (I each)
    per_key = 2 * 2 * inner
    # every input id passes every layer, and sees all S of them
    encoder = layers * length * (attention + feed_forward + per_key * length)
    # two maps from D to I for every input id and decoder layer
    memory = layers * length * 2 * 2 * dim * inner
    # one row for the empty prefix, then W rows at each of the L - 1 levels that a path goes on from
    rows = [1] + [sizes.num_beams] * (sizes.num_levels - 1)
    # cross-attention has its query and its output to map, and sees S keys
    row = attention + 2 * 2 * dim * inner + feed_forward + per_key * length
    # a row at level l sees the l + 1 inputs of its own prefix, itself included
    own = sum(number * per_key * (level + 1) for level, number in enumerate(rows))
    decoder = layers * (sum(rows) * row + own)
    # each row scores the V codes that may come next
    head = sum(rows) * 2 * dim * sizes.num_codes
    found = {"encoder": encoder, "memory": memory, "decoder": decoder, "head": head}
    return {part: operations / 1e9 for part, operations in found.items()}
