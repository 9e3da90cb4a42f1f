"""A Docker daemon of this test's own: own socket, own data, gone at the end.

It shares nothing with a daemon that may run on the machine, so no image, container or network of
anybody's is touched, and names such as flux-cdc-consumer are free. It changes no packet filter and
makes no bridge of its own; what containers publish on 127.0.0.1 goes through Docker's proxy.
"""

import ctypes
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

START_SECONDS_MAX = 60
# From linux/prctl.h.
PR_SET_PDEATHSIG = 1


class Skip(Exception):
    """The machine lacks something; nothing is wrong with Flux-KV."""


class Failed(Exception):
    """Something is wrong."""


def run(words, *, timeout=120, check=True, text=None, cwd=None, env=None):
    """Runs a program to its end; answers its standard output. Its errors are shown when it fails."""
    words = [str(word) for word in words]
    try:
        stdin = subprocess.DEVNULL if text is None else None
        done = subprocess.run(words, stdin=stdin, input=text, capture_output=True, text=True, timeout=timeout, cwd=cwd,
                              env=env, errors="replace", check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(words)}: no end after {timeout} s\n{error.output or ''}\n{error.stderr or ''}") from None
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def end_with_parent():
    """The daemon is told to stop even when this process is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Daemon:
    """The daemon, for a `with` statement."""

    def __init__(self, folder):
        self.data = folder / "data"
        self.log = folder / "dockerd.log"
        self.lock = folder / "lock"
        self.process = None
        self.run_folder = None
        self.held = None

    def __enter__(self):
        self.data.mkdir(parents=True, exist_ok=True)
        self.held = self.lock.open("a+")
        # Two runs in one checkout would share the data; the second waits.
        fcntl.flock(self.held, fcntl.LOCK_EX)
        self.clear_after_a_killed_run()
        # Sockets have short names only.
        self.run_folder = pathlib.Path(tempfile.mkdtemp(prefix="flux-", dir="/run"))
        self.held.write(str(self.run_folder))
        self.held.flush()
        socket = f"unix://{self.run_folder}/docker.sock"
        log = self.log.open("w")
        self.process = subprocess.Popen(
            ["dockerd", "--host", socket, "--data-root", self.data, "--exec-root", self.run_folder / "exec",
             "--pidfile", self.run_folder / "docker.pid", "--bridge", "none", "--iptables=false",
             "--ip6tables=false", "--ip-forward=false", "--config-file", self.empty_config()],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent)
        os.environ["DOCKER_HOST"] = socket
        # The builder that every Docker has.
        os.environ["DOCKER_BUILDKIT"] = "0"
        os.environ["COMPOSE_DOCKER_CLI_BUILD"] = "0"
        os.environ["DOCKER_CONFIG"] = str(self.run_folder / "config")
        (self.run_folder / "config").mkdir()
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def clear_after_a_killed_run(self):
        """The lock names the folder of whoever held it last and could not clear up."""
        self.held.seek(0)
        left = self.held.read().strip()
        if left.startswith("/run/flux-"):
            unmount_below(left)
            shutil.rmtree(left, ignore_errors=True)
        self.held.truncate(0)

    def empty_config(self):
        path = self.run_folder / "daemon.json"
        path.write_text("{}")
        return path

    def wait(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        lines = self.log.read_text(errors="replace").splitlines()
        why = [line for line in lines if "level=fatal" in line or "failed to" in line] or lines
        raise Skip(f"dockerd does not start: {why[-1] if why else 'it says nothing'}")

    def __exit__(self, *_):
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.run_folder is not None:
            unmount_below(self.run_folder)
            shutil.rmtree(self.run_folder, ignore_errors=True)
        unmount_below(self.data)
        if self.held is not None:
            self.held.truncate(0)
            self.held.close()


def unmount_below(folder):
    """What a daemon that had to be killed left mounted."""
    mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted(mounts, reverse=True):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
