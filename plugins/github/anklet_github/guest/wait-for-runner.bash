# Waits until the runner takes a job (if KNOWN=0) or ends, at most LIMIT seconds, and prints what it saw in one line
# (unseen: no trace of a runner for UNSEEN seconds):
#   anklet-runner state=<waiting|working|ended|gone|unseen> status=<run.sh's, or ?> removed=<0|1> left=<0|1>
# followed by the runner's last log lines about its job. Changes nothing. Written for bash 3.2, the version of macOS.
home=${RUNNER_HOME:-$HOME/actions-runner}
marks=$HOME/.anklet-runner
pid=
[ -f "$marks/pid" ] && pid=$(cat "$marks/pid")
[ -p "$marks/bell" ] && exec 9<>"$marks/bell"

say() {
    local status='?' removed=0 left=0
    [ -f "$marks/ended" ] && status=$(cat "$marks/ended")
    [ "$1" = ended ] && remains && left=1
    grep -aq 'Removed .runner' "$HOME/runner.log" 2>/dev/null && removed=1
    echo "anklet-runner state=$1 status=$status removed=$removed left=$left"
    grep -a 'Listening for Jobs\|Running job: \|completed with result: ' "$HOME/runner.log" 2>/dev/null | tail -n 3
    exit 0
}

# The runner creates this log when it takes a job. The image may hold earlier ones.
works() {
    local log
    for log in "$home"/_diag/Worker_*; do
        [ -e "$log" ] && ! grep -qxF "$log" "$marks/earlier" 2>/dev/null && return 0
    done
    return 1
}

# An operator's start script may leave no pid. The listener's command line holds its full path.
lives() {
    if [ -n "$pid" ]; then kill -0 "$pid" 2>/dev/null; else pgrep -f "$home/(bin/Runner\.Listener|run-helper\.sh)" >/dev/null; fi
}

# run.sh may leave the runner in the background: in its process group, or with the runner's folder in a command line.
remains() {
    { [ -n "$pid" ] && kill -0 -- "-$pid" 2>/dev/null; } || pgrep -f "$home/" >/dev/null 2>&1
}

nap() {
    local before=$SECONDS
    if [ -p "$marks/bell" ]; then
        read -r -t 1 -u 9 _ && return 0
        [ "$SECONDS" -gt "$before" ] && return 0
    fi
    sleep 1
}

seen=0
while :; do
    [ -f "$marks/ended" ] && say ended
    [ "$KNOWN" = 0 ] && works && say working
    if lives; then
        seen=1
    elif [ "$seen" = 1 ] || [ -n "$pid" ]; then
        # The mark follows a moment after the end.
        nap
        [ -f "$marks/ended" ] && say ended
        lives || say gone
    elif [ "$SECONDS" -ge "$UNSEEN" ]; then
        say unseen
    fi
    [ "$SECONDS" -ge "$LIMIT" ] && say waiting
    nap
done
