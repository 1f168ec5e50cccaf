"""Run a notebook with papermill: kernel, signals, output, side effects, status."""
