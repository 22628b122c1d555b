"""files: text, bytes, modes, listings, exists, and what is missing."""

import os

import mitos

with mitos.create("python") as sb:
    files = sb.files
    files.write("/workspace/deep/er/text.txt", "häß €😀\n")
    assert files.read("/workspace/deep/er/text.txt") == "häß €😀\n"

    every_byte = bytes(range(256)) * 64
    files.write("/workspace/raw.bin", every_byte)
    assert files.read_bytes("/workspace/raw.bin") == every_byte
    large = os.urandom(5_000_000)
    files.write("/workspace/large.bin", large)
    assert files.read_bytes("/workspace/large.bin") == large
    files.write("/workspace/empty", "")
    assert (files.read("/workspace/empty"), files.read_bytes("/workspace/empty")) == ("", b"")

    files.write("/workspace/run.sh", "echo ran", mode=0o755)
    assert sb.exec("./run.sh").stdout == "ran\n"

    rows = {row.name: row for row in files.list("/workspace")}
    assert set(rows) == {"deep", "raw.bin", "large.bin", "empty", "run.sh"}, rows
    assert rows["deep"].is_dir and not rows["raw.bin"].is_dir
    assert (rows["raw.bin"].size, rows["empty"].size) == (len(every_byte), 0)
    assert rows["run.sh"].mode & 0o777 == 0o755, oct(rows["run.sh"].mode)
    assert abs(int(rows["empty"].modified_at) - int(sb.exec("date +%s").stdout)) < 600
    assert {"bin", "usr", "workspace"} <= {row.name for row in files.list()}

    files.mkdir("/workspace/new/tree")
    files.mkdir("/workspace/new/tree")
    assert files.list("/workspace/new/tree") == []
    assert files.exists("/workspace/new/tree") is True
    assert files.exists("/workspace/run.sh") is True
    assert files.exists("/workspace/nope") is False
    files.remove("/workspace/new")
    assert files.exists("/workspace/new") is False
    files.remove("/workspace/new")
    files.remove("/workspace/run.sh")
    assert files.exists("/workspace/run.sh") is False

    for call in (lambda: files.read("/does/not/exist"), lambda: files.read_bytes("/does/not/exist"), lambda: files.list("/nope")):
        try:
            call()
            raise AssertionError("a missing path")
        except mitos.NotFoundError as error:
            assert error.code == "not_found" and error.remediation
    for call in (lambda: files.read("/workspace"), lambda: files.write("/workspace", "x"), lambda: files.write("/proc/nope", "x")):
        try:
            call()
            raise AssertionError("an impossible path")
        except mitos.AgentRunError as error:
            assert error.code and error.remediation, error
print("ok")
