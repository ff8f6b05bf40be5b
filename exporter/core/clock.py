"""Clock skew between this host, MongoDB and AWS."""

MAX_SKEW = 300
"""A source whose clock is further from ours has failed (rule 6), and so has a date further in the future."""
