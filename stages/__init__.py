"""One small script per stage of dvc.yaml, run as `python -m stages.NAME` from the project's root."""
