// Colours, and a canvas that can be moved and zoomed.
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PASSES = [
  ...new Set([
    ...STAGES.flatMap((stage) => stage.by.map((by) => STRINGS[by])).filter(Boolean),
    ...Object.keys(DATA.summary.seconds),
  ]),
];
const HUES = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const hue = (place) => `var(${HUES[place % HUES.length]})`;
const passColor = (name) => hue(PASSES.indexOf(name));
const roleColor = (role) =>
  ({ fprop: "var(--c1)", dgrad: "var(--c2)", wgrad: "var(--c3)", several: "var(--c4)" })[role] || "var(--c0)";

/** How nodes are told apart by colour: for each way, a node's label, and the label's colour. */
const COLORINGS = {
  pass: {
    label: (stage, node) => stage.pass(node) || "as traced",
    color: (label) => (label === "as traced" ? "var(--c0)" : passColor(label)),
  },
  role: {
    label: (stage, node) => {
      const roles = [...new Set(stage.rows(node).map((row) => row.role))];
      return roles.length > 1 ? "several" : roles[0] || "no product";
    },
    color: (label) => (label === "no product" ? "var(--c0)" : label === "other" ? "var(--c5)" : roleColor(label)),
  },
  format: {
    label: formatOf,
    color: (label, labels) =>
      ({ "no product": "var(--c0)", "high precision": "var(--c2)" })[label] ||
      hue([0, 2, 3, 4, 5][labels.indexOf(label) % 5]),
  },
  dtype: {
    label: (stage, node) => stage.dtype(node),
    color: (label, labels) => (label === "none" ? "var(--c0)" : hue(labels.indexOf(label))),
  },
  part: {
    label: (stage, node) => (stage.backward[node] ? "backward" : "forward"),
    color: (label) => (label === "forward" ? "var(--c1)" : "var(--c2)"),
  },
};

function formatOf(stage, node) {
  const rows = stage.rows(node);
  if (!rows.length) return "no product";
  const formats = new Set(rows.flatMap((row) => [row.a, row.b].filter(Boolean).map((operand) => operand.format)));
  return formats.size ? [...formats].sort().join(" @ ") : "high precision";
}

/** The labels of a stage's nodes under a colouring, with colours and counts, as they come in the graph. */
function colored(stage, way) {
  const labels = stage.names.map((_, node) => COLORINGS[way].label(stage, node));
  const counts = new Map();
  labels.forEach((label) => counts.set(label, (counts.get(label) || 0) + 1));
  const known = [...counts.keys()].filter((label) => !["no product", "high precision", "none"].includes(label)).sort();
  const colors = new Map([...counts.keys()].map((label) => [label, COLORINGS[way].color(label, known)]));
  const resolved = new Map([...colors].map(([label, color]) => [label, css(color.slice(4, -1))]));
  return { labels, counts, colors, fill: labels.map((label) => resolved.get(label)) };
}

class View {
  /** draw(): asked for once a frame. covered: of its width on the right, by something else. */
  constructor(canvas, draw, covered = 0) {
    Object.assign(this, { canvas, drawing: draw, covered, scale: 1, x: 0, y: 0, width: 0, height: 0, waiting: false });
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    if (clientWidth && this.width) this.x += (clientWidth - this.width) / 2; // what is in the middle stays there
    if (clientWidth) [this.width, this.height] = [clientWidth, clientHeight];
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.ratio = ratio;
    this.changed();
  }

  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.width > 0) this.drawing();
    });
  }

  begin() {
    const context = this.canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    return context;
  }

  world(x, y) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  zoom(factor, x = (this.width - this.covered) / 2, y = this.height / 2) {
    const scale = Math.min(3, Math.max(0.004, this.scale * factor));
    this.x = x - (x - this.x) * (scale / this.scale);
    this.y = y - (y - this.y) * (scale / this.scale);
    this.scale = scale;
    this.changed();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.changed();
  }

  wheel(event) {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 16 : 1;
    if (event.shiftKey) this.move(-(event.deltaY + event.deltaX) * unit, 0);
    else this.zoom(Math.exp(-event.deltaY * unit * 0.0015), event.offsetX, event.offsetY);
  }

  centre(x, y) {
    this.x = (this.width - this.covered) / 2 - x * this.scale;
    this.y = this.height / 2 - y * this.scale;
    this.changed();
  }

  fit(width, height, margin = 40) {
    this.scale = Math.min(1.2, (this.width - this.covered - 2 * margin) / width, (this.height - 2 * margin) / height);
    this.centre(width / 2, height / 2);
  }
}
