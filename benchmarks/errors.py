"""Whose fault an error is, and how it is said in one line."""

OUR_PACKAGES = ("gpr_rl", "simulators", "envs", "agents")


class UserError(ValueError):
    """A user's mistake: the command ends with 2 and this message."""


def is_users_mistake(error: BaseException) -> bool:
    """Return whether an error speaks to the user: `UserError`, or a ValueError class of ours."""
    home = type(error).__module__.partition(".")[0]
    return isinstance(error, UserError) or (home in OUR_PACKAGES and isinstance(error, ValueError))


def describe_error(error: BaseException) -> str:
    """Return an error as one line: a user's mistake as it says itself, others with their type."""
    message = " ".join(str(error).split())
    if is_users_mistake(error):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
