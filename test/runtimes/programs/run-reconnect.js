// Follows what is cut, over the address that the environment names, and prints whether all of it arrived.
import { reconnect } from "./reconnect.js";

console.log(JSON.stringify(await reconnect()));
