// The JavaScript code kernel (docs/kernels.md): commands on fd 3, events on fd 4, the code's own output on fds 1 and 2.
//
// Cells are evaluated by V8's own REPL mode, reached through an in-process inspector session: `let`, `const` and `class` can be declared
// again, `await` works at the top level, and the value is that of the last expression. Needs Node 18 or later and no package.
//
// A second thread, the listener, reads the commands, so that an interrupt is heard while a cell loops. It ends the running code with V8's
// termination, which unwinds to the event loop past every `catch` and `finally`. So nothing here may rely on either after code of a cell has run,
// and the words in `shared` say at each moment who may end what. (SIGINT with `breakOnSigint` cannot do this: Node changes the signal's handler
// around every run, and a signal in between ends the process or is lost.)

import { Console } from "node:console";
import crypto from "node:crypto";
import fs from "node:fs";
import inspector from "node:inspector";
import { createRequire, syncBuiltinESMExports } from "node:module";
import { Writable } from "node:stream";
import { pathToFileURL } from "node:url";
import util from "node:util";
import { promiseHooks } from "node:v8";
import vm from "node:vm";
import { Worker } from "node:worker_threads";

const COMMANDS_FD = 3;
const EVENTS_FD = 4;
/** One event line. The agent ends a kernel that sends more than 96 MiB; here the cell gets an error and the kernel lives. */
const EVENT_BYTES_MAX = 60 * 1024 * 1024;
const ERROR_TEXT_MAX = 256 * 1024;
const TRACEBACK_LINES_MAX = 400;
const CAUSES_MAX = 8;
const IMPORT = "__mitos_import__";
const TAKE = Symbol.for("mitos.kernel.take");
/** Methods by which an object offers representations: ours, and the one that libraries for other JavaScript kernels have. */
const DISPLAY_SYMBOLS = [Symbol.for("mitos.display"), Symbol.for("Jupyter.display")];

// Kept before any cell can replace them.
const { readSync, openSync, writeSync } = fs;
const { inspect, types } = util;
const stringify = JSON.stringify;
const parse = JSON.parse;
const { load, store, compareExchange, wait } = Atomics;

// ---------------------------------------------------------------- what both threads see

/** Words of `shared`. */
const STATE = 0;
/** The id of the cell that STATE speaks of. */
const CELL = 1;
/** The id of the last cell that was to be interrupted: for an interrupt that comes before its cell has begun. */
const WANTED = 2;
/** 1 while the main thread does what must not be cut in two: writes a line, takes a command. */
const UNCUT = 3;
/** How many commands the main thread has taken. A termination can swallow a message; the listener then sends it again. */
const TAKEN = 4;
const WORDS = 5;

/** No cell runs. */
const IDLE = 0;
/** A cell runs. */
const RUNNING = 1;
/** Set by the listener: the cell is to end. An event loop that still turns answers by ending it, without any force. */
const INTERRUPTED = 2;
/** Set by the listener when the event loop does not turn: whatever JavaScript runs next or now is ended. */
const TERMINATING = 3;
/** Set by the listener: that is done. */
const TERMINATED = 4;
/** The cell is being answered, and nothing can be ended. */
const ANSWERING = 5;
const PROTOCOL = { STATE, CELL, WANTED, UNCUT, TAKEN, IDLE, RUNNING, INTERRUPTED, TERMINATING, TERMINATED };

const shared = new Int32Array(new SharedArrayBuffer(WORDS * 4));

/** Does `work` so that no termination cuts it: the listener sees UNCUT and waits, or this sees TERMINATING and waits to be ended. */
function uncut(work) {
  if (load(shared, UNCUT) === 1) return work();
  store(shared, UNCUT, 1);
  while (load(shared, STATE) === TERMINATING) {
    store(shared, UNCUT, 0);
    wait(shared, STATE, TERMINATING, 1);
    store(shared, UNCUT, 1);
  }
  try {
    return work();
  } finally {
    store(shared, UNCUT, 0);
  }
}

