// Solves a Sokoban level by forking a running game at every decision, and keeping the branches that look best.
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { create, type Sandbox } from "@mitos/sdk";

/** `#` wall, `$` box, `.` goal, `@` player. What looks best at first leads into a corner. */
const level = `
#######
##  #.#
# $ $ #
#.   @#
#######
`;

const { values } = parseArgs({ options: { beam: { type: "string", default: "2" }, pushes: { type: "string", default: "12" } } });
const beamWidth = Number(values.beam);
const pushesMax = Number(values.pushes);
if (!(beamWidth >= 1 && pushesMax >= 1)) {
  console.error("usage: node examples/tree-search/main.ts [--beam 2] [--pushes 12]");
  process.exit(2);
}

/** What the game says of itself. */
interface View {
  options: string[];
  distance: number;
  solved: boolean;
  board: string;
}

/** A position that was tried, and what became of it. */
interface Branch {
  readonly push: string;
  readonly parent: Branch | undefined;
  readonly view: View;
  readonly children: Branch[];
  fate: "kept" | "dropped" | "dead end" | "seen before" | "solved";
}

const alive = new Set<Sandbox>();
try {
  const game = await startGame();
  const start = await look(game);
  console.log(`${start.board}\n`);
  const copied = await game.runCode("import copy; copy.deepcopy(game)");
  console.log(`A copy within Python: ${copied.error?.name}: ${copied.error?.value}`);

  for (const width of new Set([1, beamWidth])) {
    console.log(`\nSearch, keeping the best ${width === 1 ? "branch" : `${width} branches`} of each step`);
    const { root, solution, forks } = await search(game, start, width);
    for (const branch of root.children) console.log(drawn(branch));
    if (!solution) {
      console.log(`Stuck, after ${forks} forks.`);
      continue;
    }
    const path = pathTo(solution);
    console.log(`Solved in ${path.length} pushes, after ${forks} forks: ${path.join(", ")}`);
    console.log(`Played again from the beginning, in a new sandbox: ${(await replay(path)) ? "solved" : "NOT SOLVED"}`);
  }
} finally {
  await Promise.all([...alive].map(end));
}

/** Beam search: each branch is a sandbox in which the game stands in that position. */
async function search(game: Sandbox, start: View, width: number): Promise<{ root: Branch; solution: Branch | undefined; forks: number }> {
  const root: Branch = { push: "", parent: undefined, view: start, children: [], fate: "kept" };
  const seen = new Set([start.board]);
  let frontier = [{ branch: root, sandbox: game }];
  let forks = 0;
  for (let step = 0; step < pushesMax && frontier.length > 0; step++) {
    const tried: typeof frontier = [];
    for (const { branch, sandbox } of frontier) {
      const children = await fork(sandbox, branch.view.options.length);
      forks += children.length;
      if (sandbox !== game) await end(sandbox);
      const views = await Promise.all(children.map((child, choice) => push(child, choice)));
      for (const [choice, view] of views.entries()) {
        const child: Branch = { push: branch.view.options[choice]!, parent: branch, view, children: [], fate: "dropped" };
        branch.children.push(child);
        tried.push({ branch: child, sandbox: children[choice]! });
      }
    }
    for (const { branch } of tried) {
      branch.fate = fateOf(branch.view, seen);
      seen.add(branch.view.board);
    }
    const open = tried.filter(({ branch }) => branch.fate === "dropped");
    const solution = tried.find(({ branch }) => branch.fate === "solved")?.branch;
    frontier = solution ? [] : open.sort((a, b) => a.branch.view.distance - b.branch.view.distance).slice(0, width);
    for (const { branch } of frontier) branch.fate = "kept";
    await Promise.all(tried.filter((one) => !frontier.includes(one)).map(({ sandbox }) => end(sandbox)));
    if (solution) return { root, solution, forks };
  }
  await Promise.all(frontier.map(({ sandbox }) => end(sandbox)));
  return { root, solution: undefined, forks };
}

function fateOf({ solved, options, board }: View, seen: ReadonlySet<string>): Branch["fate"] {
  if (solved) return "solved";
  if (seen.has(board)) return "seen before";
  return options.length === 0 ? "dead end" : "dropped";
}

async function startGame(): Promise<Sandbox> {
  const sandbox = await create({ timeoutSeconds: 600 });
  alive.add(sandbox);
  const solver = await readFile(new URL("solver.py", import.meta.url), "utf8");
  await evaluate(sandbox, `${solver}\nimport json\ngame = play(${JSON.stringify(level)})\nview = next(game)`);
  return sandbox;
}

async function fork(sandbox: Sandbox, count: number): Promise<Sandbox[]> {
  const children = await sandbox.fork(count);
  for (const child of children) alive.add(child);
  return children;
}

async function end(sandbox: Sandbox): Promise<void> {
  await sandbox.terminate();
  alive.delete(sandbox);
}

async function push(sandbox: Sandbox, choice: number): Promise<View> {
  return JSON.parse(await evaluate(sandbox, `view = game.send(${choice}); print(json.dumps(view))`)) as View;
}

async function look(sandbox: Sandbox): Promise<View> {
  return JSON.parse(await evaluate(sandbox, "print(json.dumps(view))")) as View;
}

async function evaluate(sandbox: Sandbox, code: string): Promise<string> {
  const { error, logs } = await sandbox.runCode(code);
  if (error) throw new Error(`${error.name}: ${error.value}`);
  return logs.stdout.join("");
}

/** Whether these pushes solve the level, in a game that has seen none of the search. */
async function replay(path: readonly string[]): Promise<boolean> {
  const sandbox = await startGame();
  let view = await look(sandbox);
  for (const step of path) {
    const choice = view.options.indexOf(step);
    if (choice < 0) return false;
    view = await push(sandbox, choice);
  }
  console.log(`\n${view.board}\n`);
  await end(sandbox);
  return view.solved;
}

function pathTo(branch: Branch): string[] {
  return branch.parent ? [...pathTo(branch.parent), branch.push] : [];
}

function drawn({ push, view, fate, children }: Branch, depth = 0): string {
  const line = `${"   ".repeat(depth)}${fate === "kept" || fate === "solved" ? "●" : "○"} box ${push}: ${fate}, distance ${view.distance}`;
  return [line, ...children.map((child) => drawn(child, depth + 1))].join("\n");
}
