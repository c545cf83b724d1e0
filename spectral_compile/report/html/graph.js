// The picture of a graph: forward down on the left, backward up on the right, in bands of the model's parts.
const NODE = { width: 148, height: 38, column: 164, row: 60, left: 40 };
const MAP = 84; // the width of the map of the whole
const picture = { way: "pass", matches: [], match: -1, over: -1 };
let view;

function drawGraph() {
  const canvas = el("canvas", {
    tabindex: "0",
    id: "canvas",
    role: "application",
    "aria-label": "The graph. Arrows move, plus and minus zoom, 0 shows all, brackets go to the next and previous node",
  });
  const map = el("canvas", { class: "map", id: "map", "aria-hidden": "true" });
  const tip = el("div", { class: "tip", hidden: true });
  const stages = el(
    "select",
    {
      id: "stage",
      onchange: () => {
        const wanted = STAGES[Number(stages.value)];
        choose(wanted, chosen.node < 0 ? -1 : sameIn(chosen.stage, chosen.node, wanted), chosen.node >= 0);
      },
    },
    STAGES.map((stage) => el("option", { value: stage.number }, stage.longTitle)),
  );
  const ways = el(
    "select",
    {
      id: "coloring",
      onchange: () => {
        picture.way = ways.value;
        recolor();
      },
    },
    Object.keys(COLORINGS).map((way) => el("option", { value: way }, way)),
  );
  const search = el("input", {
    type: "search",
    class: "field",
    id: "search",
    placeholder: "find a node",
    title: "by name, operator, layer or shape; Enter goes to the next",
    "aria-label": "Find nodes; Enter goes to the next",
    oninput: () => find(search.value),
    onkeydown: (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        nextMatch(event.shiftKey ? -1 : 1);
      }
      if (event.key === "Escape") {
        search.value = "";
        find("");
        canvas.focus();
      }
    },
  });
  picture.count = el("span", { class: "count", role: "status", id: "matches" });
  picture.legend = el("div", { class: "legend", id: "legend" });
  picture.search = search;
  picture.stages = stages;
  const zoom = el(
    "div",
    { class: "zoom" },
    [
      ["+", "zoom in", () => view.zoom(1.3)],
      ["−", "zoom out", () => view.zoom(1 / 1.3)],
      ["⤢", "show all", showAll],
    ].map(([text, label, onclick]) =>
      el("button", { type: "button", class: "button", title: label, "aria-label": label, onclick }, text),
    ),
  );
  byId("graph").append(
    el(
      "div",
      { class: "bar" },
      el("label", {}, "stage", stages),
      el("label", {}, "colour by", ways),
      search,
      picture.count,
      el("span", { class: "gap" }),
      picture.legend,
    ),
    el(
      "div",
      { class: "stage" },
      canvas,
      map,
      zoom,
      tip,
      el("div", { class: "help" }, "wheel zooms, drag moves, click chooses; / finds"),
    ),
  );
  view = new View(canvas, paint, MAP);
  picture.map = new View(map, paintMap);
  pointer(canvas, tip);
  mapPointer(map);
  canvas.addEventListener("keydown", keys);
  onChoice((move) => {
    if (picture.stage !== chosen.stage) setStage(chosen.stage);
    if (move && chosen.node >= 0) goTo(chosen.node);
    view.changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
  if (STAGES.length) setStage(chosen.stage);
}

function setStage(stage) {
  picture.stage = stage;
  picture.stages.value = String(stage.number);
  picture.centreX = stage.x.map((x) => x * NODE.column + NODE.width / 2 + NODE.left);
  picture.centreY = stage.row.map((row) => row * NODE.row + NODE.height / 2 + NODE.row / 2);
  picture.width = Math.max(...picture.centreX, 0) + NODE.width / 2 + NODE.left;
  picture.height = (Math.max(0, ...stage.bands.map((band) => band[2])) + 2) * NODE.row;
  picture.edges = stage.inputs.flatMap((inputs, node) => inputs.map((input) => [input, node]));
  picture.byRow = new Map();
  stage.row.forEach((row, node) => picture.byRow.set(row, [...(picture.byRow.get(row) || []), node]));
  find(picture.search.value);
  recolor();
  if (!picture.placed && view.width > 0) begin();
}

/** At first the top of the graph, where labels can be read: all of its width, or its beginning in the middle. */
function begin() {
  picture.placed = true;
  const width = view.width - MAP;
  view.scale = Math.min(1, Math.max(0.7, width / picture.width));
  const first = picture.centreX.filter((_, node) => picture.stage.row[node] < 10).sort((a, b) => a - b);
  const middle = picture.width * view.scale <= width ? picture.width / 2 : first[first.length >> 1] || 0;
  view.x = width / 2 - middle * view.scale;
  view.y = 0;
  view.changed();
}

function showAll() {
  view.fit(picture.width, picture.height);
}

function goTo(node) {
  if (!view.width) {
    requestAnimationFrame(() => view.width > 0 && goTo(node));
    return;
  }
  picture.placed = true;
  view.scale = Math.max(view.scale, 0.8);
  view.centre(picture.centreX[node], picture.centreY[node]);
}

function recolor() {
  if (!picture.stage) return;
  picture.colored = colored(picture.stage, picture.way);
  const { counts, colors } = picture.colored;
  picture.legend.replaceChildren(
    ...[...counts]
      .sort((a, b) => b[1] - a[1])
      .slice(0, 9)
      .map(([label, count]) => el("span", {}, swatch(colors.get(label)), `${label} ${count}`)),
  );
  picture.theme = Object.fromEntries(
    ["ground", "surface", "text", "soft", "faint", "line", "strong-line", "accent", "mark", "raised"].map((name) => [
      name,
      css(`--${name}`),
    ]),
  );
  picture.theme.sans = css("--sans");
  picture.mapImage = null;
  view.changed();
}

function paint() {
  if (!picture.placed) begin();
  const context = view.begin();
  const [left, top] = view.world(0, 0);
  const [right, bottom] = view.world(view.width, view.height);
  context.translate(view.x, view.y);
  context.scale(view.scale, view.scale);
  paintBands(context, left, right, top, bottom);
  paintEdges(context, { left, right, top, bottom });
  paintNodes(context, { left, right, top, bottom });
  picture.map.changed();
  view.labels.forEach(([text, y]) => {
    // the names of bands, always of one size
    context.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
    context.font = `600 12px ${picture.theme.sans}`;
    context.globalAlpha = 0.85;
    context.fillStyle = picture.theme.surface;
    context.beginPath();
    context.roundRect(8, y - 13, context.measureText(text).width + 12, 19, 5);
    context.fill();
    context.globalAlpha = 1;
    context.fillStyle = picture.theme.soft;
    context.fillText(text, 14, y);
  });
}

function paintBands(context, left, right, top, bottom) {
  view.labels = [];
  const { theme, stage } = picture;
  let last = -Infinity;
  stage.bands.forEach(([label, first, end], place) => {
    const [y, below] = [first * NODE.row, (end + 1) * NODE.row + NODE.row / 3];
    if (below < top || y > bottom) return;
    if (place % 2 === 0) {
      context.globalAlpha = 0.6;
      context.fillStyle = theme.raised;
      context.fillRect(left, y, right - left, below - y);
      context.globalAlpha = 1;
    }
    const screen = Math.max(18, y * view.scale + view.y + 18);
    if (screen - last >= 19 && screen < below * view.scale + view.y + 6) {
      view.labels.push([label || "(the model itself)", screen]);
      last = screen;
    }
  });
}

function paintEdges(context, seen) {
  const { stage, centreX, centreY, edges, theme } = picture;
  const highlighted = [];
  const detailed = view.scale > 0.12;
  context.lineWidth = Math.max(1, 0.7 / view.scale);
  context.strokeStyle = theme["strong-line"];
  for (const faint of [true, false]) {
    context.globalAlpha = faint ? 0.35 : 1;
    context.beginPath();
    for (const edge of edges) {
      const [from, to] = edge;
      if (from === chosen.node || to === chosen.node) {
        if (faint) highlighted.push(edge);
        continue;
      }
      const far = Math.abs(stage.row[from] - stage.row[to]) > 14;
      if (far !== faint || (faint && !detailed)) continue;
      const [low, high] = centreY[from] < centreY[to] ? [centreY[from], centreY[to]] : [centreY[to], centreY[from]];
      if (high < seen.top || low > seen.bottom) continue;
      if (Math.max(centreX[from], centreX[to]) < seen.left || Math.min(centreX[from], centreX[to]) > seen.right)
        continue;
      line(context, from, to, detailed);
    }
    context.stroke();
  }
  context.globalAlpha = 1;
  context.lineWidth = Math.max(2, 1.5 / view.scale);
  context.strokeStyle = theme.accent;
  context.beginPath();
  highlighted.forEach(([from, to]) => line(context, from, to, true));
  context.stroke();
}

function line(context, from, to, curved) {
  const { centreX: x, centreY: y, stage } = picture;
  const across = stage.backward[from] !== stage.backward[to] && Math.abs(x[from] - x[to]) > NODE.column;
  if (across) {
    const [out, into] = x[from] < x[to] ? [NODE.width / 2, -NODE.width / 2] : [-NODE.width / 2, NODE.width / 2];
    const middle = (x[from] + x[to]) / 2;
    context.moveTo(x[from] + out, y[from]);
    if (curved) context.bezierCurveTo(middle, y[from], middle, y[to], x[to] + into, y[to]);
    else context.lineTo(x[to] + into, y[to]);
    return;
  }
  const down = y[to] >= y[from] ? 1 : -1;
  const [begin, end] = [y[from] + (down * NODE.height) / 2, y[to] - (down * NODE.height) / 2];
  const bend = Math.min(60, Math.abs(end - begin) / 2) * down;
  context.moveTo(x[from], begin);
  if (curved) context.bezierCurveTo(x[from], begin + bend, x[to], end - bend, x[to], end);
  else context.lineTo(x[to], end);
}

function paintNodes(context, seen) {
  const { stage, centreX, centreY, theme } = picture;
  const isMatch = new Set(picture.matches);
  const products = new Set(stage.products);
  const rows = [Math.floor(seen.top / NODE.row) - 1, Math.ceil(seen.bottom / NODE.row) + 1];
  for (let row = rows[0]; row <= rows[1]; row += 1) {
    for (const node of picture.byRow.get(row) || []) {
      const [x, y] = [centreX[node] - NODE.width / 2, centreY[node] - NODE.height / 2];
      if (x > seen.right || x + NODE.width < seen.left) continue;
      paintNode(context, node, x, y, { product: products.has(node), match: isMatch.has(node), theme, stage });
    }
  }
}

function paintNode(context, node, x, y, { product, match, theme, stage }) {
  const color = picture.colored.fill[node];
  const read = view.scale > 0.32;
  context.beginPath();
  context.roundRect(x, y, NODE.width, NODE.height, stage.op(node) ? NODE.height / 2 : 6);
  context.fillStyle = read ? theme.surface : color;
  context.fill();
  context.lineWidth = product ? 2.5 : 1;
  context.strokeStyle = product || stage.op(node) ? color : theme["strong-line"];
  context.stroke();
  if (read) {
    context.fillStyle = color;
    context.beginPath();
    if (stage.op(node)) context.arc(x + 15, y + NODE.height / 2, 4.5, 0, 7);
    else context.roundRect(x, y, 7, NODE.height, [6, 0, 0, 6]);
    context.fill();
    context.fillStyle = theme.text;
    context.font = `600 13px ${theme.sans}`;
    const indent = stage.op(node) ? 26 : 16;
    context.fillText(cut(context, stage.short(node), NODE.width - indent - 8), x + indent, y + 16);
    context.fillStyle = theme.soft;
    context.font = `11px ${theme.sans}`;
    context.fillText(cut(context, stage.type(node), NODE.width - indent - 8), x + indent, y + 31);
  }
  if (match || node === chosen.node || node === picture.over) {
    context.lineWidth = Math.max(node === chosen.node ? 3 : 2, 2 / view.scale);
    context.strokeStyle = match && node !== chosen.node ? theme.mark : theme.accent;
    context.beginPath();
    context.roundRect(x - 4, y - 4, NODE.width + 8, NODE.height + 8, 9);
    context.stroke();
  }
}

function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = Math.min(text.length, Math.floor(width / 4));
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length -= 1;
  return `${text.slice(0, length)}…`;
}

