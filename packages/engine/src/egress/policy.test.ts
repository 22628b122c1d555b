import { describe, expect, it } from "vitest";
import type { NetworkPolicy } from "../actions.ts";
import { formatAddress, kindOf, parseAddress, parseRange, unwrap } from "./addresses.ts";
import { checkResolved, checkTarget, parsePolicy, parseTarget, portsOfName } from "./policy.ts";

function policy(change: Partial<NetworkPolicy>) {
  return parsePolicy({ block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [], ...change });
}

function address(text: string) {
  const parsed = parseAddress(text);
  if (!parsed) throw new Error(`${text} is no address`);
  return unwrap(parsed);
}

describe("an address", () => {
  it.each([
    ["127.0.0.1", "never"],
    ["127.64.0.1", "never"],
    ["0.0.0.0", "never"],
    ["0.1.2.3", "never"],
    ["169.254.169.254", "never"],
    ["169.254.0.1", "never"],
    ["100.100.100.200", "never"],
    ["168.63.129.16", "never"],
    ["224.0.0.1", "never"],
    ["255.255.255.255", "never"],
    ["::", "never"],
    ["::1", "never"],
    ["fe80::1", "never"],
    ["febf::1", "never"],
    ["ff02::1", "never"],
    ["fd00:ec2::254", "never"],
    ["::ffff:127.0.0.1", "never"],
    ["::ffff:a9fe:a9fe", "never"],
    ["::127.0.0.1", "never"],
    ["64:ff9b::169.254.169.254", "never"],
    ["64:ff9b:1::1", "never"],
    ["2002:7f00:1::1", "never"],
    ["2002:a9fe:a9fe::", "never"],
    ["2001:0:1::1", "never"],
    ["10.0.0.1", "special"],
    ["172.16.0.1", "special"],
    ["172.31.255.255", "special"],
    ["192.168.1.1", "special"],
    ["100.64.0.1", "special"],
    ["198.18.0.1", "special"],
    ["203.0.113.80", "special"],
    ["240.0.0.1", "special"],
    ["fc00::1", "special"],
    ["fdff::1", "special"],
    ["2001:db8::1", "special"],
    ["::ffff:10.0.0.1", "special"],
    ["64:ff9b::c0a8:101", "special"],
    ["2002:a00:1::", "special"],
    ["1.1.1.1", "public"],
    ["172.32.0.1", "public"],
    ["128.0.0.1", "public"],
    ["2606:4700::1111", "public"],
    ["64:ff9b::1.1.1.1", "public"],
    ["2002:101:101::", "public"],
  ])("%s is %s", (text, kind) => {
    expect(kindOf(address(text)).kind).toBe(kind);
  });

  it.each(["", "1.2.3", "1.2.3.256", "01.2.3.4", "0x7f.0.0.1", "2130706433", "fe80::1%eth0", "[::1]", "1.2.3.4/8", "::g"])(
    "%j is none",
    (text) => {
      expect(parseAddress(text)).toBeUndefined();
    },
  );

  it.each([
    ["1.2.3.4", "1.2.3.4"],
    ["2001:DB8:0:0:0:0:0:1", "2001:db8::1"],
    ["::ffff:1.2.3.4", "1.2.3.4"],
    ["2001:db8::1:0:0:1", "2001:db8::1:0:0:1"],
  ])("%s is written %s", (text, written) => {
    expect(formatAddress(address(text))).toBe(written);
  });

  it.each(["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/8/8", "::/129", "x/8", "10.0.0.0/-1"])("%j is no CIDR", (text) => {
    expect(parseRange(text)).toBeUndefined();
  });
});

describe("the rules of allow_domains", () => {
  it.each([
    "",
    ":443",
    "*",
    "*:443",
    "a.*.example:443",
    "*a.example:443",
    "**.example:443",
    "*.:443",
    "a.example:0",
    "a.example:65536",
    "a.example:https",
    "a.example:",
    "a.example:443:443",
    "https://a.example",
    "a.example/x:443",
    "10.0.0.0/8",
    "-a.example:443",
    "a-.example:443",
    "a..example:443",
    "a example:443",
    "0x7f.1:80",
    "127.1:80",
    "[::1:443",
    "[a.example]:443",
    `${"a".repeat(64)}.example:443`,
    "münchen.example:443",
  ])("refuse %j", (rule) => {
    expect(() => policy({ allowDomains: [rule] })).toThrowError(expect.objectContaining({ code: "invalid_input" }));
  });

  it.each([
    ["a.example:443", "a.example", 443, true],
    ["a.example:443", "A.Example.", 443, true],
    ["a.example:443", "a.example", 80, false],
    ["a.example:443", "b.a.example", 443, false],
    ["a.example:443", "a.example.evil.test", 443, false],
    ["a.example:443", "xa.example", 443, false],
    ["a.example", "a.example", 443, true],
    ["a.example", "a.example", 80, true],
    ["a.example", "a.example", 22, false],
    ["*.example.com:443", "a.example.com", 443, true],
    ["*.example.com:443", "a.b.example.com", 443, true],
    ["*.example.com:443", "example.com", 443, false],
    ["*.example.com:443", "badexample.com", 443, false],
    ["1.2.3.4:443", "1.2.3.4", 443, true],
    ["1.2.3.4:443", "::ffff:1.2.3.4", 443, true],
    ["1.2.3.4:443", "1.2.3.4", 80, false],
    ["1.2.3.4:443", "1.2.3.5", 443, false],
    ["10.1.2.3:5432", "10.1.2.3", 5432, true],
    ["[2606:4700::1]:443", "2606:4700::1", 443, true],
    ["[2606:4700::1]:443", "[2606:4700::1]", 443, true],
    ["2606:4700::1", "2606:4700::1", 80, true],
    ["127.0.0.1:80", "127.0.0.1", 80, false],
    ["169.254.169.254:80", "169.254.169.254", 80, false],
  ])("with %s a connection to %s port %i is allowed: %s", (rule, host, port, allowed) => {
    expect(checkTarget(policy({ allowDomains: [rule] }), parseTarget(host, port)) === undefined).toBe(allowed);
  });
});

