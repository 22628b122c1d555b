/** What the scenario sees in every runtime. */
export const seenByTheScenario = {
  exec: { exitCode: 3, stdout: "out\n", stderr: "err\n", pieces: { stdout: "out\n", stderr: "err\n" } },
  execStream: ["first\n", "second\n", 0],
  execBackground: { exitCode: 4, stdout: "got a line\n", live: "got a line\n", again: "a line\n", running: false },
  files: { small: true, large: true, parts: "häß €😀", list: ["large 3145735", "parts 13", "small 256"], missing: false },
  runCode: { text: "42", stdout: "hi\n", error: null, results: ["42"], failed: "ZeroDivisionError" },
  terminal: { exitCode: 7, sized: true },
  errors: {
    missing: [true, "NotFoundError", "not_found", 404],
    late: [true, true, "ExecutionDeadlineError", 1],
  },
  fork: { child: "42", parent: "41", size: 256 },
  ended: { name: "IdleTimeoutError", code: "idle_timeout", status: 410 },
};
