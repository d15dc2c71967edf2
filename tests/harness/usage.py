"""What a process of this machine has used, by /proc."""

import os
import re
from pathlib import Path


def cpu_s(process: int) -> float:
    """Its own, in user and system mode."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(process: int) -> int:
    """Memory that is resident."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text()).group(1))
