#!/usr/bin/env bash
# Registers this folder as a runner, or removes the registration.
cd "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)" || exit 1
case ${1:-} in
remove | --version | --commit) exec ./bin/Runner.Listener "$@" ;;
*) exec ./bin/Runner.Listener configure "$@" ;;
esac