// ---------------------------------------------------------------- output and events

function writeAll(fd, bytes) {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      // A program that shares the pipe may have made it non-blocking for everybody; the agent empties it all the time.
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

/**
 * stdout and stderr write at once, so that everything that a cell printed is in the pipe before its events. `write` passes by the state of
 * a stream, which an interrupt could leave half-way: all later output would then wait for the write that was cut.
 */
class Output extends Writable {
  constructor(fd) {
    super({ decodeStrings: true });
    this.fd = fd;
  }
  write(chunk, encoding, done) {
    if (typeof encoding === "function") [encoding, done] = [undefined, encoding];
    if (this.writableEnded || (typeof chunk !== "string" && !ArrayBuffer.isView(chunk))) return super.write(chunk, encoding, done);
    const bytes = typeof chunk === "string" ? Buffer.from(chunk, encoding) : bytesOf(chunk);
    this._write(bytes, undefined, (error) => {
      if (error) this.destroy(error);
      if (done) process.nextTick(done, error);
    });
    return true;
  }
  _write(chunk, _encoding, done) {
    let failure = null;
    try {
      uncut(() => writeAll(this.fd, chunk));
    } catch (error) {
      failure = error.code === "EPIPE" ? null : error;
    }
    done(failure);
  }
  _destroy(_error, done) {
    done();
  }
}

class KernelOutputTooLarge extends Error {
  name = "KernelOutputTooLarge";
}

function send(event) {
  let text = stringify(event);
  // A lone surrogate is escaped by JSON.stringify, and is nothing that the agent could decode. (The first part skips escaped backslashes.)
  if (text.includes("\\ud")) text = text.replace(/\\\\|\\ud[89a-f][0-9a-f]{2}/g, (found) => (found.length === 2 ? found : "\ufffd"));
  const line = Buffer.from(`${text}\n`);
  if (line.length > EVENT_BYTES_MAX) {
    throw new KernelOutputTooLarge(`a result of ${line.length} bytes is above the limit of ${EVENT_BYTES_MAX} bytes`);
  }
  uncut(() => writeAll(EVENTS_FD, line));
}

// ---------------------------------------------------------------- randomness: nothing that two forks could repeat

/** What a fork copies is the state of generators in memory. So these functions keep none: every call asks the operating system. */
let urandom = openSync("/dev/urandom", "r");

function fillRandom(bytes) {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += readSync(urandom, bytes, at, Math.min(bytes.length - at, 1 << 20), null);
    } catch (error) {
      if (error.code !== "EBADF") throw error;
      urandom = openSync("/dev/urandom", "r"); // the code closed it
    }
  }
  return bytes;
}

const bytesOf = (view) => (ArrayBuffer.isView(view) ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array(view));

/** `Math.random` is called too often for that: it has a pool, and a renew throws the pool away. */
const pool = new Uint32Array(1024);
let poolLeft = 0;

function pooledRandom() {
  if (poolLeft < 2) {
    fillRandom(bytesOf(pool));
    poolLeft = pool.length;
  }
  poolLeft -= 2;
  return ((pool[poolLeft] >>> 5) * 67108864 + (pool[poolLeft + 1] >>> 6)) / 9007199254740992;
}

