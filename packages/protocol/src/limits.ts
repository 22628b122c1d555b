/** Written limits of the product. What is checked anywhere is checked against these. */
export const limits = {
  /** Bodies of `/v1` JSON routes. */
  jsonBodyBytesMax: 32 * 1024 * 1024,
  /**
   * Bytes of request bodies that one owner's requests hold together until they are answered: three of the largest messages, seven of the
   * largest JSON bodies.
   */
  heldBodyBytesPerOwnerMax: 256 * 1024 * 1024,
  /** What an owner may hold however much the others do, so that small requests are always served. */
  heldBodyBytesPerOwnerMin: 1024 * 1024,
  /** The same of the whole server, also without keys. */
  heldBodyBytesMax: 1024 * 1024 * 1024,
  /** One message of a Connect stream. */
  messageBytesMax: 64 * 1024 * 1024,
  /** One message on the WebSocket Exec route, client to server. */
  webSocketMessageBytesMax: 1024 * 1024,
  /** One chunk of output in an answer. */
  outputChunkBytesMax: 32 * 1024,
  /** Ceiling for every requested time-out, unless the server is given another; a request above it is rejected, never clamped. */
  timeoutSecondsMax: 86_400,
  /** What is refused whatever the ceiling, also by a server without one: 68 years, which every clock and timer here can count. */
  timeoutSecondsCounted: 2 ** 31,
  execTimeoutSecondsDefault: 30,
  runCodeTimeoutSecondsDefault: 60,
  /** Streams open at once on one sandbox. */
  streamsPerSandboxMax: 16,
  /** Children of one fork. */
  forkCountMax: 100,
  /** Children that a sandbox may be allowed to ask for from inside. */
  forkBudgetMax: 1000,
  forwardsPerSandboxMax: 16,
  /** Interpreters beside the default ones. The agent counts them. */
  contextsPerSandboxMax: 16,
  /** Where requests bring a key. */
  templatesPerOwnerMax: 100,
  /** Connections open at once over all forwards of one sandbox. */
  forwardedConnectionsPerSandboxMax: 64,
  /** Requests under way at once through `expose`; one more is refused. */
  exposedRequestsPerSandboxMax: 16,
  /** Requests under way at once through previews of one sandbox; more of them wait, so that a page with many parts loads. */
  previewRequestsPerSandboxMax: 64,
  previewRequestsWaitingMax: 256,
  /** WebSockets open at once through previews and `expose` of one sandbox. */
  upgradedSocketsPerSandboxMax: 64,
  previewTtlSecondsDefault: 3600,
  envEntriesMax: 1024,
  envBytesMax: 128 * 1024,
  metadataEntriesMax: 64,
  metadataValueBytesMax: 1024,
  pathBytesMax: 4096,
  commandBytesMax: 1024 * 1024,
  /** Of what a machine has said on its console, the end. */
  consoleBytesMax: 256 * 1024,
  /** The files of one copy step, as a tar. */
  contextBytesMax: 4 * 1024 * 1024 * 1024,
  buildStepsMax: 256,
  buildStepTimeoutSeconds: 3600,
  /** Builds and downloads of images under way at once, where requests bring a key. */
  buildsPerOwnerMax: 4,
} as const;

/** What a sandbox gets unless its template or its creator says otherwise. */
export const resourceDefaults = { vcpuCount: 1, memSizeMiB: 512, processesMax: 1024 } as const;

export const resourceBounds = { vcpuCount: [1, 64], memSizeMiB: [64, 65_536], processesMax: [16, 65_536] } as const;
