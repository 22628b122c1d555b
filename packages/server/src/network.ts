import { isIP } from "node:net";
import { checkNetworkPolicy, type NetworkPolicy } from "@mitos/engine";
import { MitosError } from "@mitos/protocol";
import { z } from "zod";
import { check } from "./http/json.ts";
import { tolerate } from "./http/tolerance.ts";

const rulesMax = 1024;
const ruleCharactersMax = 300;
const direction = z.enum(["deny", "allow"]).default("deny");
const cidr = z.string().refine(isCidr, "must be a CIDR such as 10.0.0.0/8");

const network = z.object({
  block: z.boolean().default(false),
  egress: direction,
  allow_domains: z.array(z.string().min(1).max(ruleCharactersMax)).max(rulesMax).default([]),
  allow_cidrs: z.array(cidr).max(rulesMax).default([]),
  inbound: direction,
  inbound_cidrs: z.array(cidr).max(rulesMax).default([]),
});

/**
 * The `network` of a request; absent means that nothing is allowed.
 * @throws invalid_input
 */
export function checkNetwork(value: unknown): NetworkPolicy {
  try {
    const wire = check(network, tolerate(network, value ?? {}));
    const policy = {
      block: wire.block,
      egress: wire.egress,
      allowDomains: wire.allow_domains,
      allowCidrs: wire.allow_cidrs,
      inbound: wire.inbound,
      inboundCidrs: wire.inbound_cidrs,
    };
    checkNetworkPolicy(policy);
    return policy;
  } catch (error) {
    if (!(error instanceof MitosError)) throw error;
    throw new MitosError("invalid_input", { cause: `invalid network config: ${error.detail.cause}` });
  }
}

function isCidr(text: string): boolean {
  const [address, bits, ...rest] = text.split("/");
  const family = isIP(address ?? "");
  return family !== 0 && rest.length === 0 && /^\d{1,3}$/.test(bits ?? "") && Number(bits) <= (family === 4 ? 32 : 128);
}
