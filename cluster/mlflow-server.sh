#!/usr/bin/env bash
# An MLflow server that several machines log to: cluster/mlflow-server.sh FOLDER [HOST [PORT]], then elsewhere
# export MLFLOW_TRACKING_URI=http://HOST:PORT. It asks nobody who they are: beyond 127.0.0.1 only behind a firewall or a proxy that does.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
exec mlflow server --backend-store-uri "sqlite:///$folder/mlflow.db" --artifacts-destination "$folder/artifacts" \
  --host "${2:-127.0.0.1}" --port "${3:-5000}" --workers 1
