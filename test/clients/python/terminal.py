"""The terminal: input, size, output, exit code, kill."""

import threading

import mitos


class Screen:
    def __init__(self):
        self.data = b""
        self.changed = threading.Condition()

    def __call__(self, data):
        with self.changed:
            self.data += data
            self.changed.notify_all()

    def shows(self, text):
        with self.changed:
            assert self.changed.wait_for(lambda: text in self.data, timeout=30), self.data


with mitos.create("python") as sb:
    screen = Screen()
    pty = sb.pty(screen, cols=100, rows=30)
    pty.send_input(b"stty size; echo hello-$((20 + 22))\n")
    screen.shows(b"30 100")
    screen.shows(b"hello-42")
    pty.resize(132, 50)
    pty.send_input(b"sleep 0; stty size\n")
    screen.shows(b"50 132")
    pty.send_input(b"X=kept; cd /tmp\n")
    pty.send_input(b"echo $X in $PWD\n")
    screen.shows(b"kept in /tmp")
    pty.send_input(b"exit 7\n")
    assert pty.wait(timeout=30) == 7

    # A program is interrupted with the key for it.
    screen = Screen()
    pty = sb.pty(screen)
    pty.send_input(b"stty size\n")
    screen.shows(b"24 80")
    pty.send_input(b"sleep 1000; echo status $?\n")
    screen.shows(b"sleep 1000")
    pty.send_input(b"\x03")
    pty.send_input(b"echo after $((1 + 1))\n")
    screen.shows(b"after 2")

    # Leaving kills what runs in it.
    pty.send_input(b"echo pid=$$=; exec sleep 2000\n")
    screen.shows(b"=\r\n")
    pty.kill()
    gone = "for i in $(seq 200); do pgrep -f 'sleep 200[0]' || exit 0; sleep 0.1; done; exit 1"
    assert sb.exec(gone).exit_code == 0

    try:
        mitos.DirectSandbox("sandbox-ghost", "python", sb.endpoint, sb._server_url, 0.0).pty(screen)
        raise AssertionError("a terminal in a sandbox that never was")
    except AssertionError:
        raise
    except Exception:
        pass
print("ok")
