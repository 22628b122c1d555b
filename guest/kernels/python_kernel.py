"""The Python code kernel (docs/kernels.md).

Commands come on fd 3, events go out on fd 4, the code's own output is whatever reaches fds 1 and 2. Cells run in the main thread, since only
there can Python raise KeyboardInterrupt; a second thread reads the commands, so that a `renew` takes effect even while a cell runs.

Needs a bare Python 3.8 or later. With IPython in the image its shell runs the cells and gives magics, `!command` and its display machinery.
"""

import ast
import asyncio
import base64
import builtins
import collections
import fcntl
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import io
import json
import linecache
import os
import queue
import random
import select
import signal
import sys
import threading
import time
import traceback
import types

# Well above what code opens, so that a cell that closes "all" descriptors from 3 on rarely hits them.
PROTOCOL_FD_MIN = 200
# Partial lines of a long-running cell are shown at least this often.
FLUSH_SECONDS = 0.1
# An error's value and each of its traceback lines; a program can raise an exception with a gigabyte of text.
ERROR_TEXT_MAX = 256 * 1024
TRACEBACK_LINES_MAX = 400
TRACEBACK_TEXT_MAX = 4 * 1024 * 1024
# One event line. The agent ends a kernel that sends more than 96 MiB; here the cell gets an error and the kernel lives.
EVENT_BYTES_MAX = 60 * 1024 * 1024
# Cells whose source is kept for tracebacks.
CELL_SOURCES_MAX = 1000

KERNEL_FILE = __file__
VEGA_LITE = "application/vnd.vegalite.v5+json"
BASE64_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")

REPR_METHODS = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_latex_", "text/latex"),
    ("_repr_json_", "application/json"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_pdf_", "application/pdf"),
    ("_repr_javascript_", "application/javascript"),
)


class KernelOutputTooLarge(Exception):
    """A result is larger than one event may be."""


# ---------------------------------------------------------------- events and interrupts


class Events:
    """Whole lines to the agent, from any thread, never cut in two by an interrupt."""

    def __init__(self, fd):
        self.fd = fd
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.cell = 0
        self.held = b""

    def send(self, event, hold=False):
        """With `hold` it goes with the next one, which is due at once: what comes together wakes everybody on the way to the client once."""
        if os.getpid() != self.pid:  # a child that user code forked has no agent to talk to
            return
        # Not as ASCII: an escaped lone surrogate is nothing that the agent could decode, an unescaped one becomes a question mark here.
        line = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if len(line) > EVENT_BYTES_MAX:
            raise KernelOutputTooLarge("a result of %d bytes is above the limit of %d bytes" % (len(line), EVENT_BYTES_MAX))
        with interrupts.deferred(), self.lock:
            self.held += line
            if not hold:
                self.write_held()

    def release(self):
        """Sends what is held, where something takes its time before the next one."""
        with interrupts.deferred(), self.lock:
            self.write_held()

    def write_held(self):
        view, self.held = memoryview(self.held), b""
        while view:
            view = view[os.write(self.fd, view) :]

    def result(self, data, text="", hold=False):
        flush_output()
        self.send({"event": "result", "id": self.cell, "text": text, "data": data}, hold)


class Interrupts:
    """SIGINT raises KeyboardInterrupt in a running cell, at once or after the event that is being written; between cells it does nothing."""

    def __init__(self):
        self.in_cell = False
        self.depth = 0
        self.pending = False

    def handle(self, _signum, _frame):
        if not self.in_cell:
            return
        if self.depth:
            self.pending = True
            return
        raise KeyboardInterrupt

    def install(self):
        signal.signal(signal.SIGINT, self.handle)

    def deferred(self):
        return self if threading.current_thread() is threading.main_thread() else _nothing

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *_):
        self.depth -= 1
        if self.pending and not self.depth:
            self.pending = False
            if self.in_cell:
                raise KeyboardInterrupt


class _Nothing:
    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


_nothing = _Nothing()
interrupts = Interrupts()


def flush_output():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # replaced or closed by the code: its affair
            pass


# ---------------------------------------------------------------- rich results


