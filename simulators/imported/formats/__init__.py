"""Readers of public logs, one module per format; importing this package registers all of them.

May import the readers' room and `gpr_rl.schema`; no world.
Start with `generic`, which names every column that a log may have.
"""

from simulators.imported.formats import (  # noqa: F401
    amazon_reviews,
    generic,
    ipinyou,
    journey,
    kuairand,
    movielens,
    taobao_ad,
    tencentgr,
)
