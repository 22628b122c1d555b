// Runs the scenario against the server that the environment names, and prints what it saw.
import { scenario } from "./scenario.js";

console.log(JSON.stringify(await scenario()));