function replaceRandomness() {
  Math.random = function random() {
    return pooledRandom();
  };

  const original = { ...crypto };
  const { webcrypto } = crypto;
  const webPrototype = Object.getPrototypeOf(webcrypto);
  const webOriginal = { getRandomValues: webPrototype.getRandomValues };
  // The original functions go first: they check the arguments and throw the errors that callers know. Then their bytes are replaced.
  const own = {
    randomBytes(size, callback) {
      const checked = original.randomBytes(typeof size === "number" && size > 0 && size <= 0x7fffffff ? 1 : size, callback && (() => {}));
      const bytes = fillRandom(Buffer.alloc(size));
      if (callback === undefined) return bytes;
      setImmediate(callback, null, bytes);
      return checked;
    },
    randomFillSync(buffer, offset = 0, size = undefined) {
      original.randomFillSync(buffer, offset, size);
      fillRandom(region(buffer, offset, size));
      return buffer;
    },
    randomFill(buffer, offset, size, callback) {
      const options = [offset, size, callback];
      const done = options.splice(
        options.findIndex((value) => typeof value === "function"),
        1,
      )[0];
      const [from = 0, count] = options;
      if (typeof done !== "function") return original.randomFill(buffer, offset, size, callback);
      return original.randomFill(buffer, from, count ?? lengthOf(buffer) - from, (error) => {
        if (!error) fillRandom(region(buffer, from, count));
        done(error, buffer);
      });
    },
    randomInt(min, max, callback) {
      if (max === undefined || typeof max === "function") [min, max, callback] = [0, min, max];
      original.randomInt(min, max);
      const value = min + randomBelow(max - min);
      if (callback === undefined) return value;
      setImmediate(callback, null, value);
    },
    randomUUID(options) {
      original.randomUUID(options);
      const bytes = fillRandom(Buffer.alloc(16));
      bytes[6] = (bytes[6] & 0x0f) | 0x40;
      bytes[8] = (bytes[8] & 0x3f) | 0x80;
      return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
    },
  };
  for (const name of ["pseudoRandomBytes", "prng", "rng"]) own[name] = own.randomBytes;
  for (const [name, value] of Object.entries(own)) {
    const { enumerable, configurable } = Object.getOwnPropertyDescriptor(crypto, name) ?? {};
    if (configurable) Object.defineProperty(crypto, name, { value, writable: true, configurable, enumerable });
  }
  const web = {
    // Also what `require('crypto').getRandomValues` hands out, so `this` may be that module.
    getRandomValues(array) {
      webOriginal.getRandomValues.call(webcrypto, array);
      fillRandom(bytesOf(array));
      return array;
    },
    randomUUID() {
      if (!(this instanceof webPrototype.constructor)) throw new TypeError('Value of "this" must be of type Crypto');
      return own.randomUUID();
    },
  };
  for (const [name, value] of Object.entries(web)) {
    Object.defineProperty(webPrototype, name, { value, writable: true, configurable: true, enumerable: true });
  }
  // Node 18 has the global only behind a flag.
  if (globalThis.crypto === undefined)
    Object.defineProperty(globalThis, "crypto", { value: webcrypto, writable: true, configurable: true });
  syncBuiltinESMExports();
}

const lengthOf = (buffer) => buffer.length ?? buffer.byteLength;

function region(buffer, offset, size) {
  const unit = buffer.BYTES_PER_ELEMENT ?? 1;
  const bytes = bytesOf(buffer);
  return bytes.subarray(offset * unit, size === undefined ? bytes.length : (offset + size) * unit);
}

function randomBelow(range) {
  const limit = 2 ** 48 - (2 ** 48 % range); // above it the remainder would favour small numbers
  for (;;) {
    const value = fillRandom(Buffer.alloc(6)).readUIntBE(0, 6);
    if (value < limit) return value % range;
  }
}

// ---------------------------------------------------------------- rich results

const isBase64Type = (mime) => /^image\/(png|jpeg|gif|webp)$|^application\/pdf$/.test(mime);
const isMimeType = (key) => /^[\w.+-]+\/[\w.+-]+$/.test(key);

function wireValue(mime, value) {
  if (typeof value === "string") return value;
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) {
    return Buffer.from(bytesOf(value)).toString(isBase64Type(mime) ? "base64" : "utf8");
  }
  if (typeof value === "object" || mime === "application/json" || mime.endsWith("+json")) return stringify(value) ?? "null";
  return String(value);
}

function wireBundle(bundle) {
  const data = {};
  for (const [mime, value] of Object.entries(bundle)) {
    if (isMimeType(mime) && value !== undefined && value !== null) data[mime] = wireValue(mime, value);
  }
  return data;
}