describe("the rules of allow_cidrs", () => {
  it.each([
    ["10.0.0.0/8", "10.9.9.9", true],
    ["10.9.9.9/32", "10.9.9.9", true],
    ["10.0.0.0/7", "10.9.9.9", false],
    ["0.0.0.0/0", "10.9.9.9", false],
    ["0.0.0.0/0", "1.2.3.4", true],
    ["0.0.0.0/0", "127.0.0.1", false],
    ["169.254.0.0/16", "169.254.169.254", false],
    ["1.2.3.0/24", "1.2.4.4", false],
    ["::ffff:10.0.0.0/104", "10.9.9.9", true],
    ["fd12::/16", "fd12::1", true],
    ["::/0", "fd12::1", false],
    ["::/0", "2606:4700::1", true],
    ["::/0", "1.2.3.4", false],
  ])("with %s a connection to %s is allowed: %s", (cidr, host, allowed) => {
    expect(checkTarget(policy({ allowCidrs: [cidr] }), parseTarget(host, 1234)) === undefined).toBe(allowed);
  });

  it("open no name: a look-up alone would carry data out", () => {
    expect(checkTarget(policy({ allowCidrs: ["0.0.0.0/0"] }), parseTarget("a.example", 443))).toBeDefined();
  });
});

describe("what an allowed name resolves to", () => {
  const target = parseTarget("a.example", 443);
  it.each([
    ["1.2.3.4", [], true],
    ["10.0.0.1", [], false],
    ["10.0.0.1", ["10.0.0.1/32"], true],
    ["10.0.0.1", ["0.0.0.0/0"], false],
    ["127.0.0.1", ["127.0.0.0/8"], false],
    ["64:ff9b::a9fe:a9fe", [], false],
    ["2002:a00:1::", [], false],
  ])("%s with the CIDRs %j is allowed: %s", (text, allowCidrs, allowed) => {
    const rules = policy({ allowDomains: ["a.example:443"], allowCidrs });
    expect(checkResolved(rules, target, address(text)) === undefined).toBe(allowed);
  });
});

describe("egress: allow", () => {
  const rules = policy({ egress: "allow" });
  it.each([
    ["a.example", true],
    ["1.2.3.4", true],
    ["10.0.0.1", false],
    ["127.0.0.1", false],
    ["::1", false],
    ["169.254.169.254", false],
  ])("lets a sandbox connect to %s: %s", (host, allowed) => {
    expect(checkTarget(rules, parseTarget(host, 8080)) === undefined).toBe(allowed);
  });

  it("opens every port of every name", () => {
    expect(portsOfName(rules, "a.example")).toEqual({ ports: [], any: true });
  });
});

it("opens the ports of all rules that fit a name, once each", () => {
  const rules = policy({ allowDomains: ["a.example.com:443", "*.example.com:443", "*.example.com:22"] });
  expect(portsOfName(rules, "a.example.com")).toEqual({ ports: [443, 22], any: false });
  expect(portsOfName(rules, "example.com")).toMatchObject({ reason: "no rule allows it" });
});

it("lets block win over every rule", () => {
  const rules = policy({ block: true, egress: "allow", allowDomains: ["a.example"], allowCidrs: ["10.0.0.0/8"] });
  expect(checkTarget(rules, parseTarget("a.example", 443))).toMatchObject({ reason: "network.block is set" });
  expect(checkTarget(rules, parseTarget("10.0.0.1", 443))).toMatchObject({ reason: "network.block is set" });
  expect(portsOfName(rules, "a.example")).toMatchObject({ reason: "network.block is set" });
});

it.each([
  ["a b", 443],
  ["", 443],
  ["a.example", 0],
  ["a.example", 65_536],
  ["a.example", 1.5],
  ["127.1", 80],
  ["0x7f000001", 80],
  ["2130706433", 80],
])("does not take %j port %d for a place", (host, port) => {
  expect(() => parseTarget(host, port)).toThrowError(expect.objectContaining({ code: "invalid_input" }));
});