def wire_value(mime, value):
    """A MIME payload as the text that travels: base64 for pictures, JSON text for JSON, else UTF-8."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        if mime in BASE64_TYPES:
            return base64.b64encode(raw).decode("ascii")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(raw).decode("ascii")
    if isinstance(value, str):
        return value
    if mime == "application/json" or mime.endswith("+json"):
        return json.dumps(value, default=str)
    if isinstance(value, (dict, list)):
        return json.dumps(value, default=str)
    return str(value)


def wire_bundle(data):
    return {str(mime): wire_value(str(mime), value) for mime, value in data.items() if value is not None}


def repr_method(value, name):
    """`value`'s own method, or None: not the unbound one of a class, nor of an object that claims to have every attribute."""
    if isinstance(value, type):
        return None
    try:
        if getattr(value, "_ipython_canary_method_should_not_exist_", None) is not None:
            return None
        method = getattr(value, name, None)
    except Exception:
        return None
    return method if callable(method) else None


def without_metadata(payload):
    return payload[0] if isinstance(payload, tuple) and len(payload) == 2 else payload


def figure_png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def figure_chart(figure):
    """Its numbers as a Vega-Lite specification, or None. A picture alone is no failure."""
    try:
        return charts().chart_of(figure)
    except Exception:
        return None


@functools.lru_cache(maxsize=None)
def charts():
    """The module beside this file, loaded when the first figure is shown; user code does not see it."""
    path = os.path.join(os.path.dirname(KERNEL_FILE), "python_charts.py")
    module = types.ModuleType("mitos_charts")
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), module.__dict__)
    return module


def figure_bundle(figure):
    """The chart after the picture: drawing it is what gives it its tick labels."""
    return {"image/png": figure_png(figure), VEGA_LITE: figure_chart(figure)}


def is_figure(value):
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def bundle_of(value):
    """All representations an object offers; `text/plain` is always there."""
    data = {"text/plain": repr(value)}
    for name, mime in REPR_METHODS:
        method = repr_method(value, name)
        if method is None:
            continue
        try:
            payload = without_metadata(method())
        except NotImplementedError:
            continue
        except Exception:
            traceback.print_exc()
            continue
        if payload is not None:
            data[mime] = payload
    if is_figure(value) and "image/png" not in data:
        data.update(figure_bundle(value))
    method = repr_method(value, "_repr_mimebundle_")
    if method is not None:
        try:
            payload = without_metadata(method(include=None, exclude=None))
        except Exception:
            traceback.print_exc()
            payload = None
        if isinstance(payload, dict):
            data.update(payload)
    return wire_bundle(data)


def is_mime_bundle(value):
    return isinstance(value, dict) and bool(value) and all(isinstance(key, str) and "/" in key and " " not in key for key in value)


def display(*values, raw=False, **_options):
    """Shows each value with all its representations. A dict whose keys are MIME types is shown as that bundle."""
    for value in values:
        events.result(wire_bundle(value) if raw or is_mime_bundle(value) else bundle_of(value))


# ---------------------------------------------------------------- matplotlib: figures are shown without being asked for


def show_figures(*_args, **_options):
    """Shows and closes all open figures: `plt.show()`, and the end of every cell."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None:
        return
    events.release()
    for manager in helpers.Gcf.get_all_fig_managers():
        figure = manager.canvas.figure
        helpers.Gcf.destroy(manager)
        # A figure that nobody drew on is a leftover of plt.figure(), and the value of the cell was shown already.
        if figure is not shown_value.get("figure") and figure.get_axes():
            events.result(wire_bundle({"text/plain": repr(figure), **figure_bundle(figure)}))


shown_value = {}


class PyplotFinder(importlib.abc.MetaPathFinder):
    """Gives `matplotlib.pyplot` our `show` as soon as it is imported: the Agg backend's own only warns that it cannot show anything."""

    searching = False

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "matplotlib.pyplot" or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            agg_show = module.show

            def show(*args, **options):
                """Shows all open figures at once and closes them."""
                backend = str(sys.modules["matplotlib"].get_backend()).lower()
                return show_figures() if backend == "agg" else agg_show(*args, **options)

            module.show = show

        spec.loader.exec_module = exec_module
        return spec