function ownBundle(value) {
  if (value === null || (typeof value !== "object" && typeof value !== "function") || types.isProxy(value)) return undefined;
  for (const symbol of DISPLAY_SYMBOLS) {
    if (typeof value[symbol] === "function") {
      const bundle = value[symbol]();
      if (bundle !== null && typeof bundle === "object" && !types.isPromise(bundle)) return bundle;
    }
  }
  return undefined;
}

function bundleOf(value) {
  const own = ownBundle(value);
  return own ? { "text/plain": inspect(value), ...wireBundle(own) } : { "text/plain": inspect(value) };
}

function isBundle(value) {
  if (value === null || typeof value !== "object" || types.isProxy(value)) return false;
  const prototype = Object.getPrototypeOf(value);
  const keys = Object.keys(value);
  return (prototype === Object.prototype || prototype === null) && keys.length > 0 && keys.every(isMimeType);
}

/** Shows each value with all its representations. An object whose keys are MIME types is shown as that bundle. */
function display(...values) {
  for (const value of values) {
    send({ event: "result", id: current.id, text: "", data: isBundle(value) ? wireBundle(value) : bundleOf(value) });
  }
}

// ---------------------------------------------------------------- import in a cell

/**
 * V8 gives no way to `import` from code that came through the inspector, so `import(…)` becomes a call of our own function, and
 * `import … from` at the top level a destructuring `await` of it. Strings, comments, templates and regular expressions are left alone.
 */
export function rewriteImports(code) {
  if (!/\bimport\b/.test(code)) return code;
  let out = "";
  let at = 0;
  let copied = 0;
  let previous = ""; // the last significant token: decides whether a slash begins a regular expression
  const nesting = []; // open brackets; '`' marks the code part of a template
  const skipString = (quote) => {
    for (at += 1; at < code.length && code[at] !== quote; at += 1) if (code[at] === "\\") at += 1;
    at += 1;
  };
  const skipTemplate = () => {
    for (; at < code.length; at += 1) {
      if (code[at] === "\\") at += 1;
      else if (code[at] === "`") {
        at += 1;
        return;
      } else if (code[at] === "$" && code[at + 1] === "{") {
        at += 2;
        nesting.push("`");
        return;
      }
    }
  };
  const skipRegExp = () => {
    let inClass = false;
    for (at += 1; at < code.length && (inClass || code[at] !== "/") && code[at] !== "\n"; at += 1) {
      if (code[at] === "\\") at += 1;
      else if (code[at] === "[") inClass = true;
      else if (code[at] === "]") inClass = false;
    }
    at += 1;
  };
  while (at < code.length) {
    const char = code[at];
    if (/\s/.test(char)) at += 1;
    else if (code.startsWith("//", at)) at = endOf(code, "\n", at);
    else if (code.startsWith("/*", at)) at = endOf(code, "*/", at + 2);
    else if (char === '"' || char === "'") {
      skipString(char);
      previous = '"';
    } else if (char === "`") {
      at += 1;
      skipTemplate();
      previous = '"';
    } else if (char === "}" && nesting.at(-1) === "`") {
      nesting.pop();
      at += 1;
      skipTemplate();
      previous = '"';
    } else if (
      char === "/" &&
      /^$|^[^\w$)\]}"]$|^(return|typeof|case|in|of|delete|void|throw|new|await|yield|else|do|instanceof)$/.test(previous)
    ) {
      skipRegExp();
      previous = '"';
    } else if (/[\w$\u0080-\uffff]/.test(char)) {
      WORD.lastIndex = at;
      const word = WORD.exec(code)[0];
      if (word === "import" && previous !== ".") {
        DYNAMIC.lastIndex = at;
        STATIC.lastIndex = at;
        const statement = nesting.length === 0 && !DYNAMIC.test(code) && STATIC.exec(code);
        DYNAMIC.lastIndex = at;
        if (statement) {
          out += code.slice(copied, at) + importStatement(statement.groups);
          at = copied = at + statement[0].length;
          previous = ";";
          continue;
        }
        if (DYNAMIC.test(code)) {
          out += code.slice(copied, at) + IMPORT;
          copied = at + word.length;
        }
      }
      at += word.length;
      previous = word;
    } else {
      if ("([{".includes(char)) nesting.push(char);
      else if (")]}".includes(char)) nesting.pop();
      at += 1;
      previous = char;
    }
  }
  return out + code.slice(copied);
}

