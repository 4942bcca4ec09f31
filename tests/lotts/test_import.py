"""What ``import lotts`` costs."""

import subprocess
import sys

PROGRAM = """
import time, torch
began = time.process_time()
import lotts
print(time.process_time() - began)
"""


def test_importing_costs_little_beyond_torch():
    seconds = float(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)
    assert seconds < 0.3
