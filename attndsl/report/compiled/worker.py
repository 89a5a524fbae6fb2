"""The process that compiles kernels where its parent interprets them, or has several to compile."""

import sys
from pathlib import Path

from attndsl.report.compiled.compile import run_jobs

if __name__ == "__main__":
    run_jobs(Path(sys.argv[1]), Path(sys.argv[2]))
