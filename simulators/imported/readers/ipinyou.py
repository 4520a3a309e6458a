"""Lines of iPinYou logs in the formalised format (make-ipinyou-data), as every reader takes them.

Tab separated, with a header. The first season has no advertiser and usertag; rows of test files
have two counts at the end, which their header may leave out.
"""

# fmt: off
LOG_COLUMNS = (
    "click", "weekday", "hour", "bidid", "timestamp", "logtype", "ipinyouid", "useragent", "IP",
    "region", "city", "adexchange", "domain", "url", "urlid", "slotid", "slotwidth", "slotheight",
    "slotvisibility", "slotformat", "slotprice", "creative", "bidprice", "payprice", "keypage",
    "advertiser", "usertag",
)
# fmt: on
TEST_COUNTS = ("nclick", "nconversation")
"""What rows of test files may have after the other columns."""


def split_line(line: str) -> list[str]:
    """Return the cells of a line, as they are."""
    return line.rstrip("\r\n").split("\t")