const WORD = /[\w$\u0080-\uffff]+/y;
const DYNAMIC = /import\s*\(/y;
const STATIC =
  /import\s*(?:(?<clause>[\w$*{}\s,]+?)\s*from\s*)?(?<spec>"[^"\n]*"|'[^'\n]*')(?:\s*(?:with|assert)\s*(?<options>\{[^}]*\}))?[ \t]*;?/y;

function endOf(code, mark, from) {
  const found = code.indexOf(mark, from);
  return found < 0 ? code.length : found + mark.length;
}

function importStatement({ clause, spec, options }) {
  const call = `await ${IMPORT}(${spec}${options ? `, { with: ${options} }` : ""})`;
  if (clause === undefined) return `${call};`;
  const names = /\{(?<list>[^}]*)\}/.exec(clause)?.groups.list ?? "";
  const rest = clause.replace(/\{[^}]*\}/, "");
  const namespace = /\*\s*as\s+(?<name>[\w$]+)/.exec(rest)?.groups.name;
  const standard = /^\s*(?<name>[\w$]+)/.exec(rest)?.groups.name;
  const members = names
    .split(",")
    .map((name) => name.trim().replace(/\s+as\s+/, ": "))
    .filter(Boolean);
  if (standard) members.unshift(`default: ${standard}`);
  if (namespace === undefined) return `const { ${members.join(", ")} } = ${call};`;
  return `const ${namespace} = ${call};${standard ? ` const { default: ${standard} } = ${namespace};` : ""}`;
}

/** `import()` as seen from the working directory: the packages and files of the user, not of the kernel. */
let importer = { folder: "", load: undefined };

function importFromHere(specifier, options) {
  const folder = process.cwd();
  if (importer.folder !== folder) {
    const filename = `${folder}/[cell]`;
    const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER;
    importer = {
      folder,
      load: loader
        ? new vm.Script("(specifier, options) => import(specifier, options)", {
            filename,
            importModuleDynamically: loader,
          }).runInThisContext()
        : (name) => {
            const found = createRequire(filename).resolve(String(name));
            return import(found.startsWith("/") ? pathToFileURL(found).href : found);
          },
    };
  }
  return options === undefined ? importer.load(specifier) : importer.load(specifier, options);
}

// ---------------------------------------------------------------- cells

const session = new inspector.Session();
const post = session.post.bind(session);
const hooks = { taken: undefined };
/** The running cell: `over` when it has been answered, however late its code then ends. */
let current = { id: 0, name: "", over: true };
const queue = [];
/** The promises of cells that have not come to their end. The inspector would tell of a collected one in the middle of V8's collection, and Node 24 ends there. */
const pending = new Set();
let cells = 0;
let lastValue;

/** Turns the inspector's description of a value into the value itself. */
function take(remote) {
  if (remote.objectId === undefined) {
    if (remote.unserializableValue === undefined) return remote.subtype === "null" ? null : remote.value;
    const text = remote.unserializableValue;
    if (text.endsWith("n")) return BigInt(text.slice(0, -1));
    return Number(text);
  }
  hooks.taken = undefined;
  post("Runtime.callFunctionOn", {
    objectId: remote.objectId,
    functionDeclaration: 'function () { "use strict"; globalThis[Symbol.for("mitos.kernel.take")].taken = this; }',
  });
  const value = hooks.taken;
  hooks.taken = undefined;
  return value;
}

