"""Run a notebook with papermill: kernel, signals, output, verdict."""
