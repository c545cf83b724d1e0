// Two stages side by side. Lines are matched by the node that they define, and only those that are seen are drawn.
const LINE = 18;
const AROUND = 3; // lines shown around a change where what is equal is folded
const pages = [
  ...(DATA.traced.length ? [{ title: "as traced, before autograd", code: DATA.traced, stage: null }] : []),
  ...STAGES.map((stage) => ({ title: stage.longTitle, code: stage.code, stage })),
];
const sides = { left: 0, right: 0, rows: [], change: -1 };

function drawCode() {
  const joint = pages.flatMap((page, place) => (page.stage && page.stage.kind === "joint" ? [place] : []));
  [sides.left, sides.right] = joint.length ? [joint[0], joint[joint.length - 1]] : [0, Math.max(0, pages.length - 1)];
  const select = (side, label) => {
    const made = el(
      "select",
      {
        id: `code-${side}`,
        "aria-label": label,
        onchange: () => {
          sides[side] = Number(made.value);
          rebuild();
        },
      },
      pages.map((page, place) => el("option", { value: place }, page.title)),
    );
    made.value = String(sides[side]);
    return made;
  };
  const only = el("input", {
    type: "checkbox",
    id: "only-changes",
    checked: true,
    onchange: () => {
      sides.fold = only.checked;
      rebuild();
    },
  });
  sides.fold = true;
  sides.count = el("span", { class: "count", role: "status" });
  sides.panes = ["left", "right"].map((side) => new Pane(side));
  byId("code").append(
    el(
      "div",
      { class: "bar" },
      el("label", {}, "before", select("left", "Stage on the left")),
      el("label", {}, "after", select("right", "Stage on the right")),
      el("label", {}, only, "only what changed"),
      el("button", { type: "button", class: "button", onclick: () => jump(-1) }, "Previous change"),
      el("button", { type: "button", class: "button", id: "next-change", onclick: () => jump(1) }, "Next change"),
      sides.count,
      el("span", { class: "gap" }),
      el(
        "div",
        { class: "legend" },
        [
          ["removed", "--removed"],
          ["changed", "--changed"],
          ["added", "--added"],
        ].map(([text, color]) => el("span", {}, swatch(`var(${color})`), text)),
      ),
    ),
    el(
      "div",
      { class: "columns" },
      sides.panes.map((pane) => pane.element),
    ),
  );
  rebuild();
  onChoice((move) => {
    if (move && chosen.node >= 0 && shownPart() !== "code") revealLine();
    sides.panes.forEach((pane) => pane.draw(true));
  });
}

/** Pairs of lines: [left, right, kind], -1 for none. The lines that both have in one order stand side by side. */
function aligned(left, right) {
  const names = right.map((line) => definedIn(STRINGS[line]));
  const placeOf = new Map(names.map((name, place) => [name, place]));
  const common = left.flatMap((line, place) => {
    const name = definedIn(STRINGS[line]);
    return name !== undefined && placeOf.has(name) ? [[place, placeOf.get(name)]] : [];
  });
  const rows = [];
  let [a, b] = [0, 0];
  const until = (endA, endB) => {
    const plain = (code, place) => definedIn(STRINGS[code[place]]) === undefined;
    while (a < endA && b < endB && plain(left, a) && plain(right, b)) {
      rows.push([a, b, left[a] === right[b] ? "" : "changed"]);
      a += 1;
      b += 1;
    }
    while (a < endA) {
      rows.push([a, -1, "removed"]);
      a += 1;
    }
    while (b < endB) {
      rows.push([-1, b, "added"]);
      b += 1;
    }
  };
  for (const [x, y] of ascending(common)) {
    until(x, y);
    rows.push([x, y, left[x] === right[y] ? "" : "changed"]);
    [a, b] = [x + 1, y + 1];
  }
  until(left.length, right.length);
  return rows;
}

/** The longest run of pairs that ascends on both sides (by patience: n log n). */
function ascending(pairs) {
  const tails = [];
  const before = pairs.map(() => -1);
  pairs.forEach(([, y], place) => {
    let [low, high] = [0, tails.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pairs[tails[middle]][1] < y) low = middle + 1;
      else high = middle;
    }
    if (low > 0) before[place] = tails[low - 1];
    tails[low] = place;
  });
  const found = [];
  for (let place = tails.length ? tails[tails.length - 1] : -1; place >= 0; place = before[place])
    found.push(pairs[place]);
  return found.reverse();
}

