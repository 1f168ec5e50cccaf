"""The evidence of runs: run folders, the archive, reports, GitHub outputs, repair."""
