import { execFileSync } from "node:child_process";
import { lookup } from "node:dns/promises";
import { readFileSync } from "node:fs";
import type { TemplateSpec } from "@mitos/sdk";
import { kindOf, parseAddress, unwrap } from "../../packages/engine/src/egress/addresses.ts";
import { machineArchive } from "../../scripts/lib/distribution-package.mjs";

/** Whom this machine trusts, which may be more than Debian's list. */
export function certificates(): Buffer {
  return readFileSync(process.env.SSL_CERT_FILE ?? "/etc/ssl/certs/ca-certificates.crt");
}

/** How programs in an image reach the registries that this machine uses. */
export function packageEnvironment(): Readonly<Record<string, string>> {
  const bundle = "/etc/ssl/certs/ca-certificates.crt";
  return { PIP_CERT: bundle, NODE_EXTRA_CA_CERTS: bundle, ...ownRegistries() };
}

/**
 * An example's network rules, with what differs on this machine: registries that it has in place of the public ones, and the addresses of both
 * where they are not public, which are never allowed by a name.
 */
export async function onThisMachine(spec: TemplateSpec): Promise<TemplateSpec> {
  if (!spec.network?.allow) return spec;
  const own = [...Object.values(ownRegistries()), machineArchive("packages of an example", "Check the machine's apt sources.").mirror].map(
    (address) => new URL(address),
  );
  const allow = [
    ...spec.network.allow,
    ...own.map(({ protocol, hostname, port }) => `${hostname}:${port || (protocol === "http:" ? 80 : 443)}`),
  ];
  const addresses = await Promise.all([...new Set(allow.map((rule) => rule.replace(/:\d+$/, "")))].map(specialAddresses));
  return { ...spec, network: { ...spec.network, allow: [...new Set(allow)], allowCidrs: [...new Set(addresses.flat())] } };
}

/** By the variables that name them. Empty = the public ones. */
function ownRegistries(): Readonly<Record<string, string>> {
  const npm = said("npm", ["config", "get", "registry"]);
  const pip = process.env.PIP_INDEX_URL ?? said("pip", ["config", "get", "global.index-url"]);
  return {
    ...(npm && !npm.startsWith("https://registry.npmjs.org") ? { npm_config_registry: npm } : {}),
    ...(pip ? { PIP_INDEX_URL: pip } : {}),
  };
}

function said(command: string, args: readonly string[]): string {
  try {
    return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return ""; // It is not there, or has nothing to say.
  }
}

/** As ranges of one address each. */
async function specialAddresses(name: string): Promise<string[]> {
  const found = await lookup(name, { all: true }).catch(() => []);
  return found.flatMap(({ address, family }) => {
    const parsed = parseAddress(address);
    return parsed && kindOf(unwrap(parsed)).kind === "special" ? [`${address}/${family === 4 ? 32 : 128}`] : [];
  });
}