/** The whole graph at the side, with what is seen of it. Nodes are drawn once, for they stay where they are. */
function paintMap() {
  const map = picture.map;
  const context = map.begin();
  const [sx, sy] = [(map.width - 12) / picture.width, Math.min(0.35, (map.height - 12) / picture.height)];
  map.scale = sy;
  const size = `${map.canvas.width} ${map.canvas.height}`;
  if (!picture.mapImage || picture.mapSize !== size) {
    picture.mapSize = size;
    picture.mapImage = mapOfNodes(map, sx, sy);
  }
  context.drawImage(picture.mapImage, 0, 0, map.width, map.height);
  const [left, top] = view.world(0, 0);
  const [right, bottom] = view.world(view.width, view.height);
  context.strokeStyle = picture.theme.accent;
  context.lineWidth = 1.5;
  const clamp = (value, most) => Math.min(most, Math.max(1, value));
  const [x, y] = [clamp(6 + left * sx, map.width - 4), clamp(6 + top * sy, map.height - 4)];
  context.strokeRect(
    x,
    y,
    clamp(6 + right * sx, map.width - 1) - x,
    Math.max(4, clamp(6 + bottom * sy, map.height - 1) - y),
  );
}

function mapOfNodes(map, sx, sy) {
  const image = el("canvas", { width: map.canvas.width, height: map.canvas.height });
  const context = image.getContext("2d");
  context.scale(map.ratio, map.ratio);
  const isMatch = new Set(picture.matches);
  picture.stage.names.forEach((_, node) => {
    context.fillStyle = picture.colored.fill[node];
    context.globalAlpha = isMatch.size && !isMatch.has(node) ? 0.25 : 0.9;
    context.fillRect(
      6 + (picture.centreX[node] - NODE.width / 2) * sx,
      6 + picture.centreY[node] * sy,
      Math.max(1.5, NODE.width * sx),
      Math.max(1, 20 * sy),
    );
  });
  return image;
}