/** Begins the next cell. Called by the event loop with nothing of ours below it on the stack, since a termination takes all of that away. */
function beginNext() {
  const cell = uncut(nextCell);
  if (cell === undefined) return;
  const { id, code } = cell;
  // It was interrupted before it began.
  if (load(shared, WANTED) === (id | 0)) {
    finish(cell, RUNNING, [interruption(id)]);
    return;
  }
  const expression = `${rewriteImports(code)}\n//# sourceURL=${cell.name}`;
  let promise;
  // The first one that comes into being is that of the cell.
  const stop = promiseHooks.onInit((first) => {
    stop();
    promise = first;
    pending.add(first);
  });
  post("Runtime.evaluate", { expression, replMode: true, awaitPromise: true, objectGroup: "cell" }, (error, answer) => {
    stop();
    pending.delete(promise);
    if (cell.over) return;
    // Showing a value or an error calls code of the cell, so it is still the cell that runs.
    let events;
    try {
      if (error) events = [errorEvent(cell, error, "")];
      else if (answer.exceptionDetails) {
        const { exception, lineNumber, columnNumber } = answer.exceptionDetails;
        events = [errorEvent(cell, take(exception), `    at ${cell.name}:${lineNumber + 1}:${columnNumber + 1}`)];
      } else events = valueEvents(cell, take(answer.result));
    } catch (problem) {
      events = [errorEvent(cell, problem, "")];
    }
    finish(cell, RUNNING, events);
  });
}

function nextCell() {
  if (queue.length === 0 || load(shared, STATE) !== IDLE) return undefined;
  store(shared, CELL, queue[0].id | 0);
  if (compareExchange(shared, STATE, IDLE, RUNNING) !== IDLE) return undefined;
  cells += 1;
  current = { ...queue.shift(), name: `cell-${cells}`, over: false };
  return current;
}

/** Answers for a cell, unless STATE is no longer `state`: then the listener is about to end it, and what it says next will be the answer. */
function finish(cell, state, events) {
  if (cell.over || compareExchange(shared, STATE, state, ANSWERING) !== state) return;
  cell.over = true;
  let ok = true;
  for (const event of events) {
    try {
      send(event);
    } catch (problem) {
      event.event = "error";
      send(errorEvent(cell, problem, ""));
    }
    ok = ok && event.event !== "error";
  }
  post("Runtime.releaseObjectGroup", { objectGroup: "cell" });
  send({ event: "done", id: cell.id, status: ok ? "ok" : "error" });
  store(shared, STATE, IDLE);
  if (queue.length > 0) listener.postMessage("again");
}

function valueEvents(cell, value) {
  if (value === undefined) return [];
  if (globalThis._ === lastValue) globalThis._ = lastValue = value; // else the code has a `_` of its own
  const data = bundleOf(value);
  return [{ event: "result", id: cell.id, text: data["text/plain"], data }];
}

const interruption = (id) => ({ event: "error", id, name: "KeyboardInterrupt", value: "", traceback: ["KeyboardInterrupt"] });

// ---------------------------------------------------------------- errors

const cut = (text) => (text.length <= ERROR_TEXT_MAX ? text : `${text.slice(0, ERROR_TEXT_MAX)}… (${text.length} characters)`);

function attempt(read, otherwise) {
  try {
    return read();
  } catch {
    return otherwise;
  }
}

function errorEvent(cell, error, place) {
  let name = "Uncaught";
  let value = "";
  let lines = [];
  const isError = attempt(() => types.isNativeError(error) || error instanceof Error, false);
  if (isError) {
    name = attempt(() => String(error.name), "Error");
    value = attempt(() => String(error.message), "");
    lines = stackLines(error);
    if (place && !lines.some((line) => /\bcell-\d+:/.test(line))) lines.push(place);
  } else {
    value = attempt(() => inspect(error), "<a value that cannot be shown>");
    lines = [`Uncaught ${value}`, place].filter(Boolean);
  }
  if (lines.length > TRACEBACK_LINES_MAX) {
    const half = TRACEBACK_LINES_MAX / 2;
    lines = [...lines.slice(0, half), `… (${lines.length - 2 * half} lines left out)`, ...lines.slice(-half)];
  }
  return { event: "error", id: cell.id, name: cut(name), value: cut(value), traceback: lines.map(cut) };
}

