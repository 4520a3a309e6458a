"""What a command line makes."""

from benchmarks.run import read
from benchmarks.suite import SUITES, Settings, Suite, Suites, make_settings


def settings_of(*words: object, suites: Suites = SUITES) -> tuple[Suite, Settings]:
    suite, flags = read([str(word) for word in words], suites)
    return suite, make_settings(suite, flags, suites)
