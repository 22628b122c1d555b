// The packages of the lock file, from npm's cache where it has them. Plain JavaScript for Node 18, without dependencies.
import { captureBeside } from "./run.mjs";

/**
 * Installs what the lock file names; asks the registry about everything in a second try. What npm has kept of the registry may be older
 * than the lock file, and npm gives up at some connections that break.
 */
export async function npmInstall(args, { signal }) {
  // Not `npm ci`: it refuses a lock file without the other platforms' optional packages, which a registry mirror may not carry.
  // With --no-save the lock file is obeyed and not written.
  const install = ["install", "--no-save", "--no-audit", "--no-fund", ...args];
  try {
    await captureBeside("npm", [...install, "--prefer-offline"], { signal });
  } catch {
    signal.throwIfAborted();
    const remedy = "Check that npm reaches its registry, then run the command again.";
    await captureBeside("npm", install, { signal, remedy });
  }
}