/** The stack from the error down to the cell, and those of its causes. Frames of Node and of the kernel below the cell are left out. */
function stackLines(error) {
  const lines = [];
  for (let cause = error, depth = 0; depth < CAUSES_MAX && cause !== undefined && cause !== null; depth += 1) {
    const label = depth ? "Caused by: " : "";
    const stack = attempt(() => cause.stack, undefined);
    if (typeof stack !== "string") {
      lines.push(label + attempt(() => (depth ? inspect(cause) : `${cause.name}: ${cause.message}`), "Error"));
    } else {
      const all = (label + stack.slice(0, 4 * ERROR_TEXT_MAX)).split("\n");
      const kernel = all.findIndex((line) => /^\s+at .*(node:inspector|mitos:kernel|javascript_kernel\.mjs)/.test(line));
      lines.push(...(kernel < 0 ? all : all.slice(0, kernel)));
    }
    const next = attempt(() => cause.cause, undefined);
    if (next === cause) break;
    cause = next;
  }
  return lines;
}

// ---------------------------------------------------------------- commands

function renew({ env, unset }) {
  poolLeft = 0;
  for (const name of unset ?? []) attempt(() => delete process.env[name]);
  for (const [name, value] of Object.entries(env ?? {})) {
    attempt(() => {
      process.env[name] = value;
    });
  }
  send({ event: "renewed" });
}

function prepareGlobals() {
  const [stdout, stderr] = [new Output(1), new Output(2)];
  for (const [name, value] of Object.entries({ stdout, stderr })) {
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => value });
  }
  globalThis.console = new Console({ stdout, stderr });
  const requireHere = createRequire(`${process.cwd()}/[cell]`);
  const hidden = (name, value) => Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  hidden("require", requireHere);
  hidden("module", { exports: {} });
  hidden("exports", globalThis.module.exports);
  hidden("display", display);
  hidden(IMPORT, importFromHere);
  hidden("_", undefined);
  Object.defineProperty(globalThis, TAKE, { value: hooks });
  process.argv.length = 1;

  const complain = (title) => (error) => {
    const text = attempt(
      () => (error?.stack === undefined ? inspect(error) : stackLines(error).join("\n")),
      "<an error that cannot be shown>",
    );
    attempt(() => writeAll(2, Buffer.from(`${title}: ${text}\n`)));
  };
  process.on("unhandledRejection", complain("Unhandled rejection"));
  process.on("uncaughtException", complain("Uncaught exception"));
  // The agent sends it to the whole group, to the programs of a cell that does not end. Node's own answer would be to exit.
  process.on("SIGINT", () => {});
}

let listener;

function main() {
  replaceRandomness();
  prepareGlobals();
  session.connect();
  post("Runtime.evaluate", { expression: "0", replMode: true, objectGroup: "cell" });

  const options = { shared, fd: COMMANDS_FD, protocol: PROTOCOL };
  listener = new Worker(`(${listen})(require)`, { eval: true, workerData: options, env: {}, execArgv: [] });
  listener.on("message", (message) => {
    if (message.number !== undefined) uncut(() => takeCommand(message));
    else if (message.ready) send({ event: "ready" });
    else if (message.state === INTERRUPTED && message.cell === current.id) finish(current, INTERRUPTED, [interruption(current.id)]);
    else if (message.state === TERMINATED) {
      // The end may have come while `uncut` waited for it. Left as it was, UNCUT would hold off every later interrupt.
      store(shared, UNCUT, 0);
      finish(current, TERMINATED, [interruption(current.id)]);
      // What was ended had been left behind by an earlier cell.
      compareExchange(shared, STATE, TERMINATED, IDLE);
    }
    beginNext();
  });
  const leave = () => process.reallyExit(1);
  listener.on("error", leave);
  listener.on("exit", leave);
}

