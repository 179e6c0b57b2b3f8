"""Every benchmark here, one after the other, each in a fresh process. Figures only: nothing passes or fails."""

import subprocess
import sys
from pathlib import Path


def main() -> None:
    wanted = sys.argv[1:]
    for script in sorted(Path(__file__).parent.glob("bench_*.py")):
        if not wanted or script.stem.removeprefix("bench_") in wanted:
            print(f"== {script.stem}", flush=True)
            subprocess.run([sys.executable, script], check=False)


if __name__ == "__main__":
    main()
