"""The shim for code that was written for E2B."""

import mitos
from mitos.e2b import Sandbox

with Sandbox.create(timeout=300, metadata={"team": "a"}) as sb:
    result = sb.commands.run("echo hi; exit 2")
    assert (result.stdout, result.exit_code) == ("hi\n", 2)
    sb.files.make_dir("/workspace/d")
    sb.files.write("/workspace/d/a.txt", "text")
    assert sb.files.read("/workspace/d/a.txt") == "text"
    assert [row.name for row in sb.files.list("/workspace/d")] == ["a.txt"]
    assert sb.files.exists("/workspace/d/a.txt") and not sb.files.exists("/workspace/nope")
    sb.files.remove("/workspace/d")
    assert sb.run_code("6 * 7").text == "42"
    sb.set_timeout(60)

    assert sb.sandbox_id in [info.sandbox_id for info in Sandbox.list()]
    again = Sandbox.connect(sb.sandbox_id)
    again.files.write("/workspace/from-the-other", "x")
    assert sb.files.read("/workspace/from-the-other") == "x"
try:
    Sandbox.connect(sb.sandbox_id)
    raise AssertionError("a sandbox that was killed")
except mitos.NotFoundError:
    pass
print("ok")