function takeCommand({ number, line }) {
  if (number !== load(shared, TAKEN) + 1) return;
  store(shared, TAKEN, number);
  const command = parse(Buffer.from(line).toString());
  // A renew does not wait for the running cell: it is done as soon as the event loop turns.
  if (command.op === "renew") renew(command);
  else if (command.op === "execute") queue.push(command);
}

/** The second thread. It shares no variables with the first, so everything that it needs comes as `workerData`. */
function listen(require) {
  const { parentPort, workerData } = require("node:worker_threads");
  const inspector = require("node:inspector");
  const net = require("node:net");
  const { shared, fd, protocol } = workerData;
  const { STATE, CELL, WANTED, UNCUT, TAKEN, IDLE, RUNNING, INTERRUPTED, TERMINATING, TERMINATED } = protocol;
  /** An event loop that turns has answered after this long; if it was only slow, being terminated as well does no harm. */
  const ANSWER_MS = 50;
  const INTERRUPT = '{"op":"interrupt"';

  let sent = 0;
  let waiting = []; // commands that were sent and perhaps not taken

  function pass(line) {
    sent += 1;
    waiting = waiting.filter(({ number }) => number > Atomics.load(shared, TAKEN));
    waiting.push({ number: sent, line });
    parentPort.postMessage({ number: sent, line });
  }

  function interrupt(id) {
    // First this: a cell that begins just now either sees it or is seen.
    Atomics.store(shared, WANTED, id);
    if (change(id, RUNNING, INTERRUPTED)) parentPort.postMessage({ cell: id, state: INTERRUPTED });
    setTimeout(() => {
      // A cell that cannot begin has to wait for what an earlier one left behind.
      const stuck = waiting.some(({ number }) => number > Atomics.load(shared, TAKEN));
      if (change(id, INTERRUPTED, TERMINATING) || (stuck && Atomics.compareExchange(shared, STATE, IDLE, TERMINATING) === IDLE))
        terminate();
    }, ANSWER_MS);
  }

  const change = (id, from, to) => Atomics.load(shared, CELL) === id && Atomics.compareExchange(shared, STATE, from, to) === from;

  function terminate() {
    if (Atomics.load(shared, UNCUT) === 1) {
      setTimeout(terminate, 1);
      return;
    }
    // Connected for this only: at its exit Node waits for sessions, and says so on stderr.
    const session = new inspector.Session();
    session.connectToMainThread();
    session.post("Runtime.terminateExecution", () => {
      session.disconnect();
      Atomics.store(shared, STATE, TERMINATED);
      parentPort.postMessage({ state: TERMINATED });
      for (const command of waiting) parentPort.postMessage(command);
    });
    // If no JavaScript ran after all, this is the JavaScript that is ended.
    parentPort.postMessage({});
  }

  let parts = [];
  const commands = new net.Socket({ fd, readable: true, writable: false });
  commands.on("data", (chunk) => {
    for (let from = 0; ; ) {
      const end = chunk.indexOf(10, from);
      parts.push(chunk.subarray(from, end < 0 ? undefined : end));
      if (end < 0) return;
      from = end + 1;
      const line = Buffer.concat(parts);
      parts = [];
      if (line.toString("latin1", 0, INTERRUPT.length) === INTERRUPT) interrupt(JSON.parse(line.toString()).id | 0);
      else pass(line);
    }
  });
  // The main thread may be in a loop, and there is nobody left to hear how this ends.
  commands.on("close", () => process.kill(process.pid, "SIGKILL"));
  parentPort.on("message", () => parentPort.postMessage({}));
  parentPort.postMessage({ ready: true });
}

main();
