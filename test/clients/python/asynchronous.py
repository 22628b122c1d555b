"""mitos.aio: the documented path, callbacks, terminals, many sandboxes at once."""

import asyncio

import mitos
import mitos.aio


async def main():
    sb = await mitos.aio.create("python")
    assert (await sb.exec("echo hi")).stdout == "hi\n"
    await sb.files.write("/workspace/a.txt", "x")
    assert await sb.files.read("/workspace/a.txt") == "x"
    await sb.files.write("/workspace/raw", bytes(range(256)))
    assert await sb.files.read_bytes("/workspace/raw") == bytes(range(256))
    await sb.files.mkdir("/workspace/d")
    assert sorted(row.name for row in await sb.files.list("/workspace")) == ["a.txt", "d", "raw"]
    await sb.files.remove("/workspace/d")

    ex = await sb.run_code("1 + 1")
    assert ex.text == "2"
    out = []
    await sb.run_code("print('seen'); kept = 5", on_stdout=out.append)
    assert "".join(out) == "seen\n"

    children = await sb.fork(2)
    texts = await asyncio.gather(*(child.run_code("kept") for child in children))
    assert [each.text for each in texts] == ["5", "5"], texts
    for child in children:
        await child.terminate()

    try:
        await sb.exec("sleep 60", timeout=1)
        raise AssertionError("no time-out")
    except mitos.ExecutionDeadlineError:
        pass
    try:
        await sb.files.read("/nope")
        raise AssertionError("a missing path")
    except mitos.NotFoundError:
        pass

    shown, seen = bytearray(), asyncio.Event()

    def on_data(data):
        shown.extend(data)
        if b"async-42" in shown:
            seen.set()

    pty = await sb.create_pty(on_data, cols=90, rows=20)
    await pty.send_input(b"echo async-$((2 * 21))\n")
    await asyncio.wait_for(seen.wait(), 30)
    await pty.resize(100, 30)
    await pty.send_input(b"exit 3\n")
    assert await asyncio.wait_for(pty.wait(), 30) == 3
    await sb.terminate()

    async with await mitos.aio.create("base") as base:
        results = await asyncio.gather(*(base.exec(f"echo {n}") for n in range(6)))
        assert [each.stdout for each in results] == [f"{n}\n" for n in range(6)]


asyncio.run(main())
print("ok")
