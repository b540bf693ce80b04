#!/usr/bin/env bash
# Runs the listener until it has nothing more to do. Always exits 0, as GitHub's own script does.
cd "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)" || exit 1
while :; do
    ./bin/Runner.Listener run "$@"
    status=$?
    case $status in
    0) echo "Runner listener exit with 0 return code, stop the service, no retry needed." ;;
    1) echo "Runner listener exit with terminated error, stop the service, no retry needed." ;;
    2)
        echo "Runner listener exit with retryable error, re-launch runner in 5 seconds."
        sleep 5
        continue
        ;;
    5) echo "Runner listener exit with Session Conflict error, stop the service, no retry needed." ;;
    7)
        echo "Runner listener exit with deprecated version error code: $status."
        exit 7
        ;;
    *) echo "Exit with unknown error code: $status" ;;
    esac
    break
done
echo "Exiting runner..."
exit 0
