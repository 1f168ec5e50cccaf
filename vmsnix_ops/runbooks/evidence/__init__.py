"""The archive of runs: run folders, redaction, reports, GitHub outputs, repair."""
