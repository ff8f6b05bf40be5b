"""Write docs/reliability.md: run the tests of the catalog of faults and record their figures, or only render the page.

python -m tests.tools.reliability              # run every test of the catalog, then write the page; many minutes
python -m tests.tools.reliability --render     # write the page from the figures that are there
"""

import argparse
import os
import subprocess
import sys

from tests.helpers.reliability import FAULTS, PAGE, RECORD, ROOT, page


def main() -> int:
    """Return the exit status of the tests, 0 where none ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="run no test")
    status = 0
    if not parser.parse_args().render:
        tests = sorted({fault.test for fault in FAULTS})
        command = [sys.executable, "-m", "pytest", "-n", "0", *tests]
        status = subprocess.run(command, env=os.environ | {RECORD: "1"}, cwd=ROOT, check=False).returncode
    PAGE.write_text(page())
    return status


if __name__ == "__main__":
    sys.exit(main())
