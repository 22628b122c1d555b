import { once } from "node:events";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Log, NetworkPolicy } from "../actions.ts";
import type { EgressStream } from "../guest.ts";
import { ManualClock, quiet } from "../testing.ts";
import { connectionsMax, EgressGate } from "./gate.ts";
import { addressesIn, type EgressNetwork, hostNetwork } from "./network.ts";

const deny: NetworkPolicy = { block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [] };

/** An upstream that answers what it is sent, and a network in which names and addresses are what a test says. */
let upstream: Server;
let sockets: Socket[];
let connected: string[];
let resolved: string[];
let answers: Record<string, readonly string[]>;
beforeEach(async () => {
  sockets = [];
  connected = [];
  resolved = [];
  answers = { "a.test": ["1.2.3.4"] };
  upstream = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(socket);
    socket.on("error", () => {});
    socket.pipe(socket);
  });
  await once(upstream.listen(0, "127.0.0.1"), "listening");
});
afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  await new Promise((closed) => upstream.close(closed));
});

const network: EgressNetwork = {
  resolve: async (name) => {
    resolved.push(name);
    return answers[name] ?? [];
  },
  connect: async (address, port, signal) => {
    connected.push(`${address} ${port}`);
    return hostNetwork.connect("127.0.0.1", (upstream.address() as AddressInfo).port, signal);
  },
  ownAddresses: () => ["9.9.9.9", "fe80::1%eth0"],
};

const clock = new ManualClock();

function open(rules: Partial<NetworkPolicy>, log: Log = quiet) {
  const usage = { sentBytes: 0, receivedBytes: 0 };
  const gate = new EgressGate(network, log, clock);
  return { usage, gate, egress: gate.open({ id: "sb", network: { ...deny, ...rules }, usage }) };
}

/** The guest's side of one connection. */
class Program implements EgressStream {
  accepted = false;
  received = "";
  ended = false;
  readonly #left = new AbortController();
  readonly #toSend: AsyncIterable<Uint8Array>;

  constructor(...chunks: string[]) {
    this.#toSend = (async function* () {
      for (const chunk of chunks) yield Buffer.from(chunk);
    })();
  }

  get signal(): AbortSignal {
    return this.#left.signal;
  }

  async accept(): Promise<void> {
    this.accepted = true;
  }

  async send(data: Uint8Array): Promise<void> {
    this.received += Buffer.from(data).toString();
  }

  async end(): Promise<void> {
    this.ended = true;
  }

  abort(): void {}

  leave(): void {
    this.#left.abort();
  }

  [Symbol.asyncIterator]() {
    return this.#toSend[Symbol.asyncIterator]();
  }
}

