"""`quire serve` with fault points in it, in the engine as well: run as a program by tests."""

import sys
from pathlib import Path

import faults

from quire.cli import main
from quire.launch import start

if __name__ == "__main__":
    faults.into_frontend()
    start.ENGINE_COMMAND = (sys.executable, "-W", "ignore", str(Path(__file__).with_name("faulty_engine.py")))
    main(sys.argv[1:])
