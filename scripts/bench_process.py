"""Processes under measurement, for the scripts beside this: what they use, and when they answer."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
SERVER_CORE, LOAD_CORE = "0", "1"


def give_up(problem):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {problem}")


def cpu_seconds(pid):
    """User plus system time of a process, all threads, in seconds."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024


def rss_mib(pid):
    return rss_bytes(pid) / 1024**2


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, condition, seconds=60, pause=0.05):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            give_up(f"still waiting for {what}")
        time.sleep(pause)


def answers(url, expected):
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return expected in response.read().decode()
    except OSError:
        return False


class Processes:
    """Processes that are started together and end with the measurement."""

    def __init__(self, args, work):
        self.args, self.work, self.processes = args, work, []
        self.binaries = ROOT / "target" / args.profile
        self.log = open(work / "processes.txt", "w")

    def start(self, *command):
        process = subprocess.Popen([*map(str, command)], stdout=self.log, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def start_on(self, core, *command):
        return self.start("taskset", "-c", core, *command)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self):
        """The end of what they have printed."""
        self.log.flush()
        return (self.work / "processes.txt").read_text()[-4000:]
