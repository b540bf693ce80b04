#!/usr/bin/env bash
# Starts the runner so that it keeps running after this script and its caller have ended. A JIT configuration is in
# ACTIONS_RUNNER_INPUT_JITCONFIG; the runner reads it there and removes it from its environment.
#
# Leaves marks for wait-for-runner.bash in ~/.anklet-runner: `pid`, then `ended` with the exit status of run.sh. `bell` is a named
# pipe; a line in it reports the end at once.
set -euo pipefail

marks=$HOME/.anklet-runner
mkdir -p "$marks"
# Without the pipe, wait-for-runner.bash checks every second.
mkfifo "$marks/bell" 2>/dev/null || true
cd "${RUNNER_HOME:-$HOME/actions-runner}"
# Gives the runner its own process group; macOS has no setsid(1).
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
