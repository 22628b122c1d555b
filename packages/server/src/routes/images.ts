/** What names mean, and the images of registries that are on this server. */

import type { BuildOptions } from "@mitos/engine";
import type { NameJson } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { check, readJson } from "../http/json.ts";
import { requestSignal } from "../http/signal.ts";
import { imageName, imageReference } from "../schemas.ts";
import { imageJson } from "../shapes.ts";
import { answerEvents, wantsEvents } from "../stream/build-events.ts";

const nameParams = z.object({ name: imageName });
const pullBody = z.object({ reference: imageReference, pull: z.boolean().default(false) });

export function imageRoutes(app: FastifyInstance, context: ServerContext): void {
  app.get("/v1/names/:name", async (request, reply): Promise<NameJson> => {
    const { name } = check(nameParams, request.params);
    using client = requestSignal(request, reply, context.shutdown);
    const { means, reference } = await context.engineFor(request.raw).meaningOf(name, client.signal);
    return { name: (request.params as { name: string }).name, means, reference };
  });

  app.post("/v1/images", async (request, reply) => {
    const { reference, pull } = await readJson(request, pullBody);
    const event = { sandbox_id: "", op: "pull_image", detail: `reference=${reference}` };
    const run = (options?: Pick<BuildOptions, "signal" | "onEvent">) =>
      audited(context.auditFor(request.raw), event, async () => {
        using _place = context.builds.take("pull_image", `image ${reference}`, context.auth?.callerOf(request.raw));
        return imageJson(await context.engineFor(request.raw).pullImage(reference, { ...options, pull }));
      });
    return wantsEvents(request) ? await answerEvents(context, { request, reply }, run, (image) => ({ image })) : await run();
  });

  app.get("/v1/images", async (request) => context.engineFor(request.raw).listImages().map(imageJson));
}
