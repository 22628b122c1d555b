"""The adapters handed to the frameworks they are for."""

import asyncio
import json

from agents import Agent
from agents.tool_context import ToolContext
from mcp.types import CallToolRequest, CallToolRequestParams
from mitos.integrations import claude_agent, openai_agents
from mitos.integrations.langchain import MitosSandbox, as_deepagents_backend


def deepagents():
    from deepagents.backends.sandbox import BaseSandbox

    with MitosSandbox.create("python") as sandbox:
        backend = as_deepagents_backend(sandbox)
        assert isinstance(backend, BaseSandbox)
        answer = backend.execute("echo ran; echo err >&2")
        assert (answer.output, answer.exit_code) == ("ran\nerr\n", 0), answer
        up = backend.upload_files([("/workspace/a.bin", bytes(range(256))), ("relative", b"")])
        assert [each.error for each in up] == [None, "invalid_path"], up
        down = backend.download_files(["/workspace/a.bin", "/workspace/nope"])
        assert down[0].content == bytes(range(256)) and down[1].error, down
        # What the framework itself builds on execute.
        assert backend.write("/workspace/notes.md", "one\ntwo\n").error is None
        assert "two" in str(backend.read("/workspace/notes.md"))
        assert backend.edit("/workspace/notes.md", "two", "three").error is None
        assert sandbox.read_file("/workspace/notes.md") == "one\nthree\n"
        assert "notes.md" in str(backend.ls("/workspace"))
        assert "notes.md" in str(backend.grep("three", "/workspace"))


async def openai():
    with openai_agents.MitosSandboxTools.create("python") as tools:
        agent = Agent(name="coder", tools=tools.as_function_tools())
        by_name = {tool.name: tool for tool in agent.tools}
        assert list(by_name) == ["run_command", "read_file", "write_file", "run_code"]

        async def call(name, **arguments):
            text = json.dumps(arguments)
            context = ToolContext(context=None, tool_name=name, tool_call_id="call-1", tool_arguments=text)
            return str(await by_name[name].on_invoke_tool(context, text))

        await call("write_file", path="/workspace/a.txt", content="hello")
        assert "hello" in await call("run_command", command="cat a.txt")
        assert "hello" in await call("read_file", path="/workspace/a.txt")
        assert "42" in await call("run_code", code="6 * 7")


async def claude():
    tools = claude_agent.MitosSandboxTools.create("python")
    config = tools.as_mcp_server(name="mitos-sandbox")
    assert (config["type"], config["name"]) == ("sdk", "mitos-sandbox")
    handle = config["instance"].request_handlers[CallToolRequest]

    async def call(name, **arguments):
        request = CallToolRequest(method="tools/call", params=CallToolRequestParams(name=name, arguments=arguments))
        return (await handle(request)).root.content[0].text

    assert await call("write_file", path="/workspace/a.txt", content="hello") == "wrote /workspace/a.txt"
    assert json.loads(await call("run_command", command="cat a.txt"))["stdout"] == "hello"
    assert await call("read_file", path="/workspace/a.txt") == "hello"
    assert json.loads(await call("run_code", code="6 * 7"))["text"] == "42"
    tools.close()


deepagents()
asyncio.run(openai())
asyncio.run(claude())
print("ok")
