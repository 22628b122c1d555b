/** The generated protobuf types: the public `sandbox.v1` and the internal `guest.v1`. */
export * as guest from "./gen/guest/v1/guest_pb.js";
export * as sandbox from "./gen/sandbox/v1/sandbox_pb.js";
