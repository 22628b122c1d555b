import { create } from "@bufbuild/protobuf";
import { MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { vitals } from "../connect/processes.ts";
import type { ServerContext } from "../context.ts";
import { readJson } from "../http/json.ts";
import { sandboxId } from "../schemas.ts";
import { asCall } from "./call.ts";

const vitalsBody = z.object({ sandbox: sandboxId });

export function vitalsRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post("/v1/vitals", async (request, reply) => {
    const { sandbox } = await readJson(request, vitalsBody);
    return asCall(context, { request, reply, sandbox, op: "vitals" }, async (call) => {
      for await (const sample of vitals(create(pb.VitalsRequestSchema), call)) {
        return { sandbox_id: sandbox, vitals: sampleJson(sample) };
      }
      throw new MitosError("unavailable", { cause: "the sandbox gave no sample", context: { sandbox } });
    });
  });
}

function sampleJson(sample: pb.GuestVitals): object {
  const kb = (bytes: bigint) => Number(bytes / 1024n);
  return {
    steal_fraction: sample.cpuStealPercent / 100,
    mem_total_kb: kb(sample.memTotalBytes),
    mem_available_kb: kb(sample.memTotalBytes - sample.memUsedBytes),
    mem_used_kb: kb(sample.memUsedBytes),
    balloon_reclaimed_kb: kb(sample.memBalloonBytes),
    process_count: sample.processCount,
  };
}
