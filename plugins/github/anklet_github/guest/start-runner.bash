#!/usr/bin/env bash
# Starts the runner and leaves it running when this script, and the command that called it, are gone. A JIT configuration is in
# ACTIONS_RUNNER_INPUT_JITCONFIG; the runner takes it from there and removes it from its environment.
#
# Leaves marks for wait-for-runner.bash in ~/.anklet-runner: `pid`, then `ended` with run.sh's status; `bell` rings at the end.
set -euo pipefail

marks=$HOME/.anklet-runner
mkdir -p "$marks"
# Without a bell, the one who waits looks every second.
mkfifo "$marks/bell" 2>/dev/null || true
cd "${RUNNER_HOME:-$HOME/actions-runner}"
# A process group of its own; macOS has no setsid(1).
set -m
(
    trap '' HUP
    [ ! -p "$marks/bell" ] || exec 9<>"$marks/bell"
    status=0
    ./run.sh 9>&- || status=$?
    echo "$status" >"$marks/ended.new"
    mv "$marks/ended.new" "$marks/ended"
    [ ! -p "$marks/bell" ] || echo ended >&9
) >"$HOME/runner.log" 2>&1 </dev/null &
echo "$!" >"$marks/pid"
