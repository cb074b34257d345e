"""Settings of the whole test suite."""

from hypothesis import settings

# Always the same examples, however slow the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("repeatable")
