"""Readers of public logs, one module per format; importing this package registers all of them."""

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
