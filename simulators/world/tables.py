"""What the columns of a world's tables may hold."""

BID_TYPES = ("CPM", "CPC", "OCPA")
"""`bid_type` of `ads.parquet`, in the order of their numbers in tensors."""
AGE_EDGES = (25, 32, 40, 50, 60)
"""Ages (years) at which a new bucket begins."""
NUM_AGE_BUCKETS = len(AGE_EDGES) + 1
