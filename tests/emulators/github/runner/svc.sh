#!/usr/bin/env bash
# A service in the background: install, start, status, stop, uninstall. No launchd is behind it.
cd "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)" || exit 1
name=actions.runner.emulated
logs="$HOME/Library/Logs/$name"

running() { [ -s .service_pid ] && kill -0 "$(cat .service_pid)" 2>/dev/null; }

case ${1:-} in
install)
    [ -f .runner ] || { echo "Failed: run config.sh first" >&2; exit 1; }
    [ ! -f .service ] || { echo "Failed: error: exists $name" >&2; exit 1; }
    echo "Creating launch runner in $name"
    echo "$name" >.service
    echo "svc install complete"
    ;;
start)
    [ -f .service ] || { echo "Failed: not installed" >&2; exit 1; }
    mkdir -p "$logs"
    echo "starting $name"
    if ! running; then
        nohup ./run.sh --startuptype service >>"$logs/stdout.log" 2>>"$logs/stderr.log" </dev/null &
        echo $! >.service_pid
    fi
    ;;
status)
    echo "status $name:"
    [ -f .service ] || { echo "not installed"; exit 0; }
    if running; then
        printf 'Started:\n%s 0 %s\n' "$(cat .service_pid)" "$name"
    else
        echo "Stopped"
    fi
    ;;
stop)
    echo "stopping $name"
    if running; then
        pkill -INT -P "$(cat .service_pid)"
        rm -f .service_pid
    fi
    ;;
uninstall)
    "$0" stop
    rm -f .service
    ;;
*)
    echo "Usage: ./svc.sh [install, start, stop, status, uninstall]"
    exit 1
    ;;
esac
