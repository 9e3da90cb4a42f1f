"""Types at the prompt of `flux cli` through a pseudo-terminal: repl.py PROGRAM PORT HOME"""

import os
import pty
import re
import select
import sys
import time

PROGRAM, PORT, HOME = sys.argv[1:4]
PATIENCE = 60


class Terminal:
    def __init__(self):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ.update(HOME=HOME, TERM="xterm", COLUMNS="120", LINES="40")
            os.execv(PROGRAM, [PROGRAM, "cli", "-p", PORT])
        self.seen = ""

    def expect(self, text):
        """Waits until `text` is on the screen, and forgets what came before it."""
        give_up = time.monotonic() + PATIENCE
        while text not in self.plain():
            left = give_up - time.monotonic()
            assert left > 0, f"waiting for {text!r}, seen {self.plain()!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"ended while waiting for {text!r}: {self.plain()!r}")
        plain = self.plain()
        self.seen = plain[plain.index(text) + len(text):]

    def plain(self):
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.seen)

    def type(self, text):
        os.write(self.master, text.encode())

    def end(self):
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    if not os.read(self.master, 4096):
                        break
                except OSError:
                    break
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status


prompt = f"127.0.0.1:{PORT}> "
terminal = Terminal()
terminal.expect(prompt)
terminal.type("set hello wörld\r")
terminal.expect("OK")
terminal.expect(prompt)
terminal.type("get hello\r")
terminal.expect('"w\\xc3\\xb6rld"')
terminal.expect(prompt)
terminal.type("incr n\r")
terminal.expect("(integer) 1")
terminal.expect(prompt)
terminal.type("get absent\r")
terminal.expect("(nil)")
terminal.expect(prompt)
terminal.type("nonsense\r")
terminal.expect("(error) ERR unknown command")
terminal.expect(prompt)
# Completion of a name, and the hint of its arguments.
terminal.type("PEXPIRET\t")
terminal.expect("PEXPIRETIME")
terminal.type("\x15")
terminal.type("getrange ")
terminal.expect("key start end")
terminal.type("\x15")
# The arrow recalls what was typed.
terminal.type("\x1b[A")
terminal.expect("nonsense")
terminal.type("\x15")
terminal.type('set quoted "two words"\r')
terminal.expect("OK")
terminal.expect(prompt)
terminal.type("get quoted\r")
terminal.expect('"two words"')
terminal.expect(prompt)
terminal.type("get 'unbalanced\r")
terminal.expect("Invalid argument")
terminal.expect(prompt)
terminal.type("exit\r")
terminal.end()

# The history outlives the session.
terminal = Terminal()
terminal.expect(prompt)
terminal.type("\x1b[A\x1b[A\x1b[A")
terminal.expect("get quoted")
terminal.type("\x15\x04")
terminal.end()
print("passed")
