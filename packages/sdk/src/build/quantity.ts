import { AgentRunError } from "../errors.ts";

const factors: Readonly<Record<string, number>> = {
  "": 1,
  m: 1e-3,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
};

/** Of a Kubernetes quantity: `500m` is one half. @throws invalid_input */
function amount(quantity: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([a-zA-Z]*)$/.exec(quantity) ?? [];
  const factor = Object.hasOwn(factors, unit ?? "-") ? factors[unit!] : undefined;
  if (factor !== undefined) return Number(number) * factor;
  throw new AgentRunError("the template's resources are not valid", {
    code: "invalid_input",
    cause: `${JSON.stringify(quantity)} is not a quantity`,
    remediation: "Write a number with or without a unit, as in 2, 500m, 512Mi or 1Gi.",
  });
}

/** Processors come whole: a part of one is one. */
export function vcpuCount(quantity: string): number {
  return Math.ceil(amount(quantity));
}

export function wholeMiB(quantity: string): number {
  return Math.ceil(amount(quantity) / 2 ** 20);
}
