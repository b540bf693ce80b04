#!/usr/bin/env bash
# Registers the runner (token mode only). config.sh reads url, token, name and labels from ACTIONS_RUNNER_INPUT_*, so that
# none of them is visible as an argument.
set -euo pipefail

: "${ACTIONS_RUNNER_INPUT_URL:?}" "${ACTIONS_RUNNER_INPUT_TOKEN:?}" "${ACTIONS_RUNNER_INPUT_NAME:?}" "${ACTIONS_RUNNER_INPUT_LABELS:?}"
cd "${RUNNER_HOME:-$HOME/actions-runner}"
./config.sh --unattended --ephemeral --disableupdate --no-default-labels </dev/null
