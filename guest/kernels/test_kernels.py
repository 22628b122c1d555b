"""The kernels themselves, without an agent: each is started as the agent does and driven over its pipes.

    /usr/bin/python3 -m unittest guest/kernels/test_kernels.py

MITOS_TEST_PYTHONPATH names a folder with IPython, numpy and matplotlib: the Python tests then run a second time with them.
MITOS_TEST_SLOWNESS says how many times longer this processor may take for a cell (an emulated one), 1 unless told.
MITOS_TEST_PYTHON and MITOS_TEST_NODE name other interpreters than the one that runs this and the checkout's own Node (else `node` on PATH).
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.environ.get("MITOS_TEST_PYTHON", sys.executable)
PINNED_NODE = os.path.join(HERE, "../../node_modules/node/bin/node")
NODE = os.environ.get("MITOS_TEST_NODE") or (PINNED_NODE if os.access(PINNED_NODE, os.X_OK) else shutil.which("node")) or "node"
EXTRA = os.environ.get("MITOS_TEST_PYTHONPATH", "")
MATPLOTLIB_CACHE = os.path.join(EXTRA, ".matplotlib")
SLOWNESS = float(os.environ.get("MITOS_TEST_SLOWNESS", "1"))
PATIENCE_SECONDS = 60
VEGA_LITE = "application/vnd.vegalite.v5+json"

COMMANDS = {
    "python": lambda: [PYTHON, "-u", os.path.join(HERE, "python_kernel.py")],
    "javascript": lambda: [NODE, "--no-force-async-hooks-checks", os.path.join(HERE, "javascript_kernel.mjs")],
    "bash": lambda: ["bash", "--noprofile", "--norc", os.path.join(HERE, "bash_kernel.sh")],
}


class Outcome:
    def __init__(self):
        self.stdout = b""
        self.stderr = b""
        self.results = []
        self.error = None
        self.status = None
        self.died = False

    @property
    def text(self):
        return next((event["text"] for event in reversed(self.results) if event["text"]), None)

    def bundles(self):
        return [event["data"] for event in self.results]


class Kernel:
    """A running kernel, as the agent sees it."""

    def __init__(self, language, **env):
        command_in, self.commands = os.pipe()
        self.events, event_out = os.pipe()

        # The pipes may lie anywhere, 3 and 4 included: both are moved up first, so that neither is overwritten.
        high_in, high_out = (self.moved_up(fd) for fd in (command_in, event_out))

        def descriptors():
            os.dup2(high_in, 3)
            os.dup2(high_out, 4)
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 4:
                    try:
                        os.set_inheritable(fd, False)
                    except OSError:  # the listing's own
                        pass

        self.language = language
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            COMMANDS[language](),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder.name,
            env={"PATH": os.environ["PATH"], "HOME": self.folder.name, "LANG": "C.UTF-8", **env},
            preexec_fn=descriptors,
            close_fds=False,
            start_new_session=True,
        )
        for fd in (command_in, event_out, high_in, high_out):
            os.close(fd)
        self.cell = 0
        self.buffer = b""
        self.idle = Outcome()
        self.wait_for("ready", self.idle)

    @staticmethod
    def moved_up(fd):
        import fcntl

        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.commands)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the kernel did not leave at the end of its commands")
        finally:
            os.close(self.events)
            self.process.stdout.close()
            self.process.stderr.close()
            self.folder.cleanup()

    def send(self, command):
        os.write(self.commands, json.dumps(command, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")

    def processor_seconds(self):
        """Of its own, so that a busy machine does not count."""
        with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as stat:
            user, system = stat.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def renew(self, **fields):
        self.send({"op": "renew", "generation": 2, "env": {}, "unset": [], **fields})

    def start(self, code):
        self.cell += 1
        self.send({"op": "execute", "id": self.cell, "code": code})

    def run(self, code):
        self.start(code)
        return self.finish()

    def finish(self):
        outcome = Outcome()
        self.wait_for("done", outcome)
        return outcome

    def interrupt(self, cell=None):
        if self.language == "javascript":
            self.send({"op": "interrupt", "id": cell or self.cell})
        else:
            os.kill(self.process.pid, signal.SIGINT)

    def wait_for(self, name, outcome, until=None, patience=None):
        """Takes events and output until the event `name`, until `until(outcome)`, or until the kernel is dead."""
        deadline = time.monotonic() + (patience or PATIENCE_SECONDS)
        streams = {self.process.stdout.fileno(): "stdout", self.process.stderr.fileno(): "stderr"}
        waiting = [self.events, *streams]
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                event = json.loads(line)
                self.drain(streams, outcome)
                kind = event["event"]
                if kind in ("result", "error", "done"):
                    assert event["id"] == self.cell, event
                if kind == "result":
                    outcome.results.append(event)
                elif kind == "error":
                    assert outcome.error is None, "two errors of one cell"
                    outcome.error = event
                elif kind == "done":
                    outcome.status = event["status"]
                if kind == name:
                    return
            if until is not None and until(outcome):
                return
            ready, _, _ = select.select(waiting, [], [], max(0, deadline - time.monotonic()))
            if not ready:
                if patience is not None:
                    return
                raise AssertionError("no %s event: %r %r" % (name, outcome.stdout, outcome.stderr))
            for fd in ready:
                chunk = os.read(fd, 65536)
                if fd == self.events:
                    if not chunk:
                        outcome.died = True
                        self.drain(streams, outcome)
                        return
                    self.buffer += chunk
                elif chunk:
                    self.add(outcome, streams[fd], chunk)
                else:
                    waiting.remove(fd)

    def drain(self, streams, outcome):
        for fd, stream in streams.items():
            while select.select([fd], [], [], 0)[0]:
                chunk = os.read(fd, 65536)
                if not chunk:
                    break
                self.add(outcome, stream, chunk)

    @staticmethod
    def add(outcome, stream, chunk):
        setattr(outcome, stream, getattr(outcome, stream) + chunk)


def setUpModule():
    if not EXTRA:
        print("skipped: the Python tests with IPython, numpy and matplotlib, since MITOS_TEST_PYTHONPATH is not set", file=sys.stderr)


class KernelCase(unittest.TestCase):
    language = ""
    environment = {}

    def setUp(self):
        self.kernel = Kernel(self.language, **self.environment)
        self.addCleanup(lambda: self.kernel and self.kernel.__exit__())

    def run_ok(self, code):
        outcome = self.kernel.run(code)
        self.assertIsNone(outcome.error, outcome.error)
        self.assertEqual(outcome.status, "ok", outcome.stderr)
        return outcome

    def run_error(self, code):
        outcome = self.kernel.run(code)
        self.assertIsNotNone(outcome.error, (outcome.stdout, outcome.stderr))
        self.assertEqual(outcome.status, "error")
        return outcome

    def interrupt_when(self, code, marker):
        """Starts `code` and interrupts it as soon as it has printed `marker`."""
        self.kernel.start(code)
        outcome = Outcome()
        self.kernel.wait_for("done", outcome, until=lambda seen: marker in seen.stdout)
        self.assertIsNone(outcome.status, "it ended by itself: %r" % outcome.stderr)
        # As the agent does: again after a while, and then to the whole group.
        self.kernel.interrupt()
        for _ in range(3):
            late = time.monotonic() + 0.5
            self.kernel.wait_for("done", outcome, until=lambda _: time.monotonic() > late, patience=0.5)
            if outcome.status:
                return outcome
            os.killpg(self.kernel.process.pid, signal.SIGINT)
        self.kernel.wait_for("done", outcome)
        return outcome


class PythonCase(KernelCase):
    language = "python"

    def test_gives_output_and_the_value_of_the_last_expression(self):
        outcome = self.run_ok("print('hi')\n40 + 2")
        self.assertEqual(outcome.stdout, b"hi\n")
        self.assertEqual(outcome.text, "42")
        self.assertEqual(outcome.bundles(), [{"text/plain": "42"}])

    def test_keeps_variables_functions_imports_and_the_last_values(self):
        self.run_ok("import math\nx = 41\ndef twice(n):\n    return n * 2\n")
        self.assertEqual(self.run_ok("twice(x)").text, "82")
        self.assertEqual(self.run_ok("_ + 1").text, "83")
        self.assertEqual(self.run_ok("__").text, "82")
        self.assertEqual(self.run_ok("math.sqrt(144)").text, "12.0")
        self.assertEqual(self.run_ok("__name__").text, "'__main__'")

    def test_shows_nothing_for_none_an_assignment_or_a_trailing_semicolon(self):
        for code in ("None", "x = 1", "40 + 2;", "", "# only a comment", "for i in range(2):\n    i\n"):
            self.assertEqual(self.run_ok(code).results, [], code)

    def test_awaits_at_the_top_level_and_keeps_one_event_loop(self):
        self.run_ok("import asyncio\nasync def f(n):\n    await asyncio.sleep(0)\n    return n\nqueue = asyncio.Queue()")
        self.assertEqual(self.run_ok("await f(5)").text, "5")
        self.run_ok("task = asyncio.ensure_future(f(6)) if await f(1) else None")
        self.assertEqual(self.run_ok("await task").text, "6")

    def test_reports_an_error_with_the_source_of_the_cell_and_no_frame_of_the_kernel(self):
        self.run_ok("def broken():\n    raise ValueError('bad')")
        outcome = self.run_error("broken()")
        self.assertEqual((outcome.error["name"], outcome.error["value"]), ("ValueError", "bad"))
        text = "\n".join(outcome.error["traceback"])
        self.assertIn("raise ValueError('bad')", text)
        self.assertIn("broken()", text)
        self.assertIn("ValueError: bad", text)
        self.assertNotIn("python_kernel", text)
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_reports_a_chained_error_and_one_inside_await_without_foreign_frames(self):
        outcome = self.run_error("try:\n    1 / 0\nexcept Exception as e:\n    raise RuntimeError('outer') from e")
        text = "\n".join(outcome.error["traceback"])
        self.assertIn("ZeroDivisionError", text)
        self.assertNotIn("python_kernel", text)
        outcome = self.run_error("async def g():\n    raise KeyError('inner')\nawait g()")
        text = "\n".join(outcome.error["traceback"])
        self.assertIn("raise KeyError('inner')", text)
        self.assertNotIn("base_events", text)

    def test_reports_a_syntax_error_an_unknown_name_and_an_exit_without_dying(self):
        self.assertEqual(self.run_error("def (:").error["name"], "SyntaxError")
        self.assertEqual(self.run_error("undefined_variable_xyz").error["name"], "NameError")
        self.assertEqual(self.run_error("import sys\nsys.exit(3)").error["name"], "SystemExit")
        self.assertEqual(self.run_error("exit()").error["name"], "SystemExit")
        self.assertEqual(self.run_error("class E(Exception):\n    def __str__(self):\n        1 / 0\nraise E").error["name"], "E")
        self.assertEqual(self.run_error("raise ValueError('\\ud800')").error["name"], "ValueError")
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_survives_bottomless_recursion_and_a_gigantic_error_text(self):
        self.assertEqual(self.run_error("def f():\n    f()\nf()").error["name"], "RecursionError")
        outcome = self.run_error("raise ValueError('x' * 5_000_000)")
        self.assertLess(len(json.dumps(outcome.error)), 2_000_000)
        # Each line is short enough, and all of them together are more than one event may be.
        outcome = self.run_error("raise ValueError('\\n'.join(['x' * 250_000] * 300))")
        self.assertEqual(outcome.error["name"], "ValueError")
        self.assertLess(len(json.dumps(outcome.error)), 10_000_000)
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_says_that_there_is_no_standard_input(self):
        outcome = self.run_error("input('name? ')")
        self.assertEqual(outcome.error["name"], "EOFError")
        self.assertIn("standard input", outcome.error["value"])

    def test_takes_the_output_of_programs_and_of_threads(self):
        outcome = self.run_ok(
            "import os, subprocess, sys, threading\nprint('a')\nos.system('echo b; echo c >&2')\nsubprocess.run(['echo', 'd'])\n"
            "t = threading.Thread(target=print, args=('e',)); t.start(); t.join()\nos.write(1, b'f\\n')\nprint('g', file=sys.stderr)\nNone"
        )
        self.assertEqual(outcome.stdout, b"a\nb\nd\ne\nf\n")
        self.assertEqual(outcome.stderr, b"c\ng\n")

    def test_shows_partial_lines_while_the_cell_runs(self):
        self.kernel.start("import time\nprint('half', end='')\nwhile True:\n    time.sleep(0.01)")
        outcome = Outcome()
        self.kernel.wait_for("done", outcome, until=lambda seen: b"half" in seen.stdout)
        self.assertIsNone(outcome.status)
        self.kernel.interrupt()
        self.assertEqual(self.kernel.finish().error["name"], "KeyboardInterrupt")

    def test_displays_objects_by_their_own_representations(self):
        outcome = self.run_ok(
            "class Rich:\n"
            "    def _repr_html_(self): return '<b>x</b>'\n"
            "    def _repr_png_(self): return b'\\x89PNG\\xff'\n"
            "    def _repr_json_(self): return {'a': [1]}\n"
            "    def _repr_svg_(self): return '<svg/>'\n"
            "    def _repr_markdown_(self): return '*x*'\n"
            "    def _repr_latex_(self): return '$x$'\n"
            "    def _repr_jpeg_(self): return None\n"
            "    def __repr__(self): return 'rich'\n"
            "print('before')\ndisplay(Rich())\nRich()"
        )
        shown, value = outcome.results
        self.assertEqual(shown["text"], "")
        self.assertEqual(value["text"], "rich")
        for data in outcome.bundles():
            self.assertEqual(data["text/html"], "<b>x</b>")
            self.assertEqual(base64.b64decode(data["image/png"]), b"\x89PNG\xff")
            self.assertEqual(json.loads(data["application/json"]), {"a": [1]})
            self.assertEqual(data["image/svg+xml"], "<svg/>")
            self.assertEqual(data["text/markdown"], "*x*")
            self.assertEqual(data["text/latex"], "$x$")
            self.assertNotIn("image/jpeg", data)

    def test_displays_a_mime_bundle_and_one_that_an_object_makes(self):
        outcome = self.run_ok("display({'text/html': '<i>1</i>', 'application/json': {'k': 1}}, raw=True)")
        self.assertEqual(outcome.bundles()[0]["text/html"], "<i>1</i>")
        self.assertEqual(json.loads(outcome.bundles()[0]["application/json"]), {"k": 1})
        outcome = self.run_ok("class B:\n    def _repr_mimebundle_(self, include=None, exclude=None): return {'text/plain': 'p', 'text/html': 'h'}\nB()")
        self.assertEqual(outcome.bundles(), [{"text/plain": "p", "text/html": "h"}])
        self.assertEqual(outcome.text, "p")

    def test_keeps_a_class_and_an_object_that_claims_every_attribute_plain(self):
        self.run_ok("class Anything:\n    def __getattr__(self, name): return lambda *a, **k: 'claimed'\n    def __repr__(self): return 'any'")
        self.assertEqual(self.run_ok("Anything()").bundles()[0].get("text/html"), None)
        self.assertIn("Anything", self.run_ok("Anything").text)

    def test_replaces_what_is_no_text(self):
        self.assertEqual(self.run_ok("display({'text/plain': 'a\\ud800😀'}, raw=True)").bundles(), [{"text/plain": "a?😀"}])

    def test_refuses_a_result_above_the_limit_and_lives(self):
        outcome = self.run_error("display({'text/plain': 'x' * (61 * 1024 * 1024)}, raw=True)")
        self.assertEqual(outcome.error["name"], "KernelOutputTooLarge")
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_interrupt_stops_a_loop_a_sleep_and_an_await_and_keeps_the_state(self):
        self.run_ok("import asyncio, time\nkept = 7")
        for wait in ("while True: pass", "time.sleep(60)", "await asyncio.sleep(60)", "while True:\n    display({'text/plain': 'x'}, raw=True)"):
            outcome = self.interrupt_when("print('begun', flush=True)\n" + wait, b"begun")
            self.assertEqual(outcome.error["name"], "KeyboardInterrupt", wait)
            self.assertEqual(outcome.status, "error")
        self.assertEqual(self.run_ok("kept * 6").text, "42")

    def test_interrupt_between_cells_does_nothing(self):
        self.run_ok("kept = 7")
        for _ in range(20):
            self.kernel.interrupt()
            self.assertEqual(self.run_ok("kept").text, "7")

    def test_dies_when_the_code_ends_the_process(self):
        self.assertTrue(self.kernel.run("import os\nos._exit(0)").died)

    def test_a_child_that_the_code_forked_never_speaks_for_the_kernel(self):
        outcome = self.run_ok("import os\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\n'value'")
        self.assertEqual(len(outcome.results), 1)
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_programs_get_none_of_the_protocol_descriptors(self):
        self.assertEqual(self.run_ok("import os\nos.system('ls /proc/self/fd | tr \"\\\\n\" \" \"')\nNone").stdout, b"0 1 2 3 ")

    def test_renew_sets_the_environment_even_while_a_cell_runs(self):
        self.run_ok("import os, time\nos.environ['OLD'] = '1'")
        self.kernel.start("while os.environ.get('NEW') != 'v': time.sleep(0.005)\n('OLD' in os.environ, os.popen('echo $NEW').read())")
        self.kernel.renew(env={"NEW": "v"}, unset=["OLD"])
        self.assertEqual(self.kernel.finish().text, "(False, 'v\\n')")

    def test_renew_breaks_every_sequence_that_would_repeat(self):
        self.run_ok(
            "import random, tempfile, uuid, ssl, multiprocessing\nrandom.seed(1); expected = [random.random() for _ in range(4)]; random.seed(1)\n"
            "next(tempfile._get_candidate_names()); tempfile._get_candidate_names().rng.seed(1)\n"
            "state = tempfile._get_candidate_names().rng.getstate(); uuid.uuid1(); node = uuid.getnode(); key = bytes(multiprocessing.current_process().authkey)"
        )
        self.kernel.renew()
        outcome = self.run_ok(
            "import random\n(random.random() in expected, tempfile._get_candidate_names().rng.getstate() == state, uuid.getnode() == node,"
            " bytes(multiprocessing.current_process().authkey) == key, len({uuid.uuid1() for _ in range(100)}))"
        )
        self.assertEqual(outcome.text, "(False, False, False, False, 100)")

    def test_renew_takes_odd_variables_without_failing(self):
        self.kernel.renew(env={"": "x", "A=B": "x", "NUL": "a\0b", "GOOD": "é"})
        self.assertEqual(self.run_ok("import os\nos.environ['GOOD']").text, "'é'")

    def test_costs_less_than_five_milliseconds_of_processor_time_a_cell(self):
        self.run_ok("1 + 1")
        begun = self.kernel.processor_seconds()
        for _ in range(100):
            self.run_ok("1 + 1")
        self.assertLess((self.kernel.processor_seconds() - begun) / 100, 0.005 * SLOWNESS)


@unittest.skipUnless(EXTRA, "MITOS_TEST_PYTHONPATH is not set")
class PythonWithPackagesCase(PythonCase):
    """The same, with IPython in the image, and what only it and its friends give."""

    environment = {"PYTHONPATH": EXTRA, "MPLCONFIGDIR": MATPLOTLIB_CACHE}

    def test_runs_in_the_shell_of_ipython_with_magics_and_commands(self):
        self.assertIn("Shell", self.run_ok("type(get_ipython()).__name__").text)
        self.assertEqual(self.run_ok("!echo from a command; echo more >&2").stdout, b"from a command\n")
        self.assertEqual(self.run_ok("files = !echo one\nfiles[0]").text, "'one'")
        self.assertIn(b"3", self.run_ok("%%bash\necho $((1 + 2))").stdout)
        self.assertEqual(self.run_ok("from IPython.display import HTML\nHTML('<b>1</b>')").bundles()[0]["text/html"], "<b>1</b>")

    def test_renew_reseeds_numpy(self):
        self.run_ok("import numpy as np\nnp.random.seed(1); expected = np.random.random(4).tolist(); np.random.seed(1)")
        self.kernel.renew()
        self.assertEqual(self.run_ok("np.random.random() in expected").text, "False")

    def test_shows_figures_unasked_at_once_when_asked_and_never_twice(self):
        outcome = self.run_ok("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nNone")
        self.assertEqual([sorted(data) for data in outcome.bundles()], [[VEGA_LITE, "image/png", "text/plain"]])
        self.assertTrue(base64.b64decode(outcome.bundles()[0]["image/png"]).startswith(b"\x89PNG"))
        outcome = self.run_ok("plt.plot([1]); plt.show(); print('after'); plt.plot([2]); plt.show()")
        self.assertEqual(len(outcome.results), 2)
        self.assertEqual(self.run_ok("1 + 1").text, "2")
        outcome = self.run_ok("f, a = plt.subplots()\na.plot([1])\nf")
        self.assertEqual({"image/png", VEGA_LITE} - set(outcome.bundles()[0]), set())
        self.assertEqual(len(outcome.results), 1)

    def chart(self, code):
        data = self.run_ok("import matplotlib.pyplot as plt\n" + code + "\nNone").bundles()[0]
        return json.loads(data[VEGA_LITE]) if VEGA_LITE in data else None

    def rows(self, code):
        return self.chart(code)["data"]["values"]

    def test_tells_the_numbers_of_lines_and_points(self):
        chart = self.chart("plt.plot([1, 2], [3, float('nan')], label='a'); plt.plot(1, 1, 'o'); plt.title('T'); plt.yscale('log'); plt.xlabel('X')")
        self.assertEqual((chart["title"], [layer["mark"] for layer in chart["layer"]]), ("T", ["line", "point"]))
        line = chart["layer"][0]
        self.assertEqual(line["data"]["values"], [{"x": 1, "y": 3.0}, {"x": 2, "y": None}])
        self.assertEqual(line["encoding"]["x"], {"field": "x", "type": "quantitative", "title": "X"})
        self.assertEqual(line["encoding"]["y"]["scale"], {"type": "log"})
        chart = self.chart("import datetime\nplt.plot([datetime.date(2026, 1, d) for d in (1, 2)], [1, 2])")
        self.assertEqual((chart["encoding"]["x"]["type"], chart["data"]["values"][0]), ("temporal", {"x": "2026-01-01", "y": 1}))
        self.assertEqual(
            self.rows("plt.scatter(['u', 'v'], [1, 2]); plt.scatter(['u'], [3], label='w'); plt.axhline(1)"),
            [{"x": 0.0, "y": 1.0, "series": "1"}, {"x": 1.0, "y": 2.0, "series": "1"}, {"x": 0.0, "y": 3.0, "series": "w"}],
        )

    def test_tells_the_numbers_of_bars_pies_and_boxes(self):
        self.assertEqual(self.rows("plt.bar(['a', 'b'], [1, 2])"), [{"label": "a", "value": 1}, {"label": "b", "value": 2}])
        lying = self.chart("plt.barh(['a'], [1]); plt.xlabel('n')")["encoding"]
        self.assertEqual((lying["y"]["field"], lying["x"]["title"]), ("label", "n"))
        grouped = "plt.bar([-.2, .8], [1, 2], .4, label='m'); plt.bar([.2, 1.2], [3, 4], .4, label='w'); plt.xticks([0, 1], ['p', 'q'])"
        self.assertEqual([tuple(row.values()) for row in self.rows(grouped)], [("p", 1, "m"), ("q", 2, "m"), ("p", 3, "w"), ("q", 4, "w")])
        self.assertEqual([row["label"] for row in self.rows("plt.hist([0, 1, 9], bins=3)")], [1.5, 4.5, 7.5])
        self.assertEqual(self.rows("plt.pie([1, 3], labels=['x', 'y'])"), [{"label": "x", "angle": 90.0}, {"label": "y", "angle": 270.0}])
        box = self.rows("plt.boxplot([[1, 2, 3, 4, 5, 30], [2, 2, 3, 3, 4]], showmeans=True); plt.xticks([1, 2], ['k', 'l'])")
        self.assertEqual(box[0], {"label": "k", "lower": 1, "q1": 2.25, "median": 3.5, "q3": 4.75, "upper": 5, "outliers": [30]})
        self.assertEqual((box[1]["label"], box[1]["median"], box[1]["outliers"]), ("l", 3, []))

    def test_several_charts_are_told_together_and_what_is_too_much_or_no_chart_is_a_picture_alone(self):
        chart = self.chart("f, (a, b) = plt.subplots(1, 2); a.plot([1]); b.bar(['x'], [1]); f.suptitle('S')")
        self.assertEqual((chart["title"], [part["mark"] for part in chart["concat"]]), ("S", ["line", "bar"]))
        self.assertIsNone(self.chart("plt.plot(range(10_001))"))
        self.assertIsNone(self.chart("plt.imshow([[1, 2], [3, 4]])"))


class WithoutIPython(KernelCase):
    """Whatever is installed here."""

    language = "python"
    packages = ""

    def setUp(self):
        hidden = tempfile.TemporaryDirectory()
        self.addCleanup(hidden.cleanup)
        os.mkdir(os.path.join(hidden.name, "IPython"))
        with open(os.path.join(hidden.name, "IPython", "__init__.py"), "w") as file:
            file.write("raise ImportError('hidden by the test')\n")
        self.environment = {"PYTHONPATH": ":".join(filter(None, [hidden.name, self.packages])), "MPLCONFIGDIR": MATPLOTLIB_CACHE}
        super().setUp()


class BarePythonCase(WithoutIPython):
    def test_tells_the_value_and_the_end_of_a_cell_in_one_write(self):
        for n in range(20):
            self.kernel.start("%d + 1" % n)
            self.assertTrue(select.select([self.kernel.events], [], [], PATIENCE_SECONDS)[0])
            events = [json.loads(line) for line in os.read(self.kernel.events, 65536).splitlines()]
            self.assertEqual([event["event"] for event in events], ["result", "done"])
            self.assertEqual(events[0]["text"], str(n + 1))


class PlainPythonWithPackagesCase(WithoutIPython, PythonWithPackagesCase):
    """numpy and matplotlib, but no IPython."""

    packages = EXTRA

    def test_runs_in_the_shell_of_ipython_with_magics_and_commands(self):
        self.assertEqual(self.run_error("get_ipython()").error["name"], "NameError")


class JavaScriptCase(KernelCase):
    language = "javascript"

    def test_gives_output_and_the_value_of_the_last_expression(self):
        outcome = self.run_ok("console.log('hi'); console.error('err'); process.stdout.write('raw\\n')\n40 + 2")
        self.assertEqual((outcome.stdout, outcome.stderr), (b"hi\nraw\n", b"err\n"))
        self.assertEqual(outcome.bundles(), [{"text/plain": "42"}])
        for code, text in (("({a: [1]})", "{ a: [ 1 ] }"), ("'x'", "'x'"), ("null", "null"), ("1n", "1n"), ("-0", "-0"), ("NaN", "NaN"), ("Symbol('s')", "Symbol(s)"), ("[true]", "[ true ]")):
            self.assertEqual(self.run_ok(code).text, text, code)

    def test_shows_nothing_for_undefined_or_a_declaration(self):
        for code in ("undefined", "const q = 1", "function f() {}", "", "// only a comment"):
            self.assertEqual(self.run_ok(code).results, [], code)

    def test_keeps_variables_and_takes_declarations_again(self):
        self.run_ok("let x = 1; const y = 2; class A { v() { return 1 } }; function f() { return x }")
        self.assertEqual(self.run_ok("x + y + new A().v() + f()").text, "5")
        self.run_ok("let x = 10; const y = 20; class A { v() { return 2 } }")
        self.assertEqual(self.run_ok("x + y + new A().v() + f()").text, "42")
        self.assertEqual(self.run_ok("_ + 1").text, "43")
        self.assertEqual(self.run_ok("_ + 1").text, "44")

    def test_awaits_at_the_top_level(self):
        self.assertEqual(self.run_ok("const later = await new Promise((done) => setTimeout(done, 5, 41))\nlater + 1").text, "42")
        self.assertEqual(self.run_ok("later").text, "41")

    def test_imports_and_requires_from_the_working_directory(self):
        self.run_ok(
            "const files = require('fs'); files.mkdirSync('node_modules/pack', {recursive: true}); files.writeFileSync('node_modules/pack/package.json',"
            " JSON.stringify({name: 'pack', exports: {import: './a.mjs', require: './a.cjs'}})); files.writeFileSync('node_modules/pack/a.mjs', 'export default 1; export const named = 2');"
            " files.writeFileSync('node_modules/pack/a.cjs', 'module.exports = 3'); files.writeFileSync('local.mjs', 'export const here = 4')"
        )
        self.assertEqual(self.run_ok("require('pack')").text, "3")
        self.assertEqual(self.run_ok("(await import('pack')).named + (await import('./local.mjs')).here").text, "6")
        self.assertEqual(self.run_ok("import one, { named as two } from 'pack';\nimport * as os from 'node:os'\nimport 'node:fs'\none + two + typeof os.cpus").text, "'3function'")
        self.assertEqual(self.run_ok("`import('x') ${'import(\\'y\\')'}` + /import('z')/.source + 'import(1)' // import(2)").text.count("import("), 4)
        self.assertIn("ERR_MODULE_NOT_FOUND", self.run_error("await import('missing-package')").error["value"] + str(self.run_ok("await import('missing-package').catch((e) => e.code)").text))

    def test_reports_errors_with_lines_of_the_cell_only(self):
        outcome = self.run_error("function f() {\n  throw new TypeError('bad')\n}\nf()")
        self.assertEqual((outcome.error["name"], outcome.error["value"]), ("TypeError", "bad"))
        text = "\n".join(outcome.error["traceback"])
        self.assertRegex(text, r"at f \(cell-1:2:9\)")
        for foreign in ("node:", "javascript_kernel", "mitos:"):
            self.assertNotIn(foreign, text)
        outcome = self.run_error("await (async () => { await 1; throw new Error('outer', {cause: new RangeError('inner')}) })()")
        self.assertIn("Caused by: RangeError: inner", "\n".join(outcome.error["traceback"]))
        self.assertEqual(self.run_error("let (").error["name"], "SyntaxError")
        self.assertEqual(self.run_error("missing_name").error["name"], "ReferenceError")
        self.assertEqual(self.run_error("throw 5").error["value"], "5")
        self.assertEqual(self.run_error("throw undefined").error["name"], "Uncaught")
        self.assertEqual(self.run_error("(function f() { f() })()").error["name"], "RangeError")
        self.run_error("throw {get stack() { throw 1 }, get name() { throw 1 }}")
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_displays_bundles_and_objects_that_make_one(self):
        outcome = self.run_ok("display({'text/html': '<b>1</b>', 'application/json': {k: [1]}, 'image/png': Buffer.from([137, 80])}); display([1], 2)")
        self.assertEqual([event["text"] for event in outcome.results], ["", "", ""])
        self.assertEqual(outcome.bundles()[0], {"text/html": "<b>1</b>", "application/json": '{"k":[1]}', "image/png": "iVA="})
        self.assertEqual(outcome.bundles()[1], {"text/plain": "[ 1 ]"})
        outcome = self.run_ok("({[Symbol.for('mitos.display')]: () => ({'text/html': 'h', 'text/plain': 'p'})})")
        self.assertEqual((outcome.text, outcome.bundles()), ("p", [{"text/html": "h", "text/plain": "p"}]))

    def test_replaces_what_is_no_text(self):
        self.assertEqual(self.run_ok("display({'text/plain': 'a\\ud800\\\\ud800😀'})").bundles(), [{"text/plain": "a\ufffd\\ud800😀"}])

    def test_refuses_a_result_above_the_limit_and_lives(self):
        self.assertEqual(self.run_error("display({'text/plain': 'x'.repeat(61 * 1024 * 1024)})").error["name"], "KernelOutputTooLarge")
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_interrupt_stops_a_loop_and_an_await_and_keeps_the_state(self):
        self.run_ok("let kept = 7")
        for wait in ("for (;;) {}", "await new Promise(() => {})", "for (;;) await new Promise((next) => setTimeout(next, 1))", "for (;;) display(1)"):
            outcome = self.interrupt_when("console.log('begun');\n" + wait, b"begun")
            self.assertEqual(outcome.error["name"], "KeyboardInterrupt", wait)
        self.assertEqual(self.run_ok("kept * 6").text, "42")

    def test_interrupt_stops_loops_in_callbacks_and_after_an_await(self):
        self.run_ok("let kept = 7")
        loop = "() => { console.log('begun'); for (;;) {} }"
        for code in (
            f"setTimeout({loop}, 1); await new Promise(() => {{}})",
            f"setImmediate({loop}); await new Promise(() => {{}})",
            f"process.nextTick({loop}); await new Promise(() => {{}})",
            f"await 1; ({loop})()",
            f"await new Promise((next) => setTimeout(next, 1)); ({loop})()",
            "console.log('begun'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)",
            f"({{[Symbol.for('mitos.display')]: {loop}}})",
            "try { console.log('begun'); for (;;) {} } catch {} finally { for (;;) {} }",
        ):
            outcome = self.interrupt_when(code, b"begun")
            self.assertIsNotNone(outcome.error, (code, outcome.died, outcome.stderr))
            self.assertEqual(outcome.error["name"], "KeyboardInterrupt", code)
            self.assertEqual(self.run_ok("await new Promise((next) => setTimeout(() => setImmediate(next), 1)); console.log('on'); kept").text, "7", code)

    def test_interrupt_cuts_no_line_of_output(self):
        for write in ("console.log('x'.repeat(300000))", "display('x'.repeat(300000))"):
            self.interrupt_when(f"console.log('begun'); for (;;) {write}", b"begun")
            self.assertEqual(self.run_ok("console.log('on')").stdout[-3:], b"on\n", write)

    def test_interrupt_ends_what_an_earlier_cell_left_behind(self):
        self.run_ok("setTimeout(() => { for (;;) {} }, 0); undefined")
        self.kernel.start("await new Promise((next) => setTimeout(next, 50)); 1")
        self.kernel.interrupt()
        self.assertEqual(self.kernel.finish().error["name"], "KeyboardInterrupt")
        self.assertEqual(self.run_ok("2").text, "2")

    def test_interrupt_before_or_after_its_cell_is_for_no_other(self):
        for _ in range(20):
            self.kernel.interrupt()
            os.kill(self.kernel.process.pid, signal.SIGINT)
            self.assertEqual(self.run_ok("7").text, "7")
        self.kernel.interrupt(self.kernel.cell + 1)
        self.assertEqual(self.kernel.run("8").error["name"], "KeyboardInterrupt")
        self.assertEqual(self.run_ok("9").text, "9")

    def test_a_cell_that_will_never_end_survives_a_collection(self):
        self.run_ok("require('v8').setFlagsFromString('--expose-gc'); const gc = require('vm').runInNewContext('gc')")
        self.interrupt_when("console.log('begun'); await new Promise(() => {})", b"begun")
        self.interrupt_when("await 1; console.log('begun'); for (;;) {}", b"begun")
        for _ in range(3):
            self.run_ok("gc(); await new Promise((next) => setTimeout(next, 1))")

    def test_reports_what_fails_between_cells_and_lives(self):
        first = self.run_ok("setTimeout(() => { throw new Error('late') }, 1); Promise.reject(new Error('nobody')); undefined")
        # Timers of one length run in their order.
        second = self.run_ok("await new Promise((done) => setTimeout(done, 1)); undefined")
        self.assertIn(b"Uncaught exception: Error: late", first.stderr + second.stderr)

    def test_dies_when_the_code_ends_the_process(self):
        self.assertTrue(self.kernel.run("process.exit(0)").died)

    def test_programs_get_none_of_the_protocol_descriptors(self):
        self.assertEqual(self.run_ok("require('child_process').execSync('ls /proc/self/fd').toString().split('\\n').length").text, "5")

    def test_takes_the_output_of_programs(self):
        outcome = self.run_ok("require('child_process').spawnSync('sh', ['-c', 'echo out; echo err >&2'], {stdio: 'inherit'}); undefined")
        self.assertEqual((outcome.stdout, outcome.stderr), (b"out\n", b"err\n"))

    def test_renew_sets_the_environment_even_while_a_cell_waits(self):
        self.run_ok("process.env.OLD = '1'")
        self.kernel.start("while (process.env.NEW !== 'v') await new Promise((next) => setTimeout(next, 1))\n'OLD' in process.env")
        self.kernel.renew(env={"NEW": "v"}, unset=["OLD"])
        self.assertEqual(self.kernel.finish().text, "false")

    def test_random_functions_keep_their_contract(self):
        outcome = self.run_ok(
            "import c, { randomBytes } from 'node:crypto'\nconst a = new Uint16Array(8)\nconst many = Array.from({length: 5000}, Math.random);\n"
            "[randomBytes === c.randomBytes, randomBytes(5).length, await new Promise((r) => c.randomBytes(3, (e, b) => r(b.length))), c.randomFillSync(a, 4).slice(0, 4).every((v) => v === 0),"
            " a.slice(4).some((v) => v), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(c.randomUUID()), new Set(many).size, many.every((v) => v >= 0 && v < 1),"
            " [...Array(99)].every(() => { const v = c.randomInt(3, 6); return v >= 3 && v < 6 }), crypto.getRandomValues(new Uint8Array(4)).length, crypto.randomUUID().length,"
            " await new Promise((r) => c.randomFill(new Uint8Array(9), 2, (e, b) => r(b.length))), await new Promise((r) => c.randomInt(5, (e, v) => r(v < 5)))].join()"
        )
        self.assertEqual(outcome.text, "'true,5,3,true,true,true,5000,true,true,4,36,9,true'")
        for bad in ("randomBytes(-1)", "randomBytes('x')", "c.randomInt(5, 1)", "c.randomFillSync({})", "crypto.getRandomValues([])"):
            self.run_error(bad)

    def test_renew_throws_away_the_numbers_that_were_drawn_ahead(self):
        # The pool is an ordinary array of the kernel's module, out of reach; what can be seen is that a new one is read from the system.
        counting = "require('fs').readlinkSync('/proc/self/exe') && Number(require('fs').readFileSync('/proc/self/io', 'utf8').match(/rchar: (\\d+)/)[1])"
        self.run_ok("Math.random()")
        before = int(self.run_ok("Math.random(); " + counting).text)
        again = int(self.run_ok("Math.random(); " + counting).text)
        self.kernel.renew()
        renewed = int(self.run_ok("Math.random(); " + counting).text)
        self.assertGreaterEqual(renewed - again, 4096)
        self.assertLess(again - before, 4096)


class BashCase(KernelCase):
    language = "bash"

    def test_keeps_variables_functions_arrays_options_and_the_working_directory(self):
        self.run_ok("x=41; declare -A m=([k]=v); f() { echo \"f $1\"; }; mkdir -p d; cd d; set -u; alias ll=ls")
        self.assertEqual(self.run_ok("echo $((x + 1)) ${m[k]} $(f y) ${PWD##*/}; [[ $- == *u* ]] && echo strict").stdout, b"42 v f y d\nstrict\n")

    def test_takes_code_with_every_kind_of_character(self):
        self.assertEqual(self.run_ok("cat <<'E'\na\\n\"b\" 'c' $x `d` \\\\ \t é 😀 % \\x41 \\0101\nE").stdout.decode(), "a\\n\"b\" 'c' $x `d` \\\\ \t é 😀 % \\x41 \\0101\n")

    def test_reports_a_status_other_than_zero_and_goes_on(self):
        outcome = self.run_error("echo out; echo err >&2; (exit 3)")
        self.assertEqual((outcome.stdout, outcome.stderr), (b"out\n", b"err\n"))
        self.assertEqual((outcome.error["name"], outcome.error["value"]), ("ExitError", "exit status 3"))
        self.assertEqual(self.run_ok("echo $?").stdout, b"3\n")
        self.run_error("if then")
        self.assertEqual(self.run_ok("echo on").stdout, b"on\n")

    def test_interrupt_stops_programs_loops_and_nested_functions_and_keeps_the_state(self):
        self.run_ok("kept=7")
        for wait in ("sleep 60", "while :; do :; done", "g() { while :; do :; done; echo no; }; f() { g; echo no; }; f; echo no", "while :; do sleep 0.01; done"):
            outcome = self.interrupt_when("echo begun\n" + wait + "\necho no", b"begun")
            self.assertEqual(outcome.error["name"], "KeyboardInterrupt", wait)
            self.assertEqual(outcome.stdout, b"begun\n", wait)
        self.assertEqual(self.run_ok("echo $((kept * 6))").stdout, b"42\n")

    def test_interrupt_between_cells_does_nothing(self):
        self.run_ok("kept=7")
        for _ in range(20):
            self.kernel.interrupt()
            self.assertEqual(self.run_ok("echo $kept").stdout, b"7\n")

    def test_dies_when_the_code_exits(self):
        self.assertTrue(self.kernel.run("exit 0").died)

    def test_programs_get_none_of_the_protocol_descriptors(self):
        self.assertEqual(self.run_ok("ls /proc/self/fd | tr '\\n' ' '").stdout, b"0 1 2 3 ")

    def test_renew_sets_the_environment_and_reseeds(self):
        self.run_ok("export OLD=1; RANDOM=1; a=$RANDOM; b=$RANDOM; c=$RANDOM; RANDOM=1")
        self.kernel.renew(env={"NEW": 'a "b"\n\\c é', "SECOND": ""}, unset=["OLD"])
        outcome = self.run_ok("printenv NEW; printenv OLD; printenv SECOND; [[ $RANDOM$RANDOM$RANDOM == $a$b$c ]] && echo repeated; true")
        self.assertEqual(outcome.stdout.decode(), 'a "b"\n\\c é\n\n')


if __name__ == "__main__":
    unittest.main()
