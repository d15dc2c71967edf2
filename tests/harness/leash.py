"""Runs a command in a process group of its own, and ends that whole group when stdin closes.

    python leash.py COMMAND...

vLLM's worker processes outlive a parent that is killed. Whoever holds the other end of stdin is their leash, even when it dies
without a word.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_stdin() -> None:
        sys.stdin.buffer.read()
        kill_group(child.pid)

    threading.Thread(target=end_with_stdin, daemon=True).start()
    code = child.wait()
    kill_group(child.pid)
    return code


def kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    sys.exit(main())
