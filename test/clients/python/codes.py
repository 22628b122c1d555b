"""run_code: values, results, errors, callbacks, state, time-outs."""

import base64

import mitos

with mitos.create("python") as sb:
    assert sb.run_code("x = 40").text is None
    ex = sb.run_code("print('one'); print('two')\nx + 2")
    assert (ex.text, "".join(ex.logs["stdout"]), ex.error) == ("42", "one\ntwo\n", None), ex
    assert [(result.is_main_result, result.text) for result in ex.results] == [(True, "42")]

    seen = {"out": [], "err": [], "results": []}
    ex = sb.run_code(
        "import sys; print('out'); print('err', file=sys.stderr); display('shown'); 'main'",
        on_stdout=seen["out"].append,
        on_stderr=seen["err"].append,
        on_result=seen["results"].append,
    )
    assert "".join(seen["out"]) == "out\n" and "".join(seen["err"]) == "err\n", seen
    assert "".join(ex.logs["stderr"]) == "err\n"
    assert [result.text for result in seen["results"]] == ["'shown'", "'main'"]

    ex = sb.run_code(
        """
class Rich:
    def __repr__(self): return "Rich()"
    def _repr_html_(self): return "<b>ü</b>"
    def _repr_markdown_(self): return "**m**"
    def _repr_latex_(self): return "$l$"
    def _repr_svg_(self): return "<svg/>"
    def _repr_json_(self): return {"a": [1, None]}
    def _repr_png_(self): return b"\\x89PNG"
Rich()"""
    )
    (rich,) = ex.results
    assert (rich.text, rich.html, rich.markdown, rich.latex, rich.svg) == ("Rich()", "<b>ü</b>", "**m**", "$l$", "<svg/>"), rich
    assert base64.b64decode(rich.png) == b"\x89PNG", rich.png
    assert '"a"' in rich.json

    ex = sb.run_code("def f(): raise ValueError('bad')\nf()")
    assert (ex.text, ex.error.name, ex.error.value) == (None, "ValueError", "bad"), ex
    assert any("ValueError: bad" in line for line in ex.error.traceback)

    ex = sb.run_code("while True: pass", timeout=1)
    assert (ex.error.name, ex.error.value) == ("TimeoutError", "execution exceeded the 1s timeout budget"), ex.error
    assert sb.run_code("x").text == "40"

    assert sb.run_code("1", language="cobol").error.name == "KernelUnavailable"
    try:
        sb.run_code("1", timeout=86_401)
        raise AssertionError("no ceiling")
    except mitos.TimeoutTooLargeError:
        pass
    assert sb.run_code("import os; os._exit(1)").error.name == "KernelDied"
    assert sb.run_code("1 + 1").text == "2"
print("ok")
