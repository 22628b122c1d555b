/** The first code that a sandbox of this template runs draws a plot: nothing has to be imported first. */

import { writeFileSync } from "node:fs";
import { create } from "@mitos/sdk";

// What the template was allowed for its packages, its sandboxes do not need.
await using sandbox = await create("data-science", { network: { block: true } });
const { results, logs, error } = await sandbox.runCode(`
days = pd.date_range("2026-01-01", periods=365)
warmth = pd.Series(10 - 9 * np.cos(np.arange(365) / 365 * 2 * np.pi), index=days, name="°C")
warmth.resample("MS").mean().plot.bar()
plt.show()
print(f"warmest month: {warmth.resample('MS').mean().idxmax():%B}")
`);
if (error) throw new Error(`${error.name}: ${error.value}`);
console.log(logs.stdout.join("").trim());
const png = results.find((result) => result.png)?.png;
if (!png) throw new Error("no plot came back");
writeFileSync("plot.png", Buffer.from(png, "base64"));
console.log("wrote plot.png");
