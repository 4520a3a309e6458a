"""Swing: which items go together in what users do, without popular items drowning the rest.

score(i, j) = sum over pairs u < v of users who have both of 1 / (alpha + |I_u and I_v|): two users
who share little else say more about the two items (Yang et al., 2020).

Dims: n interactions, M items, P pairs.
"""

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def swing_pairs(
    user_id: IntArray,
    item_id: IntArray,
    *,
    num_neighbors: int = 10,
    alpha: float = 1.0,
    max_users_per_item: int = 200,
    seed: int = 0,
) -> tuple[IntArray, NDArray[np.float64]]:
    """Return each item's highest-scoring partners, `num_neighbors` at most, ties to the lower id.

    Ids are int64 [n], from 0 on; a user's second interaction with an item counts no more. An item
    with more than `max_users_per_item` users is scored by so many, drawn at random by `seed`.

    Returns:
        pairs int64 [P, 2], (item, partner), and their scores float64 [P], all above 0.

    Raises:
        ValueError: Arrays of different lengths, negative ids, or alpha not above 0.
    """
    user_id, item_id = np.asarray(user_id), np.asarray(item_id)
    if user_id.shape != item_id.shape or user_id.ndim != 1:
        raise ValueError(
            f"user_id and item_id must be [n] both, got {user_id.shape} and {item_id.shape}"
        )
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    if min(user_id.min(initial=0), item_id.min(initial=0)) < 0:
        raise ValueError("user_id and item_id must not be negative")
    ones = np.ones(len(user_id))
    shape = user_id.max(initial=0) + 1, item_id.max(initial=0) + 1
    has = sp.csr_matrix((ones, (user_id, item_id)), shape=shape)
    has.data[:] = 1.0
    by_item = has.T.tocsr()
    rng = np.random.default_rng(seed)
    pairs, scores = [np.empty((0, 2), dtype=np.int64)], [np.empty(0)]
    for item in range(by_item.shape[0]):
        users = by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]]
        if len(users) > max_users_per_item:
            users = np.sort(rng.choice(users, max_users_per_item, replace=False))
        if len(users) < 2:
            continue
        rows = has[users]
        weight = 1.0 / (alpha + (rows @ rows.T).toarray())
        np.fill_diagonal(weight, 0.0)
        score = np.asarray(rows.multiply(weight @ rows).sum(0)).ravel() / 2.0
        score[item] = 0.0
        best = np.argsort(-score, kind="stable")[:num_neighbors]
        best = best[score[best] > 0]
        pairs.append(np.stack([np.full(len(best), item), best], axis=1))
        scores.append(score[best])
    return np.concatenate(pairs).astype(np.int64), np.concatenate(scores)
