# Packs the ends of the runner's newest logs and of ours into ~/.anklet-logs.tgz: at most COUNT files, at most SIZE bytes of each.
home=${RUNNER_HOME:-$HOME/actions-runner}
folder=$(mktemp -d "$HOME/.anklet-logs.XXXXXX") || exit
cd "$HOME" || exit
{
    ls -1t runner.log start-runner.log 2>/dev/null
    # Newest first. The runner chooses these names; they have no spaces.
    ls -1t "$home"/_diag/*.log 2>/dev/null
} | head -n "$COUNT" | while IFS= read -r log; do
    tail -c "$SIZE" "$log" >"$folder/${log##*/}" 2>/dev/null
done
tar -czf "$HOME/.anklet-logs.tgz" -C "$folder" .
rm -rf "$folder"
