// The first page: what was done, in a few numbers.
function drawSummary() {
  const about = DATA.about;
  const told = DATA.summary;
  const options = about.options || {};
  byId("title").textContent = about.model || `Graph ${about.graph}`;
  byId("subtitle").textContent = [
    `graph ${about.graph}`,
    options.recipe && `recipe ${options.recipe}`,
    options.codegen && `codegen ${options.codegen}`,
    about.torch && `torch ${about.torch}`,
    about.written,
  ]
    .filter(Boolean)
    .join("  ·  ");
  byId("summary").append(
    el(
      "div",
      { class: "page" },
      el("div", { class: "cards" }, cards(told)),
      el(
        "div",
        { class: "blocks" },
        workBlock(told),
        memoryBlock(told),
        reasonsBlock(told),
        timeBlock(told),
        stagesBlock(),
        optionsBlock(options),
      ),
    ),
  );
}

function cards(told) {
  const alone = told.products - told.in_four_bits;
  const made = [
    card(
      "Products in four bits",
      String(told.in_four_bits),
      ` of ${told.products}`,
      alone ? `${alone} left alone, each for a reason` : "none was left alone",
    ),
  ];
  made.push(
    told.share_of_work === null
      ? card("Work in four bits", "-", "", "sizes are symbolic, or there is no work")
      : card(
          "Work in four bits",
          percent(told.share_of_work),
          "",
          isNumber(told.work)
            ? `${flops(told.work_in_four_bits)} of ${flops(told.work)} a step`
            : "whatever the symbolic sizes are",
        ),
  );
  if (told.saved !== undefined && told.saved !== null) made.push(savedCard(told));
  const time = Object.values(told.seconds).reduce((sum, one) => sum + one, 0);
  made.push(card("Time in passes", seconds(time), "", plural(Object.keys(told.seconds).length, "pass", "passes")));
  return made;
}

function card(what, number, small, more) {
  return el(
    "div",
    { class: "card" },
    el("div", { class: "what" }, what),
    el("div", { class: "number" }, number, el("small", {}, small)),
    el("div", { class: "more" }, more),
  );
}

function savedCard(told) {
  const known = isNumber(told.saved) && isNumber(told.saved_unchanged) && told.saved_unchanged > 0;
  const change = known ? told.saved / told.saved_unchanged - 1 : null;
  const more =
    change === null
      ? `without any pass ${told.saved_unchanged_text || "not known"}`
      : `${Math.abs(Math.round(change * 100))} % ${change <= 0 ? "less" : "more"} than without any pass`;
  return card("Saved for backward", isNumber(told.saved) ? bytes(told.saved) : told.saved_text, "", more);
}

function block(title, ...children) {
  return el("div", { class: "block" }, el("h2", {}, title), ...children);
}

/** lines: [{label, parts: [[share, color, title]], value}] */
function bars(lines) {
  return el(
    "div",
    { class: "bars" },
    lines.flatMap(({ label, parts, value }) => [
      el("div", {}, label),
      el(
        "div",
        { class: "track" },
        parts.map(([share, color, title]) => {
          const part = el("i", { title });
          part.style.width = `${100 * share}%`;
          part.style.background = color;
          return part;
        }),
      ),
      el("div", { class: "value" }, value),
    ]),
  );
}

function workBlock(told) {
  const known = told.roles.filter((role) => isNumber(role.work_in_four_bits) && isNumber(role.work_left_alone));
  const most = Math.max(...known.map((role) => role.work_in_four_bits + role.work_left_alone), 1);
  const lines = told.roles.map((role) => ({
    label: role.role,
    parts: known.includes(role)
      ? [
          [role.work_in_four_bits / most, "var(--c1)", "in four bits"],
          [role.work_left_alone / most, "var(--c0)", "in high precision"],
        ]
      : [],
    value:
      `${role.in_four_bits} of ${plural(role.in_four_bits + role.left_alone, "product")}` +
      (isNumber(role.work_in_four_bits) && role.role !== "other"
        ? `, ${flops(role.work_in_four_bits + role.work_left_alone)}`
        : ""),
  }));
  return block(
    "Work of matrix products, by role",
    bars(lines),
    el(
      "div",
      { class: "legend" },
      el("span", {}, swatch("var(--c1)"), "in four bits"),
      el("span", {}, swatch("var(--c0)"), "in high precision"),
    ),
    told.formats.length
      ? el(
          "p",
          { class: "soft legend" },
          `Formats: ${told.formats.map(([name, count]) => `${name} (${plural(count, "product")})`).join(", ")}`,
        )
      : "",
  );
}