describe("the gate", () => {
  it("carries bytes both ways and each direction's end, and counts them", async () => {
    const { egress, usage } = open({ allowDomains: ["a.test:443"] });
    const program = new Program("hello ", "there");
    await egress.connect("A.Test.", 443, program);
    expect(program).toMatchObject({ accepted: true, received: "hello there", ended: true });
    expect(usage).toEqual({ sentBytes: 11, receivedBytes: 11 });
  });

  it("connects to the very address that it has checked, and resolves once", async () => {
    const { egress } = open({ allowDomains: ["a.test:443"] });
    await egress.connect("a.test", 443, new Program());
    expect([resolved, connected]).toEqual([["a.test"], ["1.2.3.4 443"]]);
  });

  it.each([
    ["a name without a rule", {}, "a.test", 'no rule allows it; add "a.test:443" to network.allow_domains'],
    ["an address without a rule", {}, "1.2.3.4", 'no rule allows it; add "1.2.3.4:443" to network.allow_domains'],
    ["a blocked sandbox", { block: true, egress: "allow" }, "a.test", "network.block is set; leave network.block out"],
    [
      "an own address",
      { allowCidrs: ["9.9.9.9/32"] },
      "9.9.9.9",
      "9.9.9.9 is an address of the server's own host, which no rule can allow",
    ],
    ["a private address", { egress: "allow" }, "10.0.0.1", 'no rule names it; add "10.0.0.1/32" to network.allow_cidrs'],
  ] as const)("refuses %s without looking anything up or connecting", async (_, rules, host, why) => {
    const { egress } = open(rules);
    const program = new Program();
    await expect(egress.connect(host, 443, program)).rejects.toMatchObject({
      code: "permission_denied",
      message: expect.stringMatching(new RegExp(`^egress to ${host}:443 is denied: .*`)),
    });
    await expect(egress.connect(host, 443, program)).rejects.toThrow(why);
    expect([resolved, connected, program.accepted]).toEqual([[], [], false]);
  });

  it.each([
    ["a name that points at this host", ["127.0.0.1"], "a loopback address"],
    ["a name that points at an own address", ["9.9.9.9"], "an address of the server's own host"],
    ["a name that points at the metadata service in disguise", ["64:ff9b::a9fe:a9fe"], "a cloud's metadata service"],
    ["a name that points into a private network", ["fd12::1"], "a private address"],
  ])("refuses %s", async (_, addresses, what) => {
    answers["a.test"] = addresses;
    await expect(open({ egress: "allow" }).egress.connect("a.test", 443, new Program())).rejects.toThrow(what);
    expect(connected).toEqual([]);
  });

  it("tries only those addresses of a name that are allowed", async () => {
    answers["a.test"] = ["10.0.0.1", "::ffff:1.2.3.4"];
    await open({ egress: "allow" }).egress.connect("a.test", 443, new Program());
    expect(connected).toEqual(["1.2.3.4 443"]);
  });

  it("says that a name has no address, which is no denial", async () => {
    answers["a.test"] = [];
    await expect(open({ egress: "allow" }).egress.connect("a.test", 443, new Program())).rejects.toMatchObject({ code: "unavailable" });
  });

  it("lets a number of connections be open at a time and forgets those that are over", async () => {
    const { egress } = open({ egress: "allow" });
    const programs = Array.from({ length: connectionsMax }, () => new Waiting());
    const open_ = programs.map((program) => egress.connect("1.2.3.4", 443, program).catch(() => "over"));
    await expect(egress.connect("1.2.3.4", 443, new Program())).rejects.toMatchObject({ code: "sandbox_exhausted" });
    for (const program of programs) program.leave();
    await Promise.all(open_);
    await egress.connect("1.2.3.4", 443, new Program("again"));
  });

  it("lets go of the upstream when the program leaves", async () => {
    const program = new Waiting();
    const over = open({ egress: "allow" }).egress.connect("1.2.3.4", 443, program);
    over.catch(() => {});
    while (sockets.length === 0) await new Promise(setImmediate);
    const closed = once(sockets[0]!, "close");
    program.leave();
    await expect(over).rejects.toMatchObject({ code: "unavailable" });
    await closed;
  });

  it("logs and tells of denials, not more than one a second, says how many it left out, and counts all", async () => {
    const lines: object[] = [];
    const told: object[] = [];
    const { egress, gate } = open({}, { ...quiet, info: (fields) => lines.push(fields) });
    const stop = gate.onDenied((denial) => told.push(denial));
    for (let index = 0; index < 5; index += 1) await egress.connect("a.test", 443, new Program()).catch(() => {});
    clock.advance(1_000);
    expect(() => egress.ports("b.test")).toThrow("egress to b.test is denied");
    expect(lines).toMatchObject([
      { sandbox: "sb", to: "a.test:443", leftOut: 0 },
      { sandbox: "sb", to: "b.test", leftOut: 4 },
    ]);
    expect(told).toEqual([
      { id: "sb", to: "a.test:443", leftOut: 0 },
      { id: "sb", to: "b.test", leftOut: 4 },
    ]);
    stop();
    clock.advance(1_000);
    expect(() => egress.ports("b.test")).toThrow("denied");
    expect([told.length, gate.denials]).toEqual([2, 7]);
  });

  it("opens nothing when the stored rules cannot be read", async () => {
    const { egress } = open({ egress: "allow", allowDomains: ["*"] }, { ...quiet, warn: () => {} });
    await expect(egress.connect("a.test", 443, new Program())).rejects.toMatchObject({ code: "permission_denied" });
  });
});

/** A program that sends nothing until it leaves. */
class Waiting extends Program {
  override [Symbol.asyncIterator]() {
    return { next: () => new Promise<IteratorResult<Uint8Array>>(() => {}) };
  }
}

it("finds a name in the hosts file among comments and aliases", () => {
  const hosts = "127.0.0.1 localhost # b.test\n10.1.1.1\tA.test alias.test\n#10.1.1.2 a.test\nfd00::1 a.test\n";
  expect(addressesIn(hosts, "a.test")).toEqual(["10.1.1.1", "fd00::1"]);
  expect(addressesIn(hosts, "b.test")).toEqual([]);
});
