// What was measured while the model trained, where it was.
const MEASURES = {
  snr_db: { title: "signal to noise, dB", head: "SNR, dB", text: (value) => value.toFixed(1) },
  clipped: { title: "clipped, share", head: "clipped", text: (value) => value.toPrecision(2) },
  mean_to_deviation: { title: "mean to deviation", head: "mean / dev.", text: (value) => value.toFixed(3) },
  mean_to_deviation_after: {
    title: "mean to deviation, once centred",
    head: "centred",
    text: (value) => value.toFixed(3),
  },
  amax: { title: "largest magnitude", head: "largest", text: (value) => value.toPrecision(3) },
  cosine: { title: "cosine", head: "cosine", text: (value) => value.toFixed(4) },
};
const WIDE = 400;
const HIGH = 190;

function drawNumerics() {
  const page = el("div", { class: "page" });
  byId("numerics").append(page);
  if (!DATA.numerics.length) {
    page.append(
      block(
        "Not measured",
        el(
          "p",
          {},
          "Signal to noise, clipping and means of each operand are shown here once a training run has measured them " +
            "into numerics.jsonl in this folder. Then make the report again: ",
          el("code", {}, `python -m spectral_compile report ${DATA.folder}`),
        ),
      ),
    );
    return;
  }
  const present = Object.keys(MEASURES).filter((key) => DATA.numerics.some((one) => isNumber(one[key])));
  const latest = new Map();
  const series = new Map();
  for (const one of DATA.numerics) {
    const key = JSON.stringify([one.layer, one.role, one.operand]);
    latest.set(key, one);
    if (!series.has(key)) series.set(key, []);
    series.get(key).push(one);
  }
  let picked = null;
  const charts = el("div", { class: "charts" });
  const measure = el(
    "select",
    { id: "measure", onchange: redraw },
    present.map((key) => el("option", { value: key }, MEASURES[key].title)),
  );
  const table = new Table(
    [
      { name: "layer", value: (one) => one.layer, cell: (one) => el("span", { class: "mono" }, one.layer) },
      { name: "role", value: (one) => one.role },
      { name: "operand", value: (one) => one.operand },
      { name: "step", right: true, value: (one) => one.step },
      ...present.map((key) => ({
        name: MEASURES[key].head,
        title: MEASURES[key].title,
        right: true,
        value: (one) => one[key],
        cell: (one) => (isNumber(one[key]) ? MEASURES[key].text(one[key]) : "-"),
      })),
    ],
    [...latest.values()],
    {
      onRow: (one) => {
        picked = picked === one ? null : one;
        table.draw();
        redraw();
      },
    },
  );
  table.marked = (one) => one === picked;
  function redraw() {
    const operands = [...new Set(DATA.numerics.map((one) => one.operand))];
    charts.replaceChildren(
      ...operands.map((operand) =>
        chart(
          operand,
          [...series.values()].filter((lines) => lines[0].operand === operand),
          measure.value,
          picked && [...series].find(([key]) => latest.get(key) === picked)[1],
        ),
      ),
    );
  }
  page.append(
    el(
      "div",
      { class: "bar" },
      el("label", {}, "show", measure),
      el("span", { class: "soft" }, "thin: each layer and role; bold: their median; a row of the table picks one out"),
    ),
    charts,
    el("div", { class: "sheet" }, table.element),
  );
  table.draw();
  redraw();
}

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

function chart(operand, lines, key, picked) {
  const points = lines.map((line) => line.filter((one) => isNumber(one[key])).map((one) => [one.step, one[key]]));
  const all = points.flat();
  if (!all.length) return block(operand, el("p", { class: "soft" }, "not measured"));
  const range = (place) =>
    all.reduce(
      ([least, most], point) => [Math.min(least, point[place]), Math.max(most, point[place])],
      [Infinity, -Infinity],
    );
  const [[x0, x1], [low, high]] = [range(0), range(1)];
  const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  const [y0, y1] = [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
  const x = (value) => 46 + ((WIDE - 58) * (value - x0)) / (x1 - x0 || 1);
  const y = (value) => HIGH - 26 - ((HIGH - 38) * (value - y0)) / (y1 - y0);
  const path = (line) =>
    line.map(([step, value], place) => `${place ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const made = svg("svg", {
    viewBox: `0 0 ${WIDE} ${HIGH}`,
    role: "img",
    "aria-label": `${MEASURES[key].title} of ${operand} over steps`,
  });
  for (let tick = 0; tick <= 3; tick += 1) {
    const value = y0 + ((y1 - y0) * tick) / 3;
    made.append(
      svg("line", { class: "axis", x1: 46, x2: WIDE - 12, y1: y(value), y2: y(value) }),
      svg("text", { x: 40, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  made.append(
    svg("text", { x: 46, y: HIGH - 8 }, `step ${x0}`),
    svg("text", { x: WIDE - 12, y: HIGH - 8, "text-anchor": "end" }, String(x1)),
  );
  points.forEach((line) => made.append(svg("path", { class: "layer", d: path(line) })));
  const middle = median(points);
  made.append(svg("path", { class: "middle", d: path(middle) }));
  if (middle.length === 1) made.append(svg("circle", { class: "dot", r: 3, cx: x(middle[0][0]), cy: y(middle[0][1]) }));
  if (picked && picked[0].operand === operand)
    made.append(
      svg("path", {
        class: "chosen",
        d: path(picked.filter((one) => isNumber(one[key])).map((one) => [one.step, one[key]])),
      }),
    );
  return block(`${operand}: ${MEASURES[key].title}`, made);
}

const short = (value) =>
  value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(0) : String(Number(value.toPrecision(3)));

/** Over lines, at each step. */
function median(lines) {
  const bySteps = new Map();
  for (const [step, value] of lines.flat()) {
    if (!bySteps.has(step)) bySteps.set(step, []);
    bySteps.get(step).push(value);
  }
  return [...bySteps]
    .sort((a, b) => a[0] - b[0])
    .map(([step, values]) => [step, values.sort((a, b) => a - b)[values.length >> 1]]);
}
