"""What is remembered: runs, their steps, the AMIs that they made, and what was found in the account.

`tables` keeps it (Delta Lake, append-only), `schemas` says what a row is, `history` asks for it, `timings`
and `slowness` make sense of it; `run_context` and `result` are the run that is under way.
"""
