import type { EventId, EventStore, JSONRPCMessage, StreamId } from "@modelcontextprotocol/server";

/** What one session keeps; the latest event is kept whatever its size. */
const bytesMax = 4 * 1024 * 1024;

interface Event {
  readonly id: EventId;
  readonly streamId: StreamId;
  readonly message: JSONRPCMessage;
  readonly bytes: number;
}

/**
 * What one session has sent, so that a client whose connection broke during a long call reads on where it was (`Last-Event-ID`). The oldest
 * are forgotten; who asks for what followed them is told that the id is unknown.
 */
export class EventLog implements EventStore {
  readonly #events: Event[] = [];
  #bytes = 0;
  #count = 0;

  async storeEvent(streamId: StreamId, message: JSONRPCMessage): Promise<EventId> {
    const id = String(++this.#count);
    const bytes = Buffer.byteLength(JSON.stringify(message));
    this.#events.push({ id, streamId, message, bytes });
    this.#bytes += bytes;
    while (this.#bytes > bytesMax && this.#events.length > 1) this.#bytes -= this.#events.shift()!.bytes;
    return id;
  }

  async getStreamIdForEventId(id: EventId): Promise<StreamId | undefined> {
    return this.#find(id)?.streamId;
  }

  /** @throws when the event is not known, or no more */
  async replayEventsAfter(id: EventId, { send }: { send: (id: EventId, message: JSONRPCMessage) => Promise<void> }): Promise<StreamId> {
    const last = this.#find(id);
    if (!last) throw new Error("the event is not known");
    const later = this.#events.slice(this.#events.indexOf(last) + 1).filter(({ streamId }) => streamId === last.streamId);
    for (const event of later) await send(event.id, event.message);
    return last.streamId;
  }

  #find(id: EventId): Event | undefined {
    return this.#events.find((event) => event.id === id);
  }
}
