#!/usr/bin/env bash
# Known holes in what Quire depends on, by the public advisory databases. They are on the network: without it this
# says so and ends well, so that a build without network is not broken by it.
#
#   tools/audit.sh            # the environment in which it runs
set -euo pipefail
python -m pip install -q 'pip-audit>=2.7' || { echo "audit: pip-audit cannot be installed here: not audited"; exit 0; }
if ! python - <<'PY'
import socket
try:
    socket.create_connection(("api.osv.dev", 443), timeout=5).close()
except OSError:
    raise SystemExit(1)
PY
then
  echo "audit: the advisory database cannot be reached: not audited"
  exit 0
fi
python -m pip_audit --vulnerability-service osv --skip-editable --progress-spinner off
