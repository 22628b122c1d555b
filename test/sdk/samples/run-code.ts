// runCode: a live interpreter that keeps its state, with rich results, and errors as results.
import { create } from "@mitos/sdk";

await using sandbox = await create("python");
console.log((await sandbox.runCode("1 + 1")).text);
console.log((await sandbox.runCode("import math; math.sqrt(144)")).text);

await sandbox.runCode("x = 41");
const execution = await sandbox.runCode("print('hi')\nx + 1", { onStdout: (chunk) => console.log("live:", chunk.trimEnd()) });
console.log(execution.text, execution.logs.stdout, execution.results[0]?.isMainResult);

const rich = await sandbox.runCode(`
class Rich:
    def __repr__(self): return "Rich()"
    def _repr_html_(self): return "<b>bold</b>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_json_(self): return {"a": 1}
Rich()`);
const [result] = rich.results;
console.log(result?.text, result?.html, result?.png, result?.json, result?.svg);

const failed = await sandbox.runCode("raise ValueError('bad')");
console.log(failed.error?.name, failed.error?.value, failed.text);
