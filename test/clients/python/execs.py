"""exec: results, output, time-outs, typed errors."""

import mitos

with mitos.create("python") as sb:
    out = sb.exec("echo to stdout; echo to stderr >&2; exit 3")
    assert (out.exit_code, out.stdout, out.stderr) == (3, "to stdout\n", "to stderr\n"), out
    assert out.exec_time_ms > 0

    assert sb.exec("pwd").stdout == "/workspace\n"
    assert sb.exec("echo 'häß €😀'").stdout == "häß €😀\n"
    big = sb.exec("head -c 3000000 /dev/zero | tr '\\0' x")
    assert big.stdout == "x" * 3_000_000, len(big.stdout)
    assert "\ufffd" in sb.exec("printf '\\377'").stdout

    try:
        sb.exec("sleep 60", timeout=1)
        raise AssertionError("no time-out")
    except mitos.ExecutionDeadlineError as error:
        assert error.code == "exec_timeout", error.code
        assert error.context.get("timeout_s") == 1, error.context

    try:
        sb.exec("true", timeout=86_401)
        raise AssertionError("no ceiling")
    except mitos.TimeoutTooLargeError as error:
        assert error.code == "timeout_too_large"
        assert error.context["max_timeout_s"] == 86_400, error.context

    # A program that leaves something behind does not take the next one with it.
    assert sb.exec("sleep 100 >/dev/null 2>&1 & echo started").stdout == "started\n"
    gone = sb

try:
    gone.exec("true")
    raise AssertionError("exec in a sandbox that has ended")
except mitos.AgentRunError as error:
    assert error.remediation, error

ghost = mitos.DirectSandbox("sandbox-ghost", "python", gone.endpoint, gone._server_url, 0.0)
for call in (
    lambda: ghost.exec("true"),
    lambda: ghost.files.read("/etc/hostname"),
    lambda: ghost.files.write("/workspace/x", "y"),
    lambda: ghost.set_timeout(60),
    lambda: ghost.pause(),
):
    try:
        call()
        raise AssertionError("a sandbox that never was")
    except mitos.NotFoundError as error:
        assert (error.code, bool(error.remediation)) == ("not_found", True), error
print("ok")
