#!/usr/bin/env bash
# Known holes in what Quire depends on, by the public advisory databases. They are on the network: without it this
# says so and ends well, so that a build without network is not broken by it.
#
#   tools/audit.sh            # looks at the environment of the `python` in the path; its own tools stay out of it
set -euo pipefail
site=$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! python -c 'import socket; socket.create_connection(("api.osv.dev", 443), timeout=5).close()' 2>"$work/why"; then
  echo "audit: the advisory database cannot be reached, nothing is audited: $(tail -n 1 "$work/why")"
  exit 0
fi
python -m venv "$work/venv"
if ! "$work/venv/bin/pip" install -q 'pip-audit>=2.7'; then
  echo "audit: pip-audit cannot be installed, nothing is audited"
  exit 0
fi
"$work/venv/bin/pip-audit" --vulnerability-service osv --path "$site" --progress-spinner off
