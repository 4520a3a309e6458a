"""Every test of this folder runs on each form that a level of the tree may have."""

import math
from collections.abc import Iterator

import pytest

from gpr_rl.decoding import tree, trie

FORMS = {"tables": (1 << 30, math.inf), "children": (0, math.inf), "rows": (0, 0.0)}


@pytest.fixture(scope="module", params=FORMS, autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    dense_bytes, uneven = FORMS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie, "DENSE_BYTES", dense_bytes)
        patch.setattr(tree, "UNEVEN", uneven)
        yield request.param
