"""set_timeout, pause and resume, the server's own methods, retries, and refusals."""

import os
import time
import uuid

import mitos
from mitos.direct import SandboxServer

server = SandboxServer.from_auth()
assert server.url == os.environ["MITOS_BASE_URL"]
health = server.health()
assert (health["status"], health["mock"]) == ("ok", False), health

network = mitos.Network(egress="deny", allow_domains=["example.com:443"], allow_cidrs=["10.0.0.0/8"])
made = server.create_template("lifecycle", init_wait_seconds=1, network=network)
assert (made["id"], made["ready"]) == ("lifecycle", True), made
assert made["network"]["allow_domains"] == ["example.com:443"]
assert server.ensure_template("lifecycle", network=network)["ready"] is True
assert "lifecycle" in [row["id"] for row in server.list_templates()]

key = uuid.uuid4().hex
sb = server.fork("lifecycle", id="first-try", idempotency_key=key)
assert server.fork("lifecycle", id="second-try", idempotency_key=key).id == "first-try"
rows = {row["id"]: row for row in server.list_sandboxes()}
assert list(rows) == ["first-try"] and rows["first-try"]["template_id"] == "lifecycle", rows

deadline = sb.set_timeout(600)
assert abs(deadline - time.time() - 600) < 60, deadline
assert sb.set_timeout(300) < deadline
try:
    sb.set_timeout(86_401)
    raise AssertionError("no ceiling")
except mitos.TimeoutTooLargeError:
    pass

sb.run_code("kept = 'in memory'")
sb.files.write("/workspace/kept", "on disk")
sb.pause()
try:
    sb.exec("true")
    raise AssertionError("exec in a paused sandbox")
except mitos.AgentRunError as error:
    assert error.remediation
sb.resume()
assert sb.run_code("kept").text == "'in memory'"
assert sb.files.read("/workspace/kept") == "on disk"

try:
    server.fork("first-try-has-no-such-template")
    raise AssertionError("an unknown template")
except mitos.NotFoundError as error:
    assert error.remediation
for bad in ("../../etc", "a/b", "with space"):
    try:
        server.create_template(bad)
        raise AssertionError(f"the template id {bad!r}")
    except mitos.AgentRunError as error:
        assert error.code in ("invalid_input", "invalid_json"), error.code
try:
    mitos.create("python:3.12")
    raise AssertionError("an image that cannot be built here")
except mitos.AgentRunError as error:
    assert error.code == "not_supported", (error.code, error)
    assert "python" in error.remediation and "base" in error.remediation, error.remediation

sb.terminate()
sb.terminate()
assert server.list_sandboxes() == []
print("ok")
