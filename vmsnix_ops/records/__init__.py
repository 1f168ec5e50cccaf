"""The records of runs, steps, AMIs, promotions, retirements and scans.

`tables` stores rows in Delta Lake, `schemas` defines their columns, `history` reads them, and `timings`
evaluates durations. `run_context` and `result` belong to the current run.
"""
