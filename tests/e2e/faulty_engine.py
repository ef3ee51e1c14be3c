"""The engine process with fault points in it."""

import os
import time

import faults

from quire.launch.child import main

if __name__ == "__main__":
    time.sleep(float(os.environ.get("QUIRE_TEST_SLOW_START", "0")))
    faults.into_engine()
    main()
