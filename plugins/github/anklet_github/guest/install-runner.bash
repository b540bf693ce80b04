#!/usr/bin/env bash
# Makes sure that $HOME/actions-runner holds GitHub's runner. Uses the one in the image; if there is none, downloads it and verifies
# its checksum. Settings: RUNNER_VERSION, RUNNER_DOWNLOAD_URL (with ${arch} for x64 or arm64), RUNNER_SHA256.
set -euo pipefail

home=${RUNNER_HOME:-$HOME/actions-runner}
if [ -x "$home/run.sh" ]; then
    echo "the image holds a runner: $home"
    [ ! -x "$home/bin/Runner.Listener" ] || echo "runner version: $("$home/bin/Runner.Listener" --version 2>/dev/null || echo unknown)"
    exit 0
fi

case "${RUNNER_ARCH:-$(uname -m)}" in
arm64 | aarch64) arch=arm64 ;;
*) arch=x64 ;;
esac
url=${RUNNER_DOWNLOAD_URL//\$\{arch\}/$arch}

if [ -z "${RUNNER_SHA256:-}" ]; then
    echo "the image holds no runner, and a download needs a checksum: set runner.sha256 for version $RUNNER_VERSION" \
        "(see the release notes of actions/runner), or put a runner into the image" >&2
    exit 65
fi

archive=$(mktemp "${TMPDIR:-/tmp}/actions-runner.XXXXXX")
trap 'rm -f "$archive"' EXIT
curl --fail --silent --show-error --location --retry 3 --output "$archive" "$url"

if command -v shasum >/dev/null; then
    actual=$(shasum -a 256 "$archive")
else
    actual=$(sha256sum "$archive")
fi
actual=${actual%% *}
if [ "$actual" != "$RUNNER_SHA256" ]; then
    echo "the checksum of $url is $actual, not $RUNNER_SHA256" >&2
    exit 66
fi

mkdir -p "$home"
tar -xzf "$archive" -C "$home"
echo "installed runner $RUNNER_VERSION in $home"
