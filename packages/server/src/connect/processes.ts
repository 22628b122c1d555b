import { create } from "@bufbuild/protobuf";
import { MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { follow } from "../stream/follow.ts";
import { type Call, firstMessage, notOpen } from "./call.ts";

const tunnelFrameBytesMax = 16 * 1024;

export function processes(_request: pb.ProcessesRequest, call: Call): Promise<pb.ProcessList> {
  return call.runtime().processes();
}

export async function signal(request: pb.SignalRequest, call: Call): Promise<pb.SignalResponse> {
  if (request.pid <= 1) throw new MitosError("invalid_input", { cause: "pid must be above 1" });
  if (request.signal < 1 || request.signal > 64) throw new MitosError("invalid_input", { cause: "signal must be 1 to 64" });
  await call.runtime().signalProcess(request.pid, request.signal, false);
  return create(pb.SignalResponseSchema);
}

export async function* vitals(request: pb.VitalsRequest, call: Call): AsyncGenerator<pb.GuestVitals> {
  const intervalSeconds = request.intervalSeconds > 0 ? request.intervalSeconds : 1;
  yield* follow(call.runtime().vitals(intervalSeconds, call.signals.client), call.signals);
}

export async function* portForward(requests: AsyncIterable<pb.Frame>, call: Call): AsyncGenerator<pb.Frame> {
  const { first, rest } = await firstMessage(requests);
  if (first.msg.case !== "open") throw notOpen();
  const { port } = first.msg.value;
  if (port < 1 || port > 65_535) throw new MitosError("invalid_input", { cause: "port must be 1 to 65535" });
  const tunnel = await call.runtime().tunnel(port, call.signals.client);
  try {
    const input = (async () => {
      for await (const { msg } of rest) {
        if (msg.case === "data") await tunnel.send(msg.value);
        else if (msg.case === "close" && msg.value) break;
      }
      await tunnel.end();
    })();
    input.catch(() => tunnel.abort());
    for await (const data of follow(tunnel, call.signals)) {
      for (let start = 0; start < data.length; start += tunnelFrameBytesMax) {
        yield create(pb.FrameSchema, { msg: { case: "data", value: data.subarray(start, start + tunnelFrameBytesMax) } });
      }
    }
    yield create(pb.FrameSchema, { msg: { case: "close", value: true } });
  } finally {
    tunnel.abort();
  }
}
