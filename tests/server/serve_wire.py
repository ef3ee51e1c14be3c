"""`quire serve` around the fake engine at the real wire: run as a program by tests and by benchmarks/frontend.py."""

import sys
from pathlib import Path

from quire.cli import main
from quire.launch import start

if __name__ == "__main__":
    start.ENGINE_COMMAND = (sys.executable, str(Path(__file__).with_name("wire_engine.py")))
    main(sys.argv[1:])
