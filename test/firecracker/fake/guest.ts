import { ftruncateSync, readSync, statSync, writeSync } from "node:fs";
import type { Socket } from "node:net";
import { MockAgent } from "../../../packages/engine/src/drivers/mock/agent.ts";
import { encodeFrames } from "../../../packages/engine/src/link/frame.ts";

/** On which the tests talk to the guest about its memory and its disk. */
const testPort = 99;
const memoryBytes = 4096;
const bootMs = 50;

/** What a guest finds when it boots. */
export interface Hardware {
  readonly bootArguments: string;
  /** In the order of `/dev/vda`, `/dev/vdb`. */
  drive(index: number): number;
}

/**
 * A guest as far as a VMM's calls show: its memory, its disk, and the programs that listen on its vsock ports. Loaded from a snapshot it reads its
 * memory from the file whenever it looks, as a private mapping does for what was not written yet: a file that changes changes the guest.
 */
export class Guest {
  readonly #hardware: Hardware;
  readonly #written: number;
  readonly #linkPort: number;
  readonly #agent = new MockAgent();
  readonly #memoryFile: number | undefined;
  /** Absent until it is written: then the file's counts. */
  #memory: string | undefined;
  #listensAtMs: number;
  /** Connections that live: a snapshot resets all of them. */
  readonly #connections = new Set<Socket>();
  #link: Socket | undefined;

  /** @param memoryFile - of a snapshot. Absent: it boots. @throws Error where the kernel would panic */
  constructor(hardware: Hardware, memoryFile: number | undefined) {
    this.#hardware = hardware;
    this.#memoryFile = memoryFile;
    const words = hardware.bootArguments.split(" ");
    const value = (name: string) => words.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1) ?? "";
    const port = /^vsock:(\d+)$/.exec(value("mitos.link"))?.[1];
    const disk = /^\/dev\/vd([a-z])$/.exec(value("mitos.disk"))?.[1];
    if (!port || !disk || !value("rdinit") || !words.includes("boot")) throw new Error(`no agent is started by ${hardware.bootArguments}`);
    this.#linkPort = Number(port);
    this.#written = disk.charCodeAt(0) - "a".charCodeAt(0);
    this.#memory = memoryFile === undefined ? "booted" : undefined;
    this.#listensAtMs = memoryFile === undefined ? performance.now() + bootMs : 0;
    this.#agent.transport.onFrame((type, flags, channel, payload) => {
      this.#link?.write(encodeFrames([{ type, flags, channel, payload }]));
    });
  }

  listensOn(port: number): boolean {
    return performance.now() >= this.#listensAtMs && (port === this.#linkPort || port === testPort);
  }

  /** @param first - what came after the request for the port */
  connect(port: number, socket: Socket, first: Buffer): void {
    this.#connections.add(socket);
    const receive = port === this.#linkPort ? this.#linkTo(socket) : this.#answerTests(socket);
    const ifAlive = (chunk: Buffer) => {
      if (this.#connections.has(socket)) receive(chunk);
    };
    socket.on("data", ifAlive);
    if (first.length > 0) ifAlive(first);
  }

  /** Nothing that a connection brings reaches anybody any more, and its other end is not told. */
  resetConnections(): void {
    this.#connections.clear();
    this.#link = undefined;
  }

  save(file: number, bytes: number): void {
    ftruncateSync(file, bytes);
    const content = Buffer.alloc(memoryBytes);
    content.write(this.memory);
    writeSync(file, content, 0, memoryBytes, 0);
  }

  get memory(): string {
    if (this.#memory !== undefined) return this.#memory;
    const content = Buffer.alloc(memoryBytes);
    readSync(this.#memoryFile!, content, 0, memoryBytes, 0);
    return content.toString("utf8", 0, content.indexOf(0));
  }

  /** The newest connection is the link. */
  #linkTo(socket: Socket): (chunk: Buffer) => void {
    this.#link = socket;
    return (chunk) => void this.#agent.transport.send(chunk);
  }

  /** Lines: `memory`, `memory=VALUE`, `disk`, `disk=VALUE`. */
  #answerTests(socket: Socket): (chunk: Buffer) => void {
    let text = "";
    return (chunk) => {
      text += chunk.toString("utf8");
      for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
        socket.write(`${this.#answer(text.slice(0, end))}\n`);
        text = text.slice(end + 1);
      }
    };
  }

  #answer(line: string): string {
    const [what, value] = line.split("=") as [string, string | undefined];
    if (what === "memory") {
      if (value !== undefined) this.#memory = value;
      return this.memory;
    }
    const disk = this.#hardware.drive(this.#written);
    const sector = Buffer.alloc(512);
    if (value !== undefined) {
      sector.write(value);
      writeSync(disk, sector, 0, 512, 0);
    }
    readSync(disk, sector, 0, 512, 0);
    return sector.toString("utf8", 0, sector.indexOf(0));
  }
}

/** The part of a memory file that a guest of the fake uses. */
export function memoryFits(file: string, bytes: number): boolean {
  return statSync(file).size === bytes;
}
