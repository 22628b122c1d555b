/** What templates and sandboxes look like on the wire. */

import type { BuildEvent, DiskUsage, ImageSummary, MachineResources, NetworkPolicy, Sandbox, SandboxTree, Template } from "@mitos/engine";
import type {
  BuildEventJson,
  DiskUsageJson,
  ImageJson,
  ResourcesJson,
  SandboxDetailJson,
  SandboxJson,
  SandboxNetworkJson,
  SandboxTreeJson,
  TemplateJson,
  TemplateNetworkJson,
} from "@mitos/protocol";
import type { FastifyRequest } from "fastify";
import { authorityOf } from "./http/guard.ts";

/** The URL under which the client reached this server. Behind a proxy with TLS it must say so: clients send their key to it. */
export function endpointOf(request: FastifyRequest): string {
  const { localAddress, localPort } = request.raw.socket;
  const scheme = request.headers["x-forwarded-proto"] === "https" ? "https" : "http";
  return `${scheme}://${authorityOf(request.raw) ?? `${localAddress}:${localPort}`}`;
}

export function templateJson(template: Template): TemplateJson {
  return {
    id: template.id,
    ready: template.ready,
    created_at: new Date(template.createdAtMs).toISOString(),
    creation_time_ms: Math.round(template.creationTimeMs),
    network: templateNetworkJson(template.network),
    resources: resourcesJson(template.resources),
    source: {
      kind: template.source.kind,
      reference: template.source.reference,
      digest: template.source.digest,
      layers: template.source.layers,
      root_bytes: template.source.rootBytes,
    },
    snapshot_bytes: template.snapshotBytes,
    warnings: template.warnings,
  };
}

export function imageJson(image: ImageSummary): ImageJson {
  return {
    reference: image.reference,
    digest: image.digest,
    layers: image.layers,
    root_bytes: image.rootBytes,
    pulled_at: new Date(image.pulledAtMs).toISOString(),
    last_used_at: new Date(image.lastUsedAtMs).toISOString(),
  };
}

export function usageTotalsJson({ layers, caches, snapshots, cacheBytesMax }: DiskUsage): NonNullable<DiskUsageJson["totals"]> {
  return {
    layers: { count: layers.count, bytes: layers.bytes, unused_bytes: layers.unusedBytes },
    caches: { bytes: caches.bytes },
    snapshots: { bytes: snapshots.bytes },
    cache_bytes_max: cacheBytesMax,
  };
}

export function buildEventJson({ atMs: at_ms, ...event }: BuildEvent): BuildEventJson {
  switch (event.kind) {
    case "layer": {
      const { doneBytes: done_bytes, totalBytes: total_bytes, ...rest } = event;
      return { at_ms, ...rest, done_bytes, total_bytes };
    }
    case "done":
      return { at_ms, kind: event.kind, creation_time_ms: Math.round(event.creationTimeMs) };
    case "failed": {
      const { kind, ...error } = event;
      return { at_ms, kind, error };
    }
    default:
      return { at_ms, ...event };
  }
}

/** A row of a list, and the answer to a live fork. */
export function sandboxJson(sandbox: Sandbox, endpoint: string): SandboxJson {
  return {
    id: sandbox.id,
    template_id: sandbox.templateId,
    endpoint,
    created_at: new Date(sandbox.createdAtMs).toISOString(),
    fork_time_ms: sandbox.forkTimeMs,
    network: sandboxNetworkJson(sandbox.network),
    state: sandbox.state,
    isolation: sandbox.isolation,
    parent_id: sandbox.parentId,
    ...(sandbox.endReason === null ? {} : { end_reason: sandbox.endReason }),
  };
}

export function sandboxDetailJson(sandbox: Sandbox, endpoint: string): SandboxDetailJson {
  return {
    ...sandboxJson(sandbox, endpoint),
    deadline_unix: sandbox.deadlineMs === null ? null : Math.floor(sandbox.deadlineMs / 1000),
    idle_timeout_seconds: sandbox.idleTimeoutSeconds,
    end_reason: sandbox.endReason,
    children: sandbox.children,
    metadata: sandbox.metadata,
    resources: resourcesJson(sandbox.resources),
    fork_budget: sandbox.forkBudget,
    forks_used: sandbox.forksUsed,
  };
}

export function treeJson(tree: SandboxTree, endpoint: string): SandboxTreeJson {
  return { ...sandboxJson(tree.sandbox, endpoint), children: tree.children.map((child) => treeJson(child, endpoint)) };
}

export function resourcesJson(resources: MachineResources): ResourcesJson {
  return { vcpu_count: resources.vcpuCount, mem_size_mib: resources.memSizeMiB, processes_max: resources.processesMax };
}

/** Templates echo the keys of the request. */
function templateNetworkJson(network: NetworkPolicy): TemplateNetworkJson {
  return {
    ...(network.block ? { block: true } : {}),
    egress: network.egress,
    ...nonEmpty("allow_domains", network.allowDomains),
    ...nonEmpty("allow_cidrs", network.allowCidrs),
    inbound: network.inbound,
    ...nonEmpty("inbound_cidrs", network.inboundCidrs),
  };
}

/** Sandboxes echo the keys of the Kubernetes object, which published clients expect there. */
function sandboxNetworkJson(network: NetworkPolicy): SandboxNetworkJson {
  return {
    egress: network.egress,
    ...nonEmpty("allow", network.allowDomains),
    ...(network.block ? { blockNetwork: true } : {}),
    ...nonEmpty("allowCidrs", network.allowCidrs),
    inbound: network.inbound,
    ...nonEmpty("inboundCidrs", network.inboundCidrs),
  };
}

function nonEmpty<Key extends string>(key: Key, values: readonly string[]): { [Name in Key]?: readonly string[] } {
  return values.length > 0 ? ({ [key]: values } as { [Name in Key]: readonly string[] }) : {};
}
