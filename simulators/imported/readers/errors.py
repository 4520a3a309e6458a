"""What readers raise where a file is not what it should be."""


class LogFormatError(ValueError):
    """A file that is not in the format that was named, or with too many bad rows."""
