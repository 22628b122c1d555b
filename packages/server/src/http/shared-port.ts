/**
 * HTTP/1.1 and cleartext HTTP/2 on one port: the first bytes of a connection decide, then the socket goes to the right parser.
 */

import type { Server as Http1Server } from "node:http";
import type { Http2Server } from "node:http2";
import { createServer, type Server, type Socket } from "node:net";

/** The beginning of every HTTP/2 connection; no HTTP/1 request begins so. */
const http2Preface = Buffer.from("PRI * HTTP/2.0\r\n");

/**
 * @param silenceMs - a connection that has not shown its protocol by then is closed
 * @returns the server to listen with, and what ends the connections that have not shown their protocol yet
 */
export function createSharedPort(
  http1: Http1Server,
  http2: Http2Server,
  { silenceMs, connectionsMax }: { silenceMs: number; connectionsMax: number },
): { port: Server; endSilent: () => void } {
  // Starts the parser's own watch over header and keep-alive time-outs, which otherwise begins with `listen`.
  http1.emit("listening");
  const silent = new Set<Socket>();
  const port = createServer({ allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: 30_000 }, (socket) =>
    handOver(socket, silent, http1, http2, silenceMs),
  );
  port.maxConnections = connectionsMax;
  return { port, endSilent: () => silent.forEach((socket) => void socket.destroy()) };
}

function handOver(socket: Socket, silent: Set<Socket>, http1: Http1Server, http2: Http2Server, silenceMs: number): void {
  let seen = Buffer.alloc(0);
  silent.add(socket);
  const silence = setTimeout(() => socket.destroy(), silenceMs);
  const giveUp = () => socket.destroy();
  const stopWaiting = () => {
    clearTimeout(silence);
    silent.delete(socket);
    socket.off("data", onData);
    socket.off("error", giveUp);
    socket.off("end", giveUp);
    socket.off("close", stopWaiting);
  };
  const onData = (bytes: Buffer) => {
    seen = Buffer.concat([seen, bytes]);
    const compared = Math.min(seen.length, http2Preface.length);
    const isHttp2 = seen.compare(http2Preface, 0, compared, 0, compared) === 0;
    if (isHttp2 && compared < http2Preface.length) return;
    stopWaiting();
    socket.pause();
    socket.unshift(seen);
    if (isHttp2) {
      // HTTP/2 has no half-open connections: a client that ends its side has left.
      socket.allowHalfOpen = false;
      // The session reads what lies in the buffer itself; a flowing socket would lose it.
      http2.emit("connection", socket);
    } else {
      http1.emit("connection", socket);
      socket.resume();
    }
  };
  socket.on("data", onData);
  socket.on("error", giveUp);
  socket.on("end", giveUp);
  socket.on("close", stopWaiting);
}
