"""Event tables as streams and token sequences."""
