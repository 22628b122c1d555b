/** run_code as an agent uses it: state, rich results, streaming, time-outs, lost kernels, and real packages. */

import { inflateSync } from "node:zlib";
import type { Execution, Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { patience } from "../support/engine-under-test.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { installPackages } from "../support/python-packages.ts";
import { until } from "../support/until.ts";

let server: LiveServer;
let sandbox: Sandbox;
beforeAll(async () => {
  server = await startLiveServer();
  sandbox = await server.create();
});
afterAll(async () => {
  await server?.close();
});

const stdout = ({ logs }: Execution) => logs.stdout.join("");
const stderr = ({ logs }: Execution) => logs.stderr.join("");

describe("Python", () => {
  const run = (code: string, timeoutSeconds = 60) => sandbox.runCode(code, { timeoutSeconds });

  it("gives the value of the last expression, and keeps state", async () => {
    await run("x = 40\ndef double(n):\n    return 2 * n");
    expect(await run("double(x) + 4")).toMatchObject({ text: "84", error: null, results: [{ isMainResult: true, text: "84" }] });
    expect(await run("y = x")).toMatchObject({ text: null, results: [] });
    expect((await run("None")).text).toBeNull();
    expect((await run("'text'")).text).toBe("'text'");
  });

  it("shows displays in their order, with every representation of an object", async () => {
    const { results, text } = await run(`
class Table:
    def __repr__(self): return "Table(2)"
    def _repr_html_(self): return "<table><tr><td>1</td></tr></table>"
    def _repr_markdown_(self): return "|1|"
    def _repr_svg_(self): return "<svg/>"
    def _repr_latex_(self): return "$1$"
    def _repr_json_(self): return {"rows": [1, {"ä": None}]}
    def _repr_png_(self): return b"\\x89PNG not really"
display("before")
Table()`);
    expect(text).toBe("Table(2)");
    expect(results.map(({ text, isMainResult }) => [text, isMainResult])).toEqual([
      ["'before'", false],
      ["Table(2)", true],
    ]);
    const [, table] = results;
    expect(table).toMatchObject({ html: "<table><tr><td>1</td></tr></table>", markdown: "|1|", svg: "<svg/>", latex: "$1$" });
    expect(JSON.parse(table!.json!)).toEqual({ rows: [1, { ä: null }] });
    expect(Buffer.from(table!.png!, "base64").toString("latin1")).toBe("\x89PNG not really");
  });

  it("shows a bundle of MIME types as it is", async () => {
    const { results } = await run(`display({"application/json": {"a": [1, 2]}, "text/plain": "a"}, raw=True)`);
    expect(results).toHaveLength(1);
    expect([JSON.parse(results[0]!.json!), results[0]!.text]).toEqual([{ a: [1, 2] }, "a"]);
  });

  it("tells an exception as data, with a traceback that begins in the cell", async () => {
    const { error, text } = await run("def inner():\n    return {}['missing']\n\ninner()");
    expect([text, error?.name, error?.value]).toEqual([null, "KeyError", "'missing'"]);
    const traceback = error!.traceback.join("\n");
    expect(traceback).toMatch(/line 4[\s\S]*inner\(\)[\s\S]*line 2[\s\S]*return \{\}\['missing'\][\s\S]*KeyError: 'missing'/);
    expect(traceback).not.toContain("python_kernel");
    expect((await run("1 +")).error?.name).toBe("SyntaxError");
    expect((await run("import sys; sys.exit(3)")).error?.name).toBe("SystemExit");
    expect((await run("x")).text).toBe("40");
  });

  it("streams standard output and standard error while the cell runs", async () => {
    const seen: string[] = [];
    const answered: Promise<void>[] = [];
    const reply = (text: string) => {
      seen.push(text);
      // Only what has come out of the running cell lets it go on.
      if (seen.length === 1) answered.push(sandbox.files.write("/workspace/go-on", ""));
    };
    const result = await sandbox.runCode(
      `
import os, sys, time
print("first", flush=True)
deadline = time.monotonic() + 20
while not os.path.exists("/workspace/go-on") and time.monotonic() < deadline:
    time.sleep(0.01)
print("went on" if time.monotonic() < deadline else "nobody listened")
print("to stderr", file=sys.stderr)
os.system("echo from a program")`,
      { onStdout: reply },
    );
    await Promise.all(answered);
    expect([stdout(result), stderr(result)]).toEqual(["first\nwent on\nfrom a program\n", "to stderr\n"]);
    expect(seen[0]).toBe("first\n");
  });

  it("interrupts a cell at its time-out, in Python, in a program and in a sleep, and keeps the state", async () => {
    for (const code of ["while True: pass", "import time; time.sleep(99)", "import subprocess; subprocess.run(['sleep', '99'])"]) {
      const { error } = await run(code, 1);
      expect(error, code).toMatchObject({ name: "TimeoutError", value: "execution exceeded the 1s timeout budget" });
      expect((await run("x")).text, code).toBe("40");
    }
  });

  it("that tells of an error larger than a message may be keeps the sandbox's other calls", async () => {
    const { error } = await run(
      [
        "import gc, os",
        'kernel = next(each for each in gc.get_objects() if type(each).__name__ == "Events")',
        'head = f\'{{"event":"error","id":{kernel.cell},"name":"Large","traceback":[],"value":"\'.encode()',
        'for piece in [head, *[b"x" * 2**20] * 65, b\'"}\\n\']:',
        "    while piece: piece = piece[os.write(kernel.fd, piece):]",
      ].join("\n"),
    );
    expect(error).toMatchObject({ name: "KernelOutputTooLarge", value: "an error is above 64 MiB" });
    expect((await run("1 + 1")).text).toBe("2");
  });

  it("starts a kernel that died again, and says that its state is gone", async () => {
    expect((await run("import os; os._exit(3)")).error?.name).toBe("KernelDied");
    const { error } = await run("x");
    expect(error?.name).toBe("NameError");

    await run("x = 1");
    const pid = (await run("import os; os.getpid()")).text!;
    await sandbox.exec(["kill", "-9", pid]);
    await until("the kernel has ended", async () => (await sandbox.exec(["kill", "-0", pid])).exitCode !== 0);
    const after = await run("'x' in globals()");
    expect(after.text).toBe("False");
    expect(stderr(after)).toContain("the state of the old one is gone");
    expect(stderr(await run("2"))).toBe("");
  });
});

describe("a fresh sandbox", () => {
  const kernelPids = async (fresh: Sandbox, program: string) =>
    (await fresh.exec(["pgrep", "-f", `/run/mitos/kernels/${program}`])).stdout.trim().split("\n").filter(Boolean);

  it.each([
    ["python", "python", "python_kernel.py", "import os; os.getpid()"],
    ["node", "javascript", "javascript_kernel.mjs", "process.pid"],
  ])("of the template %s has its kernel before the first run_code, which starts nothing", async (template, language, program, code) => {
    await using fresh = await server.create({ template });
    const before = await kernelPids(fresh, program);
    expect(before).toHaveLength(1);
    expect((await fresh.runCode(code, { language })).text).toBe(before[0]);
    expect(await kernelPids(fresh, program)).toEqual(before);
  });

  it("starts a kernel that its template does not warm with its first use", async () => {
    await using fresh = await server.create();
    expect(await kernelPids(fresh, "bash_kernel.sh")).toEqual([]);
    expect(stdout(await fresh.runCode("echo $((6 * 7))", { language: "bash" }))).toBe("42\n");
    expect(await kernelPids(fresh, "bash_kernel.sh")).toHaveLength(1);
  });
});

describe("JavaScript", () => {
  const run = (code: string, timeoutSeconds = 60) => sandbox.runCode(code, { language: "javascript", timeoutSeconds });

  it("gives the value of the last expression, waits for promises, and keeps state", async () => {
    await run("const kept = { n: 6 }; let count = 7; class Point { constructor() { this.x = 1 } }");
    expect((await run("kept.n * count")).text).toBe("42");
    expect((await run("await new Promise((resolve) => setTimeout(() => resolve('later'), 5))")).text).toBe("'later'");
    expect((await run("new Point()")).text).toBe("Point { x: 1 }");
    expect((await run("require('node:path').join('a', 'b')")).text).toBe("'a/b'");
    expect((await run("undefined")).text).toBeNull();
  });

  it("separates standard output from standard error, and tells errors as data", async () => {
    const result = await run("console.log('out', { a: 1 }); console.error('err'); throw new TypeError('bad')");
    expect([stdout(result), stderr(result)]).toEqual(["out { a: 1 }\n", "err\n"]);
    expect(result.error).toMatchObject({ name: "TypeError", value: "bad" });
    expect(result.error!.traceback.join("\n")).toContain("TypeError: bad");
    expect((await run("syntax error here")).error?.name).toBe("SyntaxError");
    expect((await run("await Promise.reject(new RangeError('late'))")).error).toMatchObject({ name: "RangeError", value: "late" });
  });

  it("interrupts a loop and a wait at their time-out and keeps the state", async () => {
    for (const code of ["for (;;);", "await new Promise(() => setInterval(() => {}, 1000))"]) {
      expect((await run(code, 1)).error, code).toMatchObject({ name: "TimeoutError" });
      expect((await run("kept.n")).text, code).toBe("6");
    }
  });

  it("is started again when it died", async () => {
    expect((await run("process.exit(3)")).error?.name).toBe("KernelDied");
    expect((await run("typeof kept")).text).toBe("'undefined'");
  });
});

describe("bash", () => {
  const run = (code: string, timeoutSeconds = 60) => sandbox.runCode(code, { language: "bash", timeoutSeconds });

  it("keeps variables, functions and the working directory", async () => {
    await run('name=value; greet() { echo "hello $1"; }; mkdir -p /workspace/sub && cd /workspace/sub');
    const result = await run('greet "$name"; pwd; echo err >&2');
    expect([stdout(result), stderr(result), result.error]).toEqual(["hello value\n/workspace/sub\n", "err\n", null]);
  });

  it("tells a status other than 0 as an error and goes on", async () => {
    expect((await run("echo before; (exit 9)")).error).toMatchObject({ name: "ExitError", value: expect.stringContaining("9") });
    expect(stdout(await run("echo $name"))).toBe("value\n");
  });

  it("is interrupted at its time-out and keeps its state", async () => {
    for (const code of ["sleep 99", "while :; do :; done"]) {
      expect((await run(code, 1)).error, code).toMatchObject({ name: "TimeoutError" });
      expect(stdout(await run("echo $name")), code).toBe("value\n");
    }
  });

  it("is started again when it ended", async () => {
    expect((await run("exit 3")).error?.name).toBe("KernelDied");
    expect(stdout(await run('echo "[$name]"'))).toBe("[]\n");
  });
});

describe("with packages", () => {
  let equipped: Sandbox;
  const run = (code: string, timeoutSeconds = 120 * patience) => equipped.runCode(code, { timeoutSeconds });

  beforeAll(async () => {
    equipped = await server.createWithMemory(1536, {
      // For interpreters that are started in this sandbox; its warm kernel was started before there was anything there.
      env: { PYTHONPATH: "/workspace/packages/ipython:/workspace/packages/plots" },
    });
    await installPackages(equipped, "plots");
    await installPackages(equipped, "ipython");
  });
  afterAll(async () => {
    await equipped?.terminate();
  });

  /** Whether a picture shows anything: more than one colour. */
  function expectPicture(base64: string | undefined): void {
    const png = Buffer.from(base64 ?? "", "base64");
    expect(png.subarray(0, 8).toString("hex")).toBe("89504e470d0a1a0a");
    const data: Buffer[] = [];
    for (let at = 8; at < png.length; at += 12 + png.readUInt32BE(at)) {
      const type = png.toString("latin1", at + 4, at + 8);
      if (type === "IHDR") expect(png.readUInt32BE(at + 8), "width").toBeGreaterThan(100);
      if (type === "IDAT") data.push(png.subarray(at + 8, at + 8 + png.readUInt32BE(at)));
    }
    expect(new Set(inflateSync(Buffer.concat(data))).size, "different bytes").toBeGreaterThan(20);
  }

  /** The same under both shells. */
  async function expectPlots(): Promise<void> {
    const { results, text, error } = await run(`
import matplotlib.pyplot as plt, numpy as np
plt.plot(np.arange(50) ** 2)
int(np.arange(4).sum())`);
    expect([error, text]).toEqual([null, "6"]);
    const pictures = results.filter(({ png }) => png !== undefined);
    expect(pictures).toHaveLength(1);
    expectPicture(pictures[0]!.png);
    const { mark, data } = JSON.parse(pictures[0]!.chart ?? "null") as { mark: string; data: { values: object[] } };
    expect([mark, data.values[7]]).toEqual(["line", { x: 7, y: 49 }]);

    const shown = await run("figure, axes = plt.subplots(); axes.bar([1, 2], [3, 4]); plt.show(); print('after')");
    expect(shown.error).toBeNull();
    expect(shown.results.map(({ chart }) => JSON.parse(chart ?? "null")?.mark)).toEqual(["bar"]);
    expect(shown.results.filter(({ png }) => png !== undefined)).toHaveLength(1);
    expect(stdout(shown)).toBe("after\n");

    expect((await run("plt.close('all'); 1")).results.filter(({ png }) => png !== undefined)).toEqual([]);
  }

  it("the warm kernel imports what sys.path leads to, and shows figures unasked", async () => {
    const { error } = await run("import sys; sys.path.insert(0, '/workspace/packages/plots')");
    expect(error).toBeNull();
    expect((await run("type(globals().get('get_ipython')).__name__")).text).toBe("'NoneType'");
    await expectPlots();
  });

  it("a kernel that is started again has IPython's semantics", async () => {
    expect((await run("import os; os._exit(0)")).error?.name).toBe("KernelDied");
    expect((await run("get_ipython().user_ns is globals()")).text).toBe("True");
    const magics = await run("%cd /tmp\nhere = %pwd\nlisting = !echo one; echo two\n!echo out $((6 * 7)) {here}");
    expect(magics.error).toBeNull();
    expect(stdout(magics)).toContain("out 42 /tmp\n");
    expect((await run("listing.s, here")).text).toBe("('one two', '/tmp')");
    expect((await run("import asyncio\nawait asyncio.sleep(0.01, 'awaited')")).text).toBe("'awaited'");
    expect((await run("_ + '!'")).text).toBe("'awaited!'");
    expect(stdout(await run("%%bash\necho from bash"))).toBe("from bash\n");
    expect((await run("%no_such_magic")).results).toEqual([]);
  });

  it("IPython's displays, errors and time-outs look as those of the plain kernel", async () => {
    const { results, text } = await run("from IPython.display import HTML, JSON, display\ndisplay(HTML('<b>1</b>'))\nJSON({'a': 1})");
    expect(results[0]).toMatchObject({ html: "<b>1</b>", isMainResult: false });
    expect(JSON.parse(results[1]!.json!)).toEqual({ a: 1 });
    expect(text).toContain("IPython.core.display.JSON");
    const { error } = await run("def inner():\n    1 / 0\ninner()");
    expect(error).toMatchObject({ name: "ZeroDivisionError", value: "division by zero" });
    expect(error!.traceback.join("\n")).toContain("1 / 0");
    expect((await run("kept = 5\nwhile True: pass", 2)).error).toMatchObject({ name: "TimeoutError" });
    expect((await run("kept")).text).toBe("5");
  });

  it("IPython shows figures unasked", () => expectPlots());

  it("a plain array, a figure as a value, and a table of pandas' kind are shown with all they offer", async () => {
    expect((await run("import numpy as np; np.eye(2)")).text).toBe("array([[1., 0.],\n       [0., 1.]])");
    const { results } = await run("import matplotlib.pyplot as plt\nfigure, axes = plt.subplots(); axes.plot([1, 2]); figure");
    const pictures = results.filter(({ png }) => png !== undefined);
    expect(pictures.length, "shown once").toBe(1);
    expectPicture(pictures[0]!.png);
    const table = await run("class Frame:\n    def _repr_html_(self): return '<table></table>'\nFrame()");
    expect(table.results[0]!.html).toBe("<table></table>");
  });
});