function rebuild(opened = new Set()) {
  const rows = aligned(pages[sides.left].code, pages[sides.right].code);
  const near = new Uint8Array(rows.length);
  rows.forEach(([, , kind], place) => {
    if (kind) near.fill(1, Math.max(0, place - AROUND), place + AROUND + 1);
  });
  sides.rows = [];
  sides.changes = [];
  let changed = false;
  for (let place = 0; place < rows.length; place += 1) {
    if (sides.fold && !near[place] && near.includes(1) && !opened.has(place)) {
      const begin = place;
      while (place + 1 < rows.length && !near[place + 1] && !opened.has(place + 1)) place += 1;
      sides.rows.push({ fold: [begin, place] });
      changed = false;
      continue;
    }
    if (rows[place][2] && !changed) sides.changes.push(sides.rows.length);
    changed = Boolean(rows[place][2]);
    sides.rows.push({ pair: rows[place] });
  }
  sides.opened = opened;
  sides.change = -1;
  sides.count.textContent = plural(sides.changes.length, "change");
  sides.panes.forEach((pane) => pane.begin());
}

function jump(step) {
  const { changes } = sides;
  if (!changes.length) return;
  sides.change =
    sides.change < 0 && step < 0 ? changes.length - 1 : (sides.change + step + changes.length) % changes.length;
  sides.count.textContent = `${sides.change + 1} of ${plural(changes.length, "change")}`;
  sides.panes[0].element.scrollTop = Math.max(0, changes[sides.change] - 4) * LINE;
}

function revealLine() {
  const side = [sides.left, sides.right].findIndex((page) => pages[page].stage === chosen.stage);
  const line = side < 0 ? undefined : chosen.stage.lineOf.get(chosen.node);
  if (line === undefined) return;
  const row = sides.rows.findIndex((one) => one.pair && one.pair[side] === line);
  if (row >= 0) sides.panes[0].element.scrollTop = sides.wanted = Math.max(0, row - 8) * LINE;
}

class Pane {
  constructor(side) {
    this.side = side;
    this.lines = el("div", { class: "lines" });
    this.space = el("div");
    this.element = el(
      "div",
      { class: "column", tabindex: "0", "aria-label": `code, ${side}`, onscroll: () => this.scrolled() },
      this.space,
      this.lines,
    );
    new ResizeObserver(() => {
      if (sides.wanted !== undefined && this.element.clientHeight) {
        this.element.scrollTop = sides.wanted;
      }
      this.draw(true);
    }).observe(this.element);
  }

  get page() {
    return pages[sides[this.side]];
  }

  begin() {
    this.space.style.height = `${sides.rows.length * LINE}px`;
    const longest = this.page.code.reduce((most, line) => Math.max(most, STRINGS[line].length), 0);
    this.lines.style.width = `${Math.min(longest, 2000) + 12}ch`;
    this.element.scrollTop = 0;
    this.draw(true);
  }

  scrolled() {
    for (const pane of sides.panes)
      if (pane !== this && pane.element.scrollTop !== this.element.scrollTop)
        pane.element.scrollTop = this.element.scrollTop;
    if (sides.panes.every((pane) => pane.element.scrollTop === this.element.scrollTop)) sides.wanted = undefined;
    this.draw();
  }

  draw(again = false) {
    const first = Math.max(0, Math.floor(this.element.scrollTop / LINE) - 20);
    if (!again && this.first !== undefined && Math.abs(first - this.first) < 15) return;
    this.first = first;
    const count = Math.ceil(this.element.clientHeight / LINE) + 60;
    this.lines.style.transform = `translateY(${first * LINE}px)`;
    this.lines.replaceChildren(...sides.rows.slice(first, first + count).map((row) => this.row(row)));
  }

  row({ pair, fold }) {
    if (fold) {
      const open = () => {
        const top = this.element.scrollTop;
        const opened = new Set(sides.opened);
        for (let place = fold[0]; place <= fold[1]; place += 1) opened.add(place);
        rebuild(opened);
        this.element.scrollTop = top;
      };
      return el(
        "div",
        { class: "row fold", onclick: open },
        el("span", { class: "no" }, "⋯"),
        `${plural(fold[1] - fold[0] + 1, "line")} alike`,
      );
    }
    const place = pair[this.side === "left" ? 0 : 1];
    if (place < 0) return el("div", { class: "row absent" });
    const stage = this.page.stage;
    const node = stage ? stage.nodeAt.get(place) : undefined;
    const isChosen = stage && stage === chosen.stage && node !== undefined && node === chosen.node;
    return el(
      "div",
      {
        class: ["row", pair[2], node === undefined ? "" : "node", isChosen ? "chosen" : ""].join(" "),
        onclick: node === undefined ? undefined : () => choose(stage, node),
      },
      el("span", { class: "no" }, String(place + 1)),
      el("span", {}, highlighted(STRINGS[this.page.code[place]])),
    );
  }
}

/** name = operator(...)  # note, told apart. */
function highlighted(line) {
  const found = /^(\s*)(\w+)( = )([\w.]+)?(.*?)(  # .*)?$/.exec(line);
  if (!found) return [line.length > 4000 ? `${line.slice(0, 4000)}…` : line];
  const [, indent, name, equals, op, rest, note] = found;
  return [
    indent,
    el("span", { class: "name" }, name),
    equals,
    el("span", { class: "op" }, op || ""),
    rest,
    el("span", { class: "note" }, note || ""),
  ];
}
