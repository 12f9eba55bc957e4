#!/usr/bin/env bash
# The whole DAG in a copy of the project, as `ray job submit --working-dir .` makes one. What it makes leaves the copy
# through the DVC remote, if there is one (`dvc remote add`), and MLFLOW_TRACKING_URI.
set -euo pipefail
[ -e .git ] || dvc config --local core.no_scm true
dvc repro prepare
python -m stages.train_all
dvc repro
if [ -n "$(dvc remote list)" ]; then dvc push; fi
