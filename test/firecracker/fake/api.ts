/**
 * What Firecracker's API takes: methods, paths, fields, types. After its specification of v1.15
 * (github.com/firecracker-microvm/firecracker: src/firecracker/swagger/firecracker.yaml, docs/snapshotting/snapshot-support.md) and, for what that
 * leaves open, what its parser refuses (unknown fields everywhere, an id that is not that of the path, a body where none belongs).
 *
 * Calls that the driver has no use for are refused too: the fake would not know what they do.
 */

/** Answered with 400 and the message. */
export class Refused extends Error {}

interface Field {
  readonly type: "string" | "boolean" | "integer" | Fields;
  readonly required?: true;
  readonly values?: readonly string[];
  readonly min?: number;
  readonly max?: number;
}

type Fields = { readonly [name: string]: Field };

export type Body = Readonly<Record<string, unknown>>;

/** When a call is allowed: before the guest was started or loaded, or after. */
export type Stage = "preboot" | "runtime";

interface Route {
  readonly method: "PUT" | "PATCH";
  readonly path: RegExp;
  readonly name: string;
  readonly stage: Stage;
  /** The field that repeats the id of the path. */
  readonly id?: string;
  readonly fields: Fields;
}

const text = { type: "string", required: true } as const;
const optionalText = { type: "string" } as const;
const flag = { type: "boolean" } as const;
const bucket: Fields = {
  one_time_burst: { type: "integer", min: 0 },
  refill_time: { type: "integer", required: true, min: 0 },
  size: { type: "integer", required: true, min: 0 },
};
const rateLimiter: Field = { type: { bandwidth: { type: bucket }, ops: { type: bucket } } };

const routes: readonly Route[] = [
  {
    method: "PUT",
    path: /^\/boot-source$/,
    name: "boot-source",
    stage: "preboot",
    fields: { kernel_image_path: text, initrd_path: optionalText, boot_args: optionalText },
  },
  {
    method: "PUT",
    path: /^\/machine-config$/,
    name: "machine-config",
    stage: "preboot",
    fields: {
      vcpu_count: { type: "integer", required: true, min: 1, max: 32 },
      mem_size_mib: { type: "integer", required: true, min: 1 },
      smt: flag,
      track_dirty_pages: flag,
      cpu_template: { type: "string", values: ["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"] },
      huge_pages: { type: "string", values: ["None", "2M"] },
    },
  },
  {
    method: "PUT",
    path: /^\/drives\/(?<id>[^/]*)$/,
    name: "drive",
    stage: "preboot",
    id: "drive_id",
    fields: {
      drive_id: text,
      is_root_device: { type: "boolean", required: true },
      path_on_host: text,
      is_read_only: { type: "boolean", required: true },
      partuuid: optionalText,
      cache_type: { type: "string", values: ["Unsafe", "Writeback"] },
      io_engine: { type: "string", values: ["Sync", "Async"] },
      rate_limiter: rateLimiter,
    },
  },
  {
    method: "PATCH",
    path: /^\/drives\/(?<id>[^/]*)$/,
    name: "drive-update",
    stage: "runtime",
    id: "drive_id",
    fields: { drive_id: text, path_on_host: optionalText, rate_limiter: rateLimiter },
  },
  {
    method: "PUT",
    path: /^\/vsock$/,
    name: "vsock",
    stage: "preboot",
    fields: { guest_cid: { type: "integer", required: true, min: 3, max: 0xffff_ffff }, uds_path: text, vsock_id: optionalText },
  },
  { method: "PUT", path: /^\/entropy$/, name: "entropy", stage: "preboot", fields: { rate_limiter: rateLimiter } },
  {
    method: "PUT",
    path: /^\/actions$/,
    name: "start",
    stage: "preboot",
    fields: { action_type: { type: "string", required: true, values: ["InstanceStart"] } },
  },
  {
    method: "PATCH",
    path: /^\/vm$/,
    name: "vm",
    stage: "runtime",
    fields: { state: { type: "string", required: true, values: ["Paused", "Resumed"] } },
  },
  {
    method: "PUT",
    path: /^\/snapshot\/create$/,
    name: "snapshot-create",
    stage: "runtime",
    fields: { snapshot_path: text, mem_file_path: text, snapshot_type: { type: "string", values: ["Full", "Diff"] } },
  },
  {
    method: "PUT",
    path: /^\/snapshot\/load$/,
    name: "snapshot-load",
    stage: "preboot",
    fields: {
      snapshot_path: text,
      mem_file_path: optionalText,
      mem_backend: { type: { backend_type: { type: "string", required: true, values: ["File", "Uffd"] }, backend_path: text } },
      enable_diff_snapshots: flag,
      track_dirty_pages: flag,
      resume_vm: flag,
    },
  },
];

export interface Action {
  readonly name: string;
  readonly stage: Stage;
  readonly body: Body;
}

/** @throws Refused */
export function parse(method: string, path: string, body: string): Action {
  const route = routes.find((each) => each.method === method && each.path.test(path));
  if (!route) throw new Refused(`Invalid request method and/or path: ${method} ${path}.`);
  if (body === "") throw new Refused(`Empty ${method} request.`);
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch (error) {
    throw deserializing((error as Error).message);
  }
  const fields = check(value, route.fields);
  const id = route.path.exec(path)?.groups?.id;
  if (route.id) {
    if (!id) throw new Refused("The ID cannot be empty.");
    if (!/^[A-Za-z0-9_]+$/.test(id)) throw new Refused("API Resource IDs can only contain alphanumeric characters and underscores.");
    if (fields[route.id] !== id) throw new Refused("The id from the path does not match the id from the body!");
  }
  return { name: route.name, stage: route.stage, body: fields };
}

function check(value: unknown, fields: Fields): Body {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw deserializing("invalid type: expected an object");
  const body = value as Record<string, unknown>;
  for (const name of Object.keys(body)) {
    if (!Object.hasOwn(fields, name)) {
      throw deserializing(
        `unknown field \`${name}\`, expected one of ${Object.keys(fields)
          .map((each) => `\`${each}\``)
          .join(", ")}`,
      );
    }
  }
  for (const [name, field] of Object.entries(fields)) {
    if (body[name] === undefined) {
      if (field.required) throw deserializing(`missing field \`${name}\``);
      continue;
    }
    checkField(name, body[name], field);
  }
  return body;
}

function checkField(name: string, value: unknown, { type, values, min, max }: Field): void {
  if (typeof type === "object") return void check(value, type);
  const fits = type === "integer" ? Number.isInteger(value) : typeof value === type;
  if (!fits) throw deserializing(`invalid type of \`${name}\`: expected a ${type}`);
  if (values && !values.includes(value as string))
    throw deserializing(`unknown variant \`${String(value)}\`, expected one of ${values.join(", ")}`);
  if ((min !== undefined && (value as number) < min) || (max !== undefined && (value as number) > max)) {
    throw new Refused(`The value of ${name} is invalid: ${String(value)}`);
  }
}

function deserializing(what: string): Refused {
  return new Refused(`An error occurred when deserializing the json body of a request: ${what}.`);
}
