"""fork: of the running sandbox, with its memory, processes and files; children stand alone."""

import time

import mitos

with mitos.create("python") as parent:
    parent.run_code("import random; counter = 1; seed = random.random()")
    parent.files.write("/workspace/notes.md", "# findings")
    server = "nohup python -c 'import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000)' >/dev/null 2>&1 &"
    parent.exec(server)
    fetch = "python -c \"import urllib.request as u; print(u.urlopen('http://localhost:8000/notes.md').read().decode())\""
    for _ in range(100):
        if parent.exec(fetch).stdout.strip() == "# findings":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the parent's server does not answer")

    first, second, third = parent.fork(3)
    everyone = [parent, first, second, third]
    assert len({each.id for each in everyone}) == 4
    for child in (first, second, third):
        assert child.run_code("counter").text == "1"
        assert child.exec(fetch).stdout.strip() == "# findings", "the server runs on in the child"

    for number, each in enumerate(everyone):
        each.run_code(f"counter = {number}")
        each.files.write("/workspace/mine", str(number))
        each.exec(f"echo {number} > /workspace/notes.md")
    for number, each in enumerate(everyone):
        assert each.run_code("counter").text == str(number)
        assert each.files.read("/workspace/mine") == str(number)
        assert each.exec(fetch).stdout.strip() == str(number)
    assert len({each.run_code("random.random()").text for each in everyone}) == 4

    # A child is a sandbox like any other: it can be forked, by a name of one's own, and outlives its parent.
    (grandchild,) = first.fork(id="grandchild-1")
    assert grandchild.id == "grandchild-1"
    assert grandchild.run_code("counter").text == "1"
    first.terminate()
    assert grandchild.exec("cat /workspace/mine").stdout == "1"
    pair = second.fork(2, id="pair")
    assert [each.id for each in pair] == ["pair-0", "pair-1"]

    for each in (grandchild, second, third, *pair):
        each.terminate()
print("ok")
