import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { createServer as createHttpServer, type ServerResponse } from "node:http";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { pipeline } from "node:stream/promises";
import { getCACertificates } from "node:tls";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { formatAddress, kindOf, parseAddress, unwrap } from "../../packages/engine/src/egress/addresses.ts";
import { type EgressNetwork, hostNetwork } from "../../packages/engine/src/egress/network.ts";
import { patience } from "../support/engine-under-test.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

/** Where names of the tests lead. Other names are the host's. */
const addresses: Record<string, readonly string[]> = {
  "web.test": ["1.2.3.4"],
  "a.wild.test": ["1.2.3.4"],
  "wild.test": ["1.2.3.4"],
  "private.test": ["10.9.9.9"],
  "metadata.test": ["::ffff:169.254.169.254"],
  "mixed.test": ["127.0.0.1", "1.2.3.4"],
};

const bigBytes = 100 * 1024 * 1024;

/** A program outside: HTTP on port 80 of 1.2.3.4, an echo on port 7, and a sender that nothing stops on port 9. */
class Upstream {
  readonly downloads: ServerResponse[] = [];
  readonly sockets = new Set<Socket>();
  takenBytes = 0;
  readonly #http = createHttpServer((request, response) => {
    if (request.url === "/download") {
      this.downloads.push(response);
      response.write("begun\n");
    } else if (request.url === "/big") {
      response.writeHead(200, { "Content-Length": bigBytes });
      void this.#sendZeros(response);
    } else {
      response.end(`${request.method} ${request.url} of ${request.headers.host}`);
    }
  });
  readonly #echo = createServer({ allowHalfOpen: true }, (socket) => {
    this.sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => this.sockets.delete(socket));
    socket.pipe(socket);
  });
  readonly #flood = createServer((socket) => {
    this.sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => this.sockets.delete(socket));
    const chunk = Buffer.alloc(65_536);
    const push = (): void => {
      do this.takenBytes += chunk.byteLength;
      while (!socket.destroyed && socket.write(chunk));
    };
    socket.on("drain", push);
    push();
  });

  readonly network: EgressNetwork = {
    resolve: async (name, signal) => addresses[name] ?? hostNetwork.resolve(name, signal),
    connect: async (address, port, signal) => {
      if (address !== "1.2.3.4") return hostNetwork.connect(address, port, signal);
      const server = { 80: this.#http, 7: this.#echo, 9: this.#flood }[port];
      return hostNetwork.connect("127.0.0.1", server ? (server.address() as AddressInfo).port : 1, signal);
    },
    ownAddresses: hostNetwork.ownAddresses,
  };

  async listen(): Promise<void> {
    for (const server of [this.#http, this.#echo, this.#flood]) await once(server.listen(0, "127.0.0.1"), "listening");
  }

  async close(): Promise<void> {
    this.#http.closeAllConnections();
    for (const socket of this.sockets) socket.destroy();
    await Promise.all([this.#http, this.#echo, this.#flood].map((server) => new Promise((closed) => server.close(closed))));
  }

  async #sendZeros(response: ServerResponse): Promise<void> {
    const chunk = Buffer.alloc(1024 * 1024);
    const chunks = Array.from({ length: bigBytes / chunk.byteLength }, () => chunk);
    // A reader that leaves is what some tests are about.
    await pipeline(chunks, response).catch(() => {});
  }
}

const upstream = new Upstream();
let server: LiveServer;
/** May go to web.test, and to what the other rules name. */
let sandbox: Sandbox;

beforeAll(async () => {
  await upstream.listen();
  server = await startLiveServer("real", upstream.network);
  sandbox = await server.create({
    network: {
      allowDomains: ["web.test:80", "web.test:7", "web.test:9", "*.wild.test:80", "private.test:80", "metadata.test:80", "mixed.test:80"],
    },
  });
});
afterAll(async () => {
  await server.close();
  await upstream.close();
});

async function python(where: Sandbox, program: string): Promise<string> {
  const { stdout, stderr, exitCode } = await where.exec(["python3", "-c", `${helpers}\n${program}`], { timeoutSeconds: 110 });
  expect(exitCode, stderr).toBe(0);
  return stdout.trim();
}

/** Small clients, written out so that what they know of proxies is in sight. */
const helpers = `
import socket, struct, sys, os, urllib.request, urllib.error
def http_connect(host, port):
    s = socket.create_connection(("127.0.0.1", 3128), 30)
    s.sendall(f"CONNECT {host}:{port} HTTP/1.1\\r\\n\\r\\n".encode())
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        part = s.recv(1)
        if not part: break
        head += part
    return s, head.decode().split("\\r\\n")[0]
def socks(host, port):
    s = socket.create_connection(("127.0.0.1", 3128), 30)
    name = host.encode()
    s.sendall(b"\\x05\\x01\\x00")
    assert s.recv(2, socket.MSG_WAITALL) == b"\\x05\\x00"
    s.sendall(b"\\x05\\x01\\x00\\x03" + bytes([len(name)]) + name + struct.pack("!H", port))
    return s, s.recv(10, socket.MSG_WAITALL)[1]
def get(s, path="/"):
    s.sendall(f"GET {path} HTTP/1.1\\r\\nHost: web.test\\r\\nConnection: close\\r\\n\\r\\n".encode())
    data = b""
    while part := s.recv(65536): data += part
    return data.decode().split("\\r\\n\\r\\n")[1]
`;

describe("pip install", () => {
  it("works from an index that is allowed, and fails with the rule's name from one that is not", async () => {
    const index = new URL(indexUrl());
    const places = [...new Set([index, ...linkedFrom(index)].map(placeOf))];
    const network = {
      allowDomains: places,
      // A mirror on a private or reserved address has to be named.
      allowCidrs: await unusualAddresses(places.map((place) => place.replace(/:\d+$/, ""))),
    };
    await using allowed = await server.create({ network });
    // The index is what pip on this machine uses, so it is trusted by what this machine trusts; a virtual machine has its image's certificates.
    const authorities = [...new Set(getCACertificates("system"))].join("\n");
    for (const one of [allowed, sandbox]) await one.files.write("/tmp/authorities", authorities);
    const install = [
      "python3",
      "-m",
      "pip",
      "install",
      "--retries",
      "1",
      "--no-cache-dir",
      "--cert",
      "/tmp/authorities",
      "-i",
      index.href,
      "--target",
      "/tmp/six",
      "six",
    ];
    const done = await allowed.exec(install, { timeoutSeconds: 60 * patience });
    expect(done.exitCode, done.stdout + done.stderr).toBe(0);
    expect((await allowed.exec("PYTHONPATH=/tmp/six python3 -c 'import six; print(six.__name__)'")).stdout).toBe("six\n");

    const refused = await sandbox.exec(install, { timeoutSeconds: 60 * patience });
    expect(refused.exitCode).not.toBe(0);
    const place = placeOf(index);
    expect(refused.stdout + refused.stderr).toContain(
      `egress to ${place} is denied: no rule allows it; add "${place}" to network.allow_domains`,
    );
  });
});

/** What pip on this machine uses. */
function indexUrl(): string {
  const configured = () => execFileSync("python3", ["-m", "pip", "config", "get", "global.index-url"], { encoding: "utf8", stdio: "pipe" });
  try {
    return process.env.PIP_INDEX_URL || configured().trim();
  } catch {
    return "https://pypi.org/simple";
  }
}

function placeOf(url: URL): string {
  return `${url.hostname}:${url.port || (url.protocol === "http:" ? "80" : "443")}`;
}

/** Where the index keeps the files of the package. */
function linkedFrom(index: URL): URL[] {
  const page = new URL(`${index.href.replace(/\/$/, "")}/six/`);
  const program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())";
  const html = execFileSync("python3", ["-c", program, page.href], { encoding: "utf8" });
  return [...html.matchAll(/href="([^"#]+)/g)].map(([, link]) => new URL(link ?? "", page));
}

async function unusualAddresses(hosts: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  for (const host of hosts) {
    for (const text of parseAddress(host) ? [host] : await hostNetwork.resolve(host, AbortSignal.timeout(20_000))) {
      const address = parseAddress(text);
      if (address && kindOf(unwrap(address)).kind === "special") {
        found.push(`${formatAddress(unwrap(address))}/${unwrap(address).family === 4 ? 32 : 128}`);
      }
    }
  }
  return [...new Set(found)];
}

describe("an allowed name", () => {
  it("is reached by programs that know proxies: HTTP, CONNECT, SOCKS5", async () => {
    expect(await python(sandbox, `print(urllib.request.urlopen("http://web.test/x").read().decode())`)).toBe("GET /x of web.test");
    expect(await python(sandbox, `s, line = http_connect("web.test", 80); print(line, get(s))`)).toBe(
      "HTTP/1.1 200 Connection established GET / of web.test",
    );
    expect(await python(sandbox, `s, code = socks("web.test", 80); print(code, get(s))`)).toBe("0 GET / of web.test");
  });

  it("is reached by programs that know none: through the name server", async () => {
    const program = `s = socket.create_connection(("web.test", 80), 30); print(s.getpeername()[0].split(".")[:2], get(s))`;
    expect(await python(sandbox, program)).toBe("['127', '64'] GET / of web.test");
    expect(await python(sandbox, `print(socket.getaddrinfo("web.test", 80, type=socket.SOCK_STREAM)[0][4][0])`)).toMatch(/^127\.64\./);
  });

  it("is reached by node, by code in a kernel and by users other than root", async () => {
    const fetched = await sandbox.exec(["node", "-e", `fetch("http://web.test/n").then((r) => r.text()).then(console.log)`]);
    expect(fetched.stdout, fetched.stderr).toBe("GET /n of web.test\n");
    const cell = await sandbox.runCode(`import urllib.request; print(urllib.request.urlopen("http://web.test/k").read().decode())`);
    expect(cell.logs.stdout.join("")).toBe("GET /k of web.test\n");
    const program = `os.setgid(65534); os.setuid(65534); s = socket.create_connection(("web.test", 80), 30); print(os.getuid(), get(s))`;
    expect(await python(sandbox, program)).toBe("65534 GET / of web.test");
  });

  it("carries the end of one direction without ending the other", async () => {
    const program = `
s, _ = http_connect("web.test", 7)
s.sendall(b"x" * 300000); s.shutdown(socket.SHUT_WR)
data = b""
while part := s.recv(65536): data += part
print(len(data))`;
    expect(await python(sandbox, program)).toBe("300000");
  });

  it("can be a wildcard, which needs a label in the star's place", async () => {
    expect(await python(sandbox, `print(http_connect("a.wild.test", 80)[1])`)).toBe("HTTP/1.1 200 Connection established");
    expect(await python(sandbox, `print(http_connect("wild.test", 80)[1])`)).toContain(
      "403 egress to wild.test:80 is denied: no rule allows it",
    );
  });

  it("is connected to at an address that was checked, others of its addresses are left out", async () => {
    expect(await python(sandbox, `s, line = http_connect("mixed.test", 80); print(get(s))`)).toBe("GET / of web.test");
  });
});

describe("what is not allowed", () => {
  it("is refused with the rule, whichever way it is asked for", async () => {
    const denial = `egress to other.test:443 is denied: no rule allows it; add "other.test:443" to network.allow_domains`;
    expect(await python(sandbox, `print(http_connect("other.test", 443)[1])`)).toBe(`HTTP/1.1 403 ${denial}`);
    expect(await python(sandbox, `print(socks("other.test", 443)[1])`)).toBe("2");
    const get = `
try: urllib.request.urlopen("http://other.test/")
except urllib.error.HTTPError as error: print(error.code, error.headers["X-Mitos-Error"], error.read().decode())`;
    expect(await python(sandbox, get)).toBe(`403 egress_denied ${denial.replaceAll(":443", ":80")}`);
    const look = `
try: socket.getaddrinfo("other.test", 443)
except socket.gaierror as error: print("no address")`;
    expect(await python(sandbox, look)).toBe("no address");
  });

  it.each([
    ["169.254.169.254", "a cloud's metadata service"],
    ["100.100.100.200", "a cloud's metadata service"],
    ["127.0.0.1", "a loopback address"],
    ["[::1]", "a loopback address"],
    ["[::ffff:127.0.0.1]", "a loopback address"],
    ["[64:ff9b::a9fe:a9fe]", "a cloud's metadata service"],
    ["0.0.0.0", "an unspecified address"],
    ["10.0.0.1", "a private address"],
    ["192.168.0.1", "a private address"],
    ["[fd00::1]", "a private address"],
    ["metadata.test", "a cloud's metadata service"],
    ["private.test", "a private address"],
  ])("holds for %s, which is %s", async (host, what) => {
    expect(await python(sandbox, `print(http_connect("${host}", 80)[1])`)).toMatch(new RegExp(`^HTTP/1.1 403 egress to .* is ${what}`));
  });

  it("holds for the server's own addresses, also when a rule names them", async () => {
    const own = hostNetwork.ownAddresses().filter((text) => !text.includes(":") && !text.startsWith("127."));
    await using open = await server.create({ network: { egress: "allow", allowCidrs: own.map((text) => `${text}/32`) } });
    for (const text of own) {
      expect(await python(open, `print(http_connect("${text}", 80)[1])`)).toContain("403 egress to");
      expect(await python(open, `print(http_connect("${text}", 80)[1])`)).toContain("an address of the server's own host");
    }
    expect(await python(open, `print(http_connect("127.0.0.1", 80)[1])`)).toContain("a loopback address");
  });

  it("cannot be reached around the gate: no route for UDP, ICMP, IPv6 or plain TCP", async () => {
    const program = `
def tried(kind, *where):
    try:
        s = socket.socket(*kind); s.settimeout(5)
        s.connect(where[0])
        s.send(b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\1")
        s.recv(1)
        return "answered"
    except OSError as error:
        return type(error).__name__
v4, v6 = socket.AF_INET, socket.AF_INET6
print(
    tried((v4, socket.SOCK_DGRAM), ("8.8.8.8", 53)),
    tried((v4, socket.SOCK_STREAM), ("8.8.8.8", 53)),
    tried((v4, socket.SOCK_STREAM), ("169.254.169.254", 80)),
    tried((v4, socket.SOCK_DGRAM), ("169.254.169.254", 80)),
    tried((v6, socket.SOCK_STREAM), ("2606:4700:4700::1111", 53)),
    tried((v6, socket.SOCK_DGRAM), ("2606:4700:4700::1111", 53)),
    tried((v4, socket.SOCK_RAW, socket.IPPROTO_ICMP), ("8.8.8.8", 0)),
)`;
    expect(await python(sandbox, program)).not.toContain("answered");
  });

  it("is everything for a sandbox that asked for nothing", async () => {
    await using closed = await server.create();
    expect(await python(closed, `print(http_connect("web.test", 80)[1])`)).toContain(
      "403 egress to web.test:80 is denied: no rule allows it",
    );
  });
});

describe("a fork", () => {
  it("leaves the parent its open connections, ends the child's copies, and gives the child egress by the same rules", async () => {
    const program = `
s, _ = http_connect("web.test", 80)
s.settimeout(None)
s.sendall(b"GET /download HTTP/1.1\\r\\nHost: web.test\\r\\nConnection: close\\r\\n\\r\\n")
out = open("/workspace/download", "wb", buffering=0)
try:
    while part := s.recv(65536): out.write(part)
    out.write(b"end")
except OSError as error: out.write(b"broken")`;
    const pid = await sandbox.execBackground(["python3", "-c", `${helpers}\n${program}`]).started;
    expect(pid).toBeGreaterThan(0);
    const text = (where: Sandbox) => where.exec("cat /workspace/download").then(({ stdout }) => stdout);
    await until("the download has begun", async () => (await text(sandbox)).includes("begun"));

    const [child] = await sandbox.fork(1);
    if (!child) throw new Error("no child");
    await using _ = child;
    await until("the child's copy is broken", async () => (await text(child)).endsWith("broken"));
    expect(await python(child, `s = socket.create_connection(("web.test", 80), 30); print(get(s))`)).toBe("GET / of web.test");
    expect(await python(child, `print(urllib.request.urlopen("http://web.test/c").read().decode())`)).toBe("GET /c of web.test");
    expect(await python(child, `print(http_connect("other.test", 80)[1])`)).toContain("403 egress to other.test:80 is denied");

    expect(await text(sandbox)).not.toContain("broken");
    upstream.downloads.at(-1)?.end("done\n");
    await until("the parent's download is complete", async () => (await text(sandbox)).endsWith("end"));
    expect(await text(sandbox)).toMatch(/begun\n.*done\n.*end$/s);
  });

  it("may not be given rules of its own", async () => {
    const response = await fetch(`${server.url}/v1/sandboxes/${sandbox.id}/fork`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ id: "x", network: { egress: "allow" } }),
    });
    expect(response.status).toBe(400);
    expect(JSON.stringify(await response.json())).toContain("a child has the network rules of its parent");
  });
});

describe("bounds", () => {
  it("lets 128 connections be open at a time, says so to the next, and gives room back", async () => {
    const program = `
open_ones = []
while True:
    s, line = http_connect("web.test", 7)
    if " 200 " not in line: break
    open_ones.append(s)
print(len(open_ones), line)
open_ones[0].close()
import time
deadline = time.monotonic() + 60
while " 200 " not in http_connect("web.test", 7)[1]:
    assert time.monotonic() < deadline
print("room again")`;
    const [count, again] = (await python(sandbox, program)).split("\n");
    expect(count).toBe("128 HTTP/1.1 503 egress is limited to 128 connections at a time");
    expect(again).toBe("room again");
    await until("the upstream has lost them all", () => upstream.sockets.size === 0);
  });

  it("stops an upstream whose reader in the sandbox does not read", async () => {
    upstream.takenBytes = 0;
    const pid = await sandbox.execBackground(["python3", "-c", `${helpers}\ns, _ = http_connect("web.test", 9)\nsys.stdin.read()`], {
      stdin: true,
    } as never).started;
    let before = -1;
    await until("the upstream stands still", async () => {
      const same = upstream.takenBytes > 0 && upstream.takenBytes === before;
      before = upstream.takenBytes;
      await sandbox.exec("true");
      return same;
    });
    expect(upstream.takenBytes).toBeLessThan(64 * 1024 * 1024);
    await sandbox.exec(`kill ${pid}`);
    await until("the upstream is let go", () => upstream.sockets.size === 0);
  });

  it("carries 100 MiB without holding them, and counts them", async () => {
    const before = await server.engine.meter(sandbox.id as never);
    // What is only waiting to be collected is not held.
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    collect();
    const restingBytes = process.memoryUsage().external;
    let mostBytes = 0;
    const watch = setInterval(() => {
      collect();
      mostBytes = Math.max(mostBytes, process.memoryUsage().external - restingBytes);
    }, 1_000);
    const program = `
total = 0
with urllib.request.urlopen("http://web.test/big") as response:
    while part := response.read(1 << 20): total += len(part)
print(total)`;
    try {
      expect(await python(sandbox, program)).toBe(String(bigBytes));
    } finally {
      clearInterval(watch);
    }
    expect(mostBytes).toBeLessThan(bigBytes / 4);
    const after = await server.engine.meter(sandbox.id as never);
    expect(after.egressReceivedBytes - before.egressReceivedBytes).toBeGreaterThan(bigBytes);
    expect(after.egressBytes).toBeGreaterThan(before.egressBytes);
  });

  it("end with the sandbox: nothing of its connections is left outside", async () => {
    const short = await server.create({ network: { allowDomains: ["web.test:7"] } });
    await short.execBackground(["python3", "-c", `${helpers}\ns, _ = http_connect("web.test", 7)\ns.recv(1)`]).started;
    await until("it is connected", () => upstream.sockets.size === 1);
    await short.terminate();
    await until("the upstream has lost it", () => upstream.sockets.size === 0);
  });
});

describe("a pause", () => {
  it("ends open connections; after the resume programs see that and can connect anew", async () => {
    const pid = await sandbox.execBackground([
      "python3",
      "-c",
      `${helpers}\ns, _ = http_connect("web.test", 7)\ns.settimeout(None)\nopen("/workspace/on", "w")\ntry: s.recv(1)\nfinally: open("/workspace/off", "w")`,
    ]).started;
    expect(pid).toBeGreaterThan(0);
    const exists = (name: string) => sandbox.exec(`test -e /workspace/${name}`).then(({ exitCode }) => exitCode === 0);
    await until("it is connected", () => exists("on"));
    await sandbox.pause();
    await until("the upstream has lost it", () => upstream.sockets.size === 0);
    await sandbox.resume();
    await until("the program has noticed", () => exists("off"));
    expect(await python(sandbox, `s = socket.create_connection(("web.test", 80), 30); print(get(s))`)).toBe("GET / of web.test");
  });
});
