import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** A way to a server that breaks again and again in the middle of what it carries. */
export interface CuttingProxy extends AsyncDisposable {
  readonly url: string;
  /** How often it has broken so far. */
  readonly cuts: number;
}

/** A stream that fails drops what its reader has not taken yet: this is how long a reader has for what arrived. */
const readMs = 50;

/** Cuts the connection of every followed output of a process after each `bytes` of the answer; other requests pass whole. */
export async function startCuttingProxy(target: string, bytes: number): Promise<CuttingProxy> {
  const { hostname, port } = new URL(target);
  const open = new Set<Socket>();
  let cuts = 0;
  const server = createServer((client) => {
    const upstream = connect(Number(port), hostname);
    const pair = [client, upstream];
    let left = Number.POSITIVE_INFINITY;
    client.on("data", (data) => {
      if (/^[A-Z]+ \//.test(data.toString("latin1", 0, 16))) left = isFollowedOutput(data) ? bytes : Number.POSITIVE_INFINITY;
      upstream.write(data);
    });
    upstream.on("data", (data) => {
      if (data.length < left) {
        left -= data.length;
        client.write(data);
      } else {
        cuts++;
        upstream.pause();
        client.write(data.subarray(0, left)); // mid-line as it may be
        setTimeout(() => {
          client.end();
          upstream.destroy();
        }, readMs);
      }
    });
    for (const socket of pair) {
      open.add(socket);
      socket.on("error", () => undefined); // "close" follows
      socket.on("close", () => {
        open.delete(socket);
        for (const each of pair) if (each !== socket && !each.writableEnded) each.destroy();
      });
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get cuts() {
      return cuts;
    },
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of open) socket.destroy();
      await closed;
    },
  };
}

function isFollowedOutput(request: Buffer): boolean {
  return /^GET \S+\/output\?\S*follow=true/.test(request.toString("latin1"));
}