# ---------------------------------------------------------------- errors


def cut(text, longest=ERROR_TEXT_MAX):
    return text if len(text) <= longest else text[:longest] + "… (%d characters)" % len(text)


def report_error(error, lines):
    try:
        value = str(error)
    except Exception:
        value = "<the exception's text cannot be made>"
    if len(lines) > TRACEBACK_LINES_MAX:
        half = TRACEBACK_LINES_MAX // 2
        lines = lines[:half] + ["… (%d lines left out)" % (len(lines) - 2 * half)] + lines[-half:]
    longest = ERROR_TEXT_MAX
    if sum(min(len(line), longest) for line in lines) > TRACEBACK_TEXT_MAX:
        longest = TRACEBACK_TEXT_MAX // len(lines)
    traceback = [cut(line, longest) for line in lines]
    flush_output()
    name = cut(type(error).__name__)
    events.send({"event": "error", "id": events.cell, "name": name, "value": cut(value), "traceback": traceback})


# ---------------------------------------------------------------- the two ways to run a cell


class PlainShell:
    """Runs cells with nothing but the standard library."""

    def __init__(self, main):
        self.namespace = main.__dict__
        self.count = 0
        self.flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.sources = collections.deque()
        self.loop = None
        self.results = [None, None, None]

    def compile(self, tree, name, mode):
        code = compile(tree, name, mode, self.flags, dont_inherit=True)
        # `from __future__ import annotations` holds for the cells after it too.
        for feature in __future_flags__:
            if code.co_flags & feature:
                self.flags |= feature
        return code

    def run(self, source):
        self.count += 1
        name = "<cell %d>" % self.count
        self.remember(name, source)
        try:
            tree = compile(source, name, "exec", ast.PyCF_ONLY_AST | self.flags, dont_inherit=True)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            body = self.compile(tree, name, "exec") if tree.body else None
            tail = self.compile(ast.Expression(last.value), name, "eval") if last else None
            if body is not None:
                self.evaluate(body)
            if tail is not None:
                value = self.evaluate(tail)
                if value is not None and not ends_with_semicolon(source):
                    self.show(value)
            return True
        except BaseException as error:
            interrupts.in_cell = False
            report_error(error, format_error(error))
            return False

    def evaluate(self, code):
        if not code.co_flags & inspect.CO_COROUTINE:
            return eval(code, self.namespace)
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(eval(code, self.namespace))
        try:
            return self.loop.run_until_complete(task)
        except BaseException:
            if not task.done():  # interrupted: let the cell's `finally` blocks run
                task.cancel()
                self.loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise

    def show(self, value):
        namespace = self.namespace
        if namespace.get("_", self.results[0]) is self.results[0]:  # else the code has a `_` of its own
            self.results = [value, self.results[0], self.results[1]]
            namespace["_"], namespace["__"], namespace["___"] = self.results
        data = bundle_of(value)
        if is_figure(value):
            shown_value["figure"] = value
        # It is the end of the cell.
        events.result(data, data.get("text/plain", ""), hold=True)

    def remember(self, name, source):
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        self.sources.append(name)
        if len(self.sources) > CELL_SOURCES_MAX:
            linecache.cache.pop(self.sources.popleft(), None)


def ends_with_semicolon(source):
    """A trailing `;` hides the value, as in a notebook. Only the last line can end in one; a string or comment there is told apart by parsing."""
    line = source.rstrip()
    if not line.endswith(";"):
        return False
    return "#" not in line.rsplit("\n", 1)[-1]


def format_error(error):
    """A traceback that begins at the cell: neither this file's frames nor the event loop's are the user's business."""
    trimmed = traceback.TracebackException(type(error), error, error.__traceback__)
    seen = set()
    pending = [trimmed]
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        frames = list(part.stack)
        first = next((i for i, frame in enumerate(frames) if frame.filename.startswith("<cell ")), None)
        if first is not None:
            frames = frames[first:]
        part.stack = traceback.StackSummary.from_list([frame for frame in frames if frame.filename != KERNEL_FILE])
        pending += [part.__cause__, part.__context__]
    return "".join(trimmed.format()).splitlines()


