"""The quickstarts of both published pages, line by line."""

import os

import mitos
from mitos.direct import SandboxServer

url = os.environ["MITOS_BASE_URL"]

# The flat one-liner: key and address from the environment.
sb = mitos.create("python")
assert sb.exec("echo hello").stdout == "hello\n"
sb.terminate()

sb = mitos.create("python", api_key="sk-any", base_url=url)
assert "sk-any" not in repr(sb)
sb.files.write("/workspace/plan.txt", "draft")
assert sb.files.read("/workspace/plan.txt") == "draft"
ex = sb.run_code("import math; math.sqrt(144)")
assert ex.text == "12.0", ex
fork_a, fork_b = sb.fork(2)
fork_a.exec("echo a > /workspace/a.txt")
fork_b.exec("echo b > /workspace/b.txt")
# "b does not see a's write", and both have what their parent had.
assert fork_b.exec("ls /workspace").stdout.split() == ["b.txt", "plan.txt"]
assert fork_a.exec("ls /workspace").stdout.split() == ["a.txt", "plan.txt"]
for each in (fork_a, fork_b, sb):
    each.terminate()

# The lower level.
server = SandboxServer(url)
server.create_template("python")
sandbox = server.fork("python")
assert sandbox.exec("python -c 'print(1 + 1)'").stdout == "2\n"
sandbox.terminate()

# As a context manager, by its other names, and of the other templates.
with mitos.DirectSandbox.create("node") as node:
    assert node.run_code("[1, 2].map(x => x * 2)", language="javascript").text == "[ 2, 4 ]"
with mitos.Sandbox.create("base", id="my_base-1") as base:
    assert base.id == "my_base-1"
    assert base.exec("uname -s").stdout == "Linux\n"
    # The name of the host is the sandbox's, as far as a host may be named so.
    assert base.exec("cat /proc/sys/kernel/hostname").stdout.strip() == "my-base-1"
assert server.list_sandboxes() == [], server.list_sandboxes()
print("ok")