function memoryBlock(told) {
  if (told.saved === undefined || told.saved === null) {
    return block(
      "Saved for backward",
      el("p", { class: "soft" }, "Nothing: this graph has no backward, or it was not compiled yet."),
    );
  }
  const lines = [
    ["with the passes", told.saved, "var(--c1)"],
    ["without", told.saved_unchanged, "var(--c0)"],
  ].filter(([, size]) => isNumber(size));
  const most = Math.max(...lines.map(([, size]) => size), 1);
  const kept = told.kept
    .filter(([, size]) => isNumber(size))
    .sort((a, b) => b[1] - a[1])
    .slice(0, 6);
  return block(
    "Saved for backward",
    lines.length
      ? bars(lines.map(([label, size, color]) => ({ label, parts: [[size / most, color]], value: bytes(size) })))
      : el("p", {}, `${told.saved_text}; without any pass ${told.saved_unchanged_text}`),
    kept.length ? el("h3", {}, "The largest of what is kept") : "",
    el(
      "ul",
      { class: "reasons" },
      kept.map(([name, size]) =>
        el("li", {}, el("span", { class: "nowrap" }, bytes(size)), nodeLink(STAGES[LAST_JOINT], name, keptAs(name))),
      ),
    ),
  );
}

function keptAs(name) {
  const stage = STAGES[LAST_JOINT];
  const node = stage.index.get(name);
  if (node === undefined) return name;
  return [name, stage.type(node), stage.layer(node)].filter(Boolean).join("  ");
}

function nodeLink(stage, name, text = name) {
  const node = stage ? stage.index.get(name) : undefined;
  if (node === undefined) return el("span", { class: "mono" }, text);
  return el(
    "button",
    {
      type: "button",
      class: "link mono",
      onclick: () => {
        show("graph");
        choose(stage, node);
      },
    },
    text,
  );
}

function reasonsBlock(told) {
  if (!told.reasons.length)
    return block("Left alone", el("p", { class: "soft" }, "Nothing: every product is in four bits."));
  return block(
    "Left alone, and why",
    el(
      "ul",
      { class: "reasons" },
      told.reasons.map(([reason, count]) =>
        el(
          "li",
          {},
          el("span", { class: "n" }, String(count)),
          el(
            "button",
            {
              type: "button",
              class: "link",
              onclick: () => {
                show("products");
                filterProducts(reason);
              },
            },
            reason,
          ),
        ),
      ),
    ),
  );
}

function timeBlock(told) {
  const times = Object.entries(told.seconds);
  const most = Math.max(...times.map(([, time]) => time), 1e-9);
  return block(
    "Time by pass",
    times.length
      ? bars(
          times.map(([name, time], place) => ({
            label: name,
            parts: [[time / most, passColor(name, place)]],
            value: seconds(time),
          })),
        )
      : el("p", { class: "soft" }, "No pass ran."),
  );
}

function stagesBlock() {
  const joint = STAGES.filter((stage) => stage.kind === "joint");
  const size = (stage) => plural(stage.names.length, "node");
  return block(
    "Stages of the graph",
    el(
      "ul",
      { class: "reasons" },
      STAGES.map((stage) =>
        el(
          "li",
          {},
          el(
            "button",
            {
              type: "button",
              class: "link",
              onclick: () => {
                show("graph");
                choose(stage, -1);
              },
            },
            stage.longTitle,
          ),
          el(
            "span",
            { class: "soft" },
            size(stage) +
              (stage.after && joint.includes(stage)
                ? `, ${stage.by.filter((by) => STRINGS[by] === stage.after).length} of them made by it`
                : ""),
          ),
        ),
      ),
    ),
  );
}

function optionsBlock(options) {
  const pairs = Object.entries(options).flatMap(([key, value]) => [
    el("dt", {}, key),
    el("dd", { class: "mono" }, value),
  ]);
  return block(
    "Options",
    pairs.length ? el("dl", { class: "pairs" }, pairs) : el("p", { class: "soft" }, "not written by this dump"),
  );
}
