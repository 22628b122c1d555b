/** Variables for one cell: code that sets them before it, and puts back what was there after it, in the cell's own language. */

import { InvalidArgumentError } from "./errors.ts";

export interface EnvironmentCells {
  before: string;
  after: string;
}

const makers: Readonly<Record<string, (envs: Readonly<Record<string, string>>) => EnvironmentCells>> = { python, javascript, bash };

/** @throws InvalidArgumentError for a language that is not known, and for names that are none */
export function environmentCells(language: string, envs: Readonly<Record<string, string>>): EnvironmentCells {
  for (const name of Object.keys(envs)) {
    if (!/^[A-Za-z_]\w*$/.test(name)) throw new InvalidArgumentError(`${JSON.stringify(name)} is not a name of a variable`);
  }
  const make = Object.hasOwn(makers, language) ? makers[language] : undefined;
  if (!make) throw new InvalidArgumentError(`envs are set for ${Object.keys(makers).join(", ")} only, not for ${language}`);
  return make(envs);
}

/** Kept where no name of the code's own can be. A JSON string is one of Python's too. */
function python(envs: Readonly<Record<string, string>>): EnvironmentCells {
  const wanted = JSON.stringify(envs);
  return {
    before: `(lambda os, new: (setattr(os, "_mitos_before", {name: os.environ.get(name) for name in new}), os.environ.update(new), None)[2])(__import__("os"), ${wanted})`,
    after: `(lambda os: ([os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value) for name, value in os._mitos_before.items()], None)[1])(__import__("os"))`,
  };
}

function javascript(envs: Readonly<Record<string, string>>): EnvironmentCells {
  const key = `Symbol.for("mitos.before")`;
  return {
    before: `((wanted) => { process[${key}] = Object.keys(wanted).map((name) => [name, process.env[name]]); Object.assign(process.env, wanted); })(${JSON.stringify(envs)})`,
    after: `(() => { for (const [name, value] of process[${key}]) { if (value === undefined) delete process.env[name]; else process.env[name] = value; } })()`,
  };
}

/** What a variable was is kept in a variable of another name. */
function bash(envs: Readonly<Record<string, string>>): EnvironmentCells {
  const quote = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
  const names = Object.keys(envs);
  return {
    before: names
      .map(
        (name) =>
          `if [ -n "\${${name}+x}" ]; then __mitos_${name}=$${name}; else unset __mitos_${name}; fi; export ${name}=${quote(envs[name]!)}`,
      )
      .join("\n"),
    after: names
      .map(
        (name) =>
          `if [ -n "\${__mitos_${name}+x}" ]; then export ${name}="$__mitos_${name}"; unset __mitos_${name}; else unset ${name}; fi`,
      )
      .join("\n"),
  };
}
