"""
All benchmarks, one after the other, and which of them failed.

    python benchmarks/all.py [--quick] [--only NAME ...]    # needs `pip install -e '.[test]'`

`--quick` takes under ten minutes on two cores: it shows that everything runs, and its times mean nothing. Benchmark
data are those of `SDRRL_DATA_DIR`; scripts that need them fail without. Each script's last line is one JSON object,
but that of `evidence/tables.py`, which prints the tables of docs/results.md from the results beside it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path


# The quickest first
SCRIPTS = ("judge", "masks", "evidence/tables", "languages", "translator", "evaluate", "builder", "trainer", "gpu")
WITH_QUICK = ("evaluate", "builder", "trainer", "gpu")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="scripts (default: all)")
    options = parser.parse_args()
    times, failed = {}, []
    for name in options.only:
        print(f"== {name}", flush=True)
        quick = ["--quick"] if options.quick and name in WITH_QUICK else []
        start = time.perf_counter()
        # Each in a process of its own: they set what libraries read when they are imported
        result = subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py"), *quick])
        times[name] = time.perf_counter() - start
        if result.returncode:
            failed.append(name)
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()))
    print(f"failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
