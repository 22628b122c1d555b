"""The adapters for agent frameworks, as far as they work without the framework."""

import json

import mitos
from mitos.integrations import claude_agent, openai_agents
from mitos.integrations.langchain import MitosSandbox, as_langchain_backend
from mitos.integrations.vibekit import MitosVibeKitProvider
from mitos.integrations.zenml import MitosSandboxComponent, MitosSandboxConfig

with MitosSandbox.create("python") as sb:
    assert as_langchain_backend(sb) is sb
    out = sb.execute("echo hi; exit 4")
    assert (out["stdout"], out["exit_code"]) == ("hi\n", 4)
    assert sb.run("echo alias")["stdout"] == "alias\n"
    assert sb.exec_result("echo typed").stdout == "typed\n"
    sb.write_file("/workspace/a.txt", "hello")
    assert sb.read_file("/workspace/a.txt") == "hello"
    assert [row.name for row in sb.list_files("/workspace")] == ["a.txt"]
    assert sb.run_code("import math; math.sqrt(144)").text == "12.0"
    assert sb.run_code_dict("state = 1; state")["text"] == "1"
    children = sb.fork(2)
    for child in children:
        assert child.run_code("state").text == "1"
        child.close()

tools = openai_agents.MitosSandboxTools.create("python")
assert tools.run_command("echo hi")["stdout"] == "hi\n"
assert tools.write_file("/workspace/a.txt", "hello") == {"path": "/workspace/a.txt", "written": True}
assert tools.read_file("/workspace/a.txt") == "hello"
assert [row["name"] for row in tools.list_files("/workspace")] == ["a.txt"]
assert tools.run_code("import math; math.sqrt(144)")["text"] == "12.0"
assert [tool.name for tool in tools.function_tools()] == ["run_command", "read_file", "write_file", "run_code"]
tools.close()

tools = claude_agent.MitosSandboxTools.create("python")
text = lambda answer: answer["content"][0]["text"]
assert json.loads(text(tools.run_command({"command": "echo hi"})))["stdout"] == "hi\n"
assert text(tools.write_file({"path": "/workspace/a.txt", "content": "hello"})) == "wrote /workspace/a.txt"
assert text(tools.read_file({"path": "/workspace/a.txt"})) == "hello"
assert json.loads(text(tools.run_code({"code": "6 * 7"})))["text"] == "42"
tools.close()

sandbox = MitosVibeKitProvider().create("python")
assert sandbox.run_command("echo hi")["stdout"] == "hi\n"
sandbox.write_file("/workspace/a.txt", "hello")
assert sandbox.read_file("/workspace/a.txt") == "hello"
assert sandbox.run_code("kept = 3; kept").text == "3"
(child,) = sandbox.fork(1)
assert child.run_code("kept").text == "3"
child.kill()
sandbox.kill()

component = MitosSandboxComponent(MitosSandboxConfig(template="python"))
component.provision()
component.provision()
assert component.run_command("echo hi")["stdout"] == "hi\n"
component.write_file("/workspace/a.txt", "hello")
assert component.read_file("/workspace/a.txt") == "hello"
assert component.run_code("1 + 1").text == "2"
component.deprovision()
try:
    MitosSandboxComponent.flavor()
    raise AssertionError("a flavor without the framework")
except mitos.AgentRunError as error:
    assert error.code == "integration_dependency_missing"
print("ok")