def future_flags():
    import __future__

    return [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]


__future_flags__ = future_flags()


def ipython_shell(main):
    """IPython's shell with its output connected to our events, or None when IPython is not there."""
    try:
        from IPython.core.displayhook import DisplayHook
        from IPython.core.displaypub import DisplayPublisher
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config
    except Exception:
        return None

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, **_options):
            events.result(wire_bundle(data))

        def clear_output(self, wait=False):
            pass

    class Hook(DisplayHook):
        def write_output_prompt(self):
            pass

        def compute_format_data(self, result):
            if is_figure(result):
                shown_value["figure"] = result
            return super().compute_format_data(result)

        def write_format_data(self, format_dict, md_dict=None):
            data = wire_bundle(format_dict)
            events.result(data, data.get("text/plain", ""))

        def finish_displayhook(self):
            self._is_active = False

    class Shell(InteractiveShell):
        def init_io(self):
            pass

        def enable_gui(self, gui=None):
            pass

        def ask_exit(self):
            raise SystemExit

        def _showtraceback(self, etype, evalue, stb):
            if self.reported:  # formatting the first one raised another
                return
            self.reported = True
            report_error(evalue, [line for part in stb for line in str(part).splitlines()])

        # Straight to fds 1 and 2, where everything else of the cell goes too.
        system = InteractiveShell.system_raw

        def run(self, source):
            self.reported = False
            try:
                outcome = self.run_cell(source, store_history=True)
            except BaseException as error:
                interrupts.in_cell = False
                if not self.reported:
                    report_error(error, format_error(error))
                return False
            error = outcome.error_before_exec or outcome.error_in_exec
            if error is not None and not self.reported:
                report_error(error, format_error(error))
            return error is None and not self.reported

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "NoColor"
    config.InteractiveShell.cache_size = 1000
    try:
        shell = Shell.instance(config=config, user_module=main, display_pub_class=Publisher, displayhook_class=Hook)
        shell.display_formatter.mimebundle_formatter.for_type_by_name(
            "matplotlib.figure", "Figure", lambda figure, include=None, exclude=None: figure_bundle(figure)
        )
        # A Shell subclass of ours is still *the* shell: get_ipython(), IPython.display and matplotlib_inline find it this way.
        InteractiveShell._instance = shell
        shell.run_cell("None", silent=True)
    except Exception:
        traceback.print_exc()
        return None
    return shell


# ---------------------------------------------------------------- renew: what must not be the same in two forks


def renew(command):
    """Sets the environment and gives every known generator in this process fresh randomness. A part that fails does not stop the others."""
    for key in command.get("unset") or []:
        attempt(lambda key=key: os.environ.pop(str(key), None))
    for key, value in (command.get("env") or {}).items():
        attempt(lambda key=key, value=value: os.environ.__setitem__(str(key), str(value)))
    attempt(time.tzset)
    for step in RENEWALS:
        attempt(step)


def attempt(step):
    try:
        step()
    except Exception as error:
        sys.__stderr__.write("mitos: renewing after a fork: %s: %s\n" % (type(error).__name__, error))


def renew_random():
    random.seed()


def renew_openssl():
    # Reseeds the primary generator; the ones of each thread follow before their next use. Without `_ssl` there is no OpenSSL state.
    if "_ssl" in sys.modules:
        sys.modules["_ssl"].RAND_add(os.urandom(64), 64.0)


def renew_numpy():
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def renew_torch():
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "seed"):
        torch.seed()


def renew_uuid():
    # libuuid keeps a clock sequence in its memory; the module's own code path draws one for each uuid1().
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        uuid._generate_time_safe = None
        uuid._last_timestamp = None
        uuid._node = int.from_bytes(os.urandom(6), "big") | (1 << 40)


def renew_tempfile():
    # Its generator is private and is made again on the next use.
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None


def renew_multiprocessing():
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.current_process().authkey = os.urandom(32)


