// What is known of the chosen node.
function drawPanel() {
  onChoice(() => {
    const panel = byId("panel");
    panel.hidden = chosen.node < 0 || !["graph", "code"].includes(shownPart());
    panel.replaceChildren();
    if (chosen.node >= 0) {
      panel.append(...about(chosen.stage, chosen.node));
      panel.scrollTop = 0;
    }
  });
}

function about(stage, node) {
  const rows = stage.rows(node);
  const pass = stage.pass(node);
  const isProduct = stage.products.includes(node);
  const pairs = [
    ["operator", stage.op(node) ? "input of the graph" : stage.target(node)],
    ["result", stage.type(node)],
    [stage.op(node) ? "parameter" : "layer", stage.layer(node) || (stage.op(node) ? "" : "(the model itself)")],
    ["belongs to", stage.backward[node] ? "backward" : "forward"],
    ["made by", pass ? el("span", { class: "key" }, swatch(passColor(pass)), pass) : "the trace of your program"],
    ["returned", stage.returned.has(node) ? "by the graph" : ""],
  ].filter(([, value]) => value);
  return [
    el(
      "div",
      { class: "head" },
      el("h2", {}, stage.names[node]),
      el(
        "button",
        {
          type: "button",
          class: "button",
          "aria-label": "close",
          title: "close (Escape)",
          onclick: () => choose(stage, -1),
        },
        "×",
      ),
    ),
    el(
      "dl",
      { class: "pairs" },
      pairs.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]),
    ),
    ...(rows.length
      ? [
          el(
            "h3",
            {},
            isProduct ? "The product" : plural(rows.length, "Works for this product", "Works for these products"),
          ),
          ...rows.map(productLine),
        ]
      : []),
    el("h3", {}, "Code"),
    el("pre", {}, codeOf(stage, node)),
    ...origin(stage, node),
    el("h3", {}, "What it was and what it became"),
    way(stage, node),
    ...links("Reads", stage, stage.inputs[node]),
    ...links("Read by", stage, stage.users[node]),
  ];
}

function productLine(row) {
  return el(
    "p",
    { class: "where" },
    [row.layer || "?", row.role, row.m && `${row.m} x ${row.n} x ${row.k}`].filter(Boolean).join(", "),
    row.reason ? `: left alone: ${row.reason}` : `: ${decision(row)}`,
  );
}

function codeOf(stage, node) {
  const line = stage.lineOf.get(node);
  return line === undefined ? `${stage.names[node]}: an argument of forward()` : STRINGS[stage.code[line]].trim();
}

function origin(stage, node) {
  const frames = stage.sources[stage.source[node]] || [];
  if (!frames.length) return [];
  const line = (frame) =>
    el(
      "span",
      { class: "soft", title: frame.file },
      `${frame.file.split(/[\\/]/).slice(-3).join("/")}:${frame.line} in ${frame.function}`,
    );
  const last = frames[frames.length - 1];
  const made = [
    el("h3", {}, stage.backward[node] ? "Origin: the backward of" : "Origin"),
    el("pre", {}, last.code || "?"),
    el("p", { class: "where" }, line(last)),
  ];
  if (frames.length > 1) {
    made.push(
      el(
        "details",
        {},
        el("summary", { class: "soft" }, `called from ${plural(frames.length - 1, "place")}`),
        frames
          .slice(0, -1)
          .reverse()
          .map((frame) => el("p", { class: "where" }, el("code", {}, frame.code), el("br"), line(frame))),
      ),
    );
  }
  return made;
}

/** Stage by stage, from the trace to what is compiled. */
function way(stage, node) {
  const steps = [{ stage, nodes: [node], here: true }];
  for (let here = [[stage, node]]; here.length;) {
    const before = here.flatMap(([s, n]) => cameFrom(s, n));
    here = [
      ...new Map(before.map((found) => [`${found.stage.number} ${found.node}`, [found.stage, found.node]])).values(),
    ].slice(0, 12);
    if (here.length) steps.unshift({ stage: here[0][0], nodes: here.map(([, n]) => n) });
  }
  for (let here = [[stage, node]]; here.length;) {
    const after = here.flatMap(([s, n]) => became(s, n).map((found) => ({ ...found, from: [s, n] })));
    if (!after.length) {
      const fate = here.length === 1 && here[0][0].fates[here[0][0].names[here[0][1]]];
      if (fate && !fate.to.length)
        steps.push({
          text: fate.by ? `removed by ${fate.by}: nobody reads it any more` : "removed: nobody reads it any more",
        });
    }
    const seen = new Map(after.map((found) => [`${found.stage.number} ${found.node}`, found]));
    here = [...seen.values()].map((found) => [found.stage, found.node]).slice(0, 12);
    for (const next of new Set(here.map(([s]) => s))) {
      const own = [...seen.values()].filter((found) => found.stage === next);
      steps.push({ stage: next, nodes: own.map((found) => found.node), how: own[0].how, by: own[0].by });
    }
    if (here.some(([s]) => s.kind !== "joint")) break;
  }
  return el(
    "ol",
    { class: "steps" },
    steps.map((step) =>
      el(
        "li",
        { class: step.here ? "here" : undefined },
        step.text
          ? step.text
          : [
              el(
                "div",
                { class: "when" },
                step.stage.title +
                  (step.how === "folded"
                    ? ": its work is now done in"
                    : step.how === "replaced" && step.by
                      ? `: replaced by ${step.by}`
                      : ""),
              ),
              el(
                "div",
                { class: "links" },
                step.nodes.slice(0, 8).map((n) => nodeButton(step.stage, n)),
                step.nodes.length > 8 ? `and ${step.nodes.length - 8} more` : "",
              ),
            ],
      ),
    ),
  );
}

function nodeButton(stage, node) {
  const text = [stage.names[node], stage.op(node) && stage.layer(node), stage.type(node)].filter(Boolean).join("  ");
  return el(
    "button",
    { type: "button", class: "link", title: stage.target(node), onclick: () => choose(stage, node) },
    text,
  );
}

function links(title, stage, nodes) {
  if (!nodes.length) return [];
  return [
    el("h3", {}, `${title} (${nodes.length})`),
    el(
      "div",
      { class: "links" },
      nodes.slice(0, 40).map((node) => nodeButton(stage, node)),
      nodes.length > 40 ? el("span", { class: "soft" }, `and ${nodes.length - 40} more`) : "",
    ),
  ];
}
