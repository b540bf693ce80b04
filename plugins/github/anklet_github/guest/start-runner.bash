#!/usr/bin/env bash
# Starts the runner and leaves it running when this script, and the command that called it, are gone. A JIT configuration is in
# ACTIONS_RUNNER_INPUT_JITCONFIG; the runner takes it from there and removes it from its environment.
set -euo pipefail

cd "${RUNNER_HOME:-$HOME/actions-runner}"
# A process group of its own; macOS has no setsid(1).
set -m
nohup ./run.sh >"$HOME/runner.log" 2>&1 </dev/null &
