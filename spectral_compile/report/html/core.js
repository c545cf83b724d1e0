// The data as the other scripts read it, the one choice (stage and node) that they share, and how text enters the page.
const DATA = JSON.parse(document.getElementById("data").textContent);
const STRINGS = DATA.strings;
const byId = (id) => document.getElementById(id);

/** An element with attributes, handlers (onclick: ...) and children. Strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== ""));
  return made;
}

function swatch(color) {
  const made = el("i", { class: "swatch" });
  made.style.background = color;
  return made;
}

class Stage {
  constructor(raw, number) {
    Object.assign(this, raw, { number });
    this.index = new Map(this.names.map((name, node) => [name, node]));
    this.users = this.names.map(() => []);
    this.inputs.forEach((inputs, node) => inputs.forEach((input) => this.users[input].push(node)));
    this.returned = new Set(this.outputs);
    this.lineOf = new Map(); // from a node to its line of code, and back
    this.nodeAt = new Map();
    this.code.forEach((line, place) => {
      const node = this.index.get(definedIn(STRINGS[line]));
      if (node === undefined || this.lineOf.has(node)) return;
      this.lineOf.set(node, place);
      this.nodeAt.set(place, node);
    });
  }

  get title() {
    if (this.kind !== "joint") return this.kind;
    return this.after ? `after ${this.after}` : "before any pass";
  }

  get longTitle() {
    return this.kind === "joint" ? `joint, ${this.title}` : `${this.kind}, as compiled`;
  }

  target(node) {
    return STRINGS[this.targets[node]];
  }
  type(node) {
    return STRINGS[this.types[node]];
  }
  layer(node) {
    return STRINGS[this.layers[node]];
  }
  pass(node) {
    return STRINGS[this.by[node]];
  }
  op(node) {
    return STRINGS[this.ops[node]];
  }
  rows(node) {
    return (this.serves[node] || []).map((row) => DATA.rows[row]);
  }
  dtype(node) {
    return (/^\(?(\w+)\[/.exec(this.type(node)) || [])[1] || "none";
  }

  /** What a node is called where there is little room. */
  short(node) {
    const item = this.target(node) === "operator.getitem" && /\[(\d+)\]/.exec(codeOf(this, node));
    if (item) return `${this.short(this.inputs[node][0])} [${item[1]}]`;
    if (this.op(node)) return this.layer(node).split(".").slice(-2).join(".") || this.names[node];
    return this.target(node)
      .replace(/^(aten|prims|spectral|operator|torch)\./, "")
      .replace(/\.\w+$/, "");
  }
}

const definedIn = (line) => (/^\s*(\w+) = /.exec(line) || [])[1];
const STAGES = DATA.stages.map((raw, number) => new Stage(raw, number));
const LAST_JOINT = STAGES.reduce((last, stage) => (stage.kind === "joint" ? stage.number : last), 0);

/** Where a node of a stage is found in the stages that follow: [{stage, node, how, by}]. */
function became(stage, node) {
  if (stage.kind !== "joint") return [];
  const next = stage.number < LAST_JOINT ? [STAGES[stage.number + 1]] : STAGES.slice(LAST_JOINT + 1);
  const fate = stage.fates[stage.names[node]];
  const names = fate ? fate.to : [stage.names[node]];
  return next.flatMap((after) =>
    names
      .filter((name) => after.index.has(name))
      .map((name) => ({
        stage: after,
        node: after.index.get(name),
        how: fate ? fate.how : "same",
        by: fate ? fate.by : "",
      }))
      .filter((found) => fate || after.by[found.node] === stage.by[node]),
  );
}

/** The other way: which nodes of the stage before a node does the work of. */
const ORIGINS = STAGES.map(() => new Map());
STAGES.forEach((stage) =>
  stage.names.forEach((_, node) => {
    for (const found of became(stage, node)) {
      const origins = ORIGINS[found.stage.number];
      if (!origins.has(found.node)) origins.set(found.node, []);
      origins.get(found.node).push({ stage, node, how: found.how, by: found.by });
    }
  }),
);
function cameFrom(stage, node) {
  const all = ORIGINS[stage.number].get(node) || [];
  const direct = all.filter((found) => found.how !== "folded");
  return direct.length ? direct : all;
}

// The choice: one stage, and perhaps a node of it.
const chosen = { stage: STAGES[LAST_JOINT], node: -1 };
const listeners = [];
const onChoice = (listener) => listeners.push(listener);

/** move: whether the picture goes to the node. */
function choose(stage, node, move = true) {
  chosen.stage = stage;
  chosen.node = node;
  listeners.forEach((listener) => listener(move));
}

/** The same node in another stage, or what it became there, or was. */
function sameIn(stage, node, wanted) {
  let [here, place] = [stage, node];
  const step = wanted.number < stage.number ? cameFrom : became;
  while (here !== wanted) {
    const found = step(here, place);
    const next = found.find((one) => one.stage === wanted) || found[0];
    if (!next || next.stage.number === here.number) return -1;
    [here, place] = [next.stage, next.node];
    if (here.kind !== "joint" && here !== wanted) {
      return wanted.index.has(stage.names[node]) ? wanted.index.get(stage.names[node]) : -1;
    }
  }
  return place;
}

// Numbers for people.
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
function bytes(size) {
  if (!isNumber(size)) return size === null || size === undefined ? "" : `${size} B`;
  if (size < 1024) return `${size} B`;
  return size < 2 ** 20 ? `${(size / 1024).toFixed(1)} KiB` : `${(size / 2 ** 20).toFixed(1)} MiB`;
}
function flops(count) {
  if (!isNumber(count)) return count === null || count === undefined ? "" : String(count);
  const units = ["", "K", "M", "G", "T", "P"];
  const power = count > 0 ? Math.min(5, Math.floor(Math.log10(count) / 3)) : 0;
  return `${Number((count / 1000 ** power).toPrecision(3))} ${units[power]}FLOP`;
}
const percent = (share) => `${Math.round(share * 100)} %`;
const seconds = (time) => (time < 1 ? `${Math.round(time * 1000)} ms` : `${time.toFixed(1)} s`);
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