RENEWALS = (renew_random, renew_openssl, renew_numpy, renew_torch, renew_uuid, renew_tempfile, renew_multiprocessing)


# ---------------------------------------------------------------- commands


class Commands(threading.Thread):
    """Reads commands: `renew` is done here and at once, cells are queued for the main thread."""

    def __init__(self, fd, cells):
        super().__init__(name="mitos-commands", daemon=True)
        self.fd = fd
        self.cells = cells
        self.busy = False
        self.flusher = threading.Event()

    def run(self):
        threading.Thread(target=self.flush, name="mitos-flush", daemon=True).start()
        buffer = bytearray()
        while True:
            # While a cell runs, wake up to show what it has printed without a line end; else sleep for as long as it takes.
            if not select.select([self.fd], [], [], FLUSH_SECONDS if self.busy else None)[0]:
                self.flusher.set()
                continue
            # Memory for more would be mapped and unmapped each time, which takes longer than a cell.
            chunk = os.read(self.fd, 1 << 16)
            if not chunk:
                # The agent is gone. A running cell has no one to work for.
                flush_output()
                os._exit(0)
            buffer += chunk
            if b"\n" not in chunk:
                continue
            *lines, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                self.take(json.loads(line))

    def take(self, command):
        if command["op"] == "renew":
            renew(command)
            events.send({"event": "renewed"})
        elif command["op"] == "execute":
            self.busy = True
            self.cells.put(command)

    def flush(self):
        # A thread of its own: a full pipe must not keep a renew waiting.
        while True:
            self.flusher.wait()
            self.flusher.clear()
            flush_output()


def no_input(_prompt=""):
    raise EOFError("input() cannot be answered: code run this way has no standard input")


def text_stream(fd):
    raw = io.FileIO(fd, "w", closefd=False)
    stream = io.TextIOWrapper(io.BufferedWriter(raw, 8192), "utf-8", "backslashreplace", line_buffering=True)
    stream.mode = "w"
    return stream


def take_over(fd):
    """Moves a protocol descriptor out of the way of user code, and out of what programs it starts inherit."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PROTOCOL_FD_MIN)
    os.close(fd)
    return moved


def new_main_module():
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins
    sys.modules["mitos_kernel"] = sys.modules["__main__"]
    sys.modules["__main__"] = main
    return main


def main():
    cells = queue.SimpleQueue()
    commands_fd = take_over(3)
    sys.stdout = sys.__stdout__ = text_stream(1)
    sys.stderr = sys.__stderr__ = text_stream(2)
    sys.argv = [""]
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(KERNEL_FILE)):
        sys.path[0] = ""
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.meta_path.insert(0, PyplotFinder())
    builtins.display = display
    builtins.input = no_input

    module = new_main_module()
    interrupts.install()
    shell = ipython_shell(module)
    if shell is None:
        shell = PlainShell(module)

    # Signals are for the main thread: a SIGINT that only this thread saw could fall upon the cell after the one that was meant.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    commands = Commands(commands_fd, cells)
    commands.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    events.send({"event": "ready"})

    while True:
        command = cells.get()
        events.cell = command["id"]
        interrupts.install()
        commands.busy = True
        done = run_cell(shell, command["code"])
        commands.busy = False
        if os.getpid() != events.pid:  # the cell forked and its child fell off the end
            flush_output()
            os._exit(0)
        events.send({"event": "done", "id": command["id"], "status": "ok" if done else "error"})


def run_cell(shell, code):
    """Runs one cell, then shows its figures. True when it ended without an error."""
    shown_value.clear()
    done = False
    try:
        interrupts.pending = False
        interrupts.in_cell = True
        done = shell.run(code)
        show_figures()
        flush_output()
    except BaseException as error:  # interrupted in the last moment, or a figure that cannot be drawn
        interrupts.in_cell = False
        if done:
            report_error(error, format_error(error))
        done = False
    finally:
        interrupts.in_cell = False
    flush_output()
    return done


events = Events(take_over(4)) if __name__ == "__main__" else None

if __name__ == "__main__":
    main()
