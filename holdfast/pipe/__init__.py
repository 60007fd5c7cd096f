"""`holdfast pipe`: reads events, steps the session of each, and writes one record for each, exactly once.

`sessions` holds the rule that makes it so; `sources` and `sinks` say what it needs of the two ends.
"""
