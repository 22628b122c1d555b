// Runs the kernels' own tests (guest/kernels/test_kernels.py) with the interpreter of the sandboxes, with IPython, numpy and matplotlib at hand.
import { spawnSync } from "node:child_process";
import path from "node:path";
import { sandboxPython, unpackedPackages } from "./python-packages.ts";

const { status, error } = spawnSync(sandboxPython, ["-m", "unittest", "-q", "test_kernels"], {
  cwd: path.join(import.meta.dirname, "../../guest/kernels"),
  env: { ...process.env, PYTHONDONTWRITEBYTECODE: "1", MITOS_TEST_PYTHONPATH: await unpackedPackages("plots", "ipython") },
  stdio: "inherit",
});
if (error) throw error;
process.exitCode = status ?? 1;
