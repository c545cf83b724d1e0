// The plan: one row a product, to sort and to filter.
let productTable;
let productFilters;

function drawProducts() {
  const number = new Map(DATA.rows.map((row, place) => [row, place]));
  productTable = new Table(
    [
      { name: "#", right: true, up: true, title: "in graph order", value: (row) => number.get(row) + 1 },
      { name: "layer", value: (row) => row.layer, cell: (row) => productLink(row, number.get(row)) },
      {
        name: "role",
        value: (row) => row.role,
        cell: (row) => el("span", { class: "key" }, swatch(roleColor(row.role)), row.role),
      },
      {
        name: "m x n x k",
        right: true,
        title: "[m, n] = [m, k] @ [k, n]; sorted by their product",
        value: extent,
        cell: (row) => (row.m ? `${row.m} x ${row.n} x ${row.k}` : ""),
      },
      { name: "decision", value: (row) => row.reason || `0 ${decision(row)}`, cell: decisionCell },
      { name: "carrier", value: (row) => row.carrier },
      {
        name: "saved",
        right: true,
        title: "bytes that it reads of what is saved for backward, alone or with others",
        value: (row) => row.saved,
        cell: (row) => (row.saved ? bytes(row.saved) : ""),
      },
      { name: "work", right: true, title: "2 m n k", value: (row) => row.flops, cell: (row) => flops(row.flops) },
    ],
    DATA.rows,
    { empty: "no product matches" },
  );
  const search = el("input", {
    type: "search",
    class: "field",
    id: "product-search",
    placeholder: "filter products",
    title: "words of a layer, role, format or reason",
    "aria-label": "Filter products",
    oninput: apply,
  });
  const decisions = el(
    "select",
    { id: "product-decision", onchange: apply },
    [
      ["", "all"],
      ["four", "in four bits"],
      ["alone", "left alone"],
    ].map(([value, text]) => el("option", { value }, text)),
  );
  const count = el("span", { class: "count", role: "status" });
  productFilters = { search, decisions, apply };
  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = productTable.filter(
      (row) =>
        (!decisions.value || (decisions.value === "four") === !row.reason) &&
        words.every((word) =>
          `${row.layer} ${row.role} ${row.reason} ${decision(row)} ${row.carrier} ${row.node}`
            .toLowerCase()
            .includes(word),
        ),
    );
    count.textContent = `${shown} of ${DATA.rows.length}`;
  }
  byId("products").append(
    el("div", { class: "bar" }, search, el("label", {}, "show", decisions), count),
    el("div", { class: "scroll" }, productTable.element),
  );
  apply();
}

function filterProducts(text) {
  productFilters.search.value = text;
  productFilters.decisions.value = "";
  productFilters.apply();
}

const extent = (row) => {
  const sizes = [row.m, row.n, row.k].map(Number);
  return row.m && sizes.every(Number.isFinite)
    ? sizes[0] * sizes[1] * sizes[2]
    : row.m && `${row.m} x ${row.n} x ${row.k}`;
};

/** The product in the latest stage of the joint graph. */
function productLink(row, place) {
  const stage = STAGES[LAST_JOINT];
  const node = stage ? stage.products[place] : -1;
  const text = row.layer || row.node;
  if (node === undefined || node < 0) return el("span", { class: "mono" }, text);
  return el(
    "button",
    {
      type: "button",
      class: "link mono",
      title: `show ${stage.names[node]} in the graph`,
      onclick: () => {
        show("graph");
        choose(stage, node);
      },
    },
    text,
  );
}

function operandText(operand) {
  const marks = [
    operand.format,
    operand.tile_rows > 1 && `${operand.tile_rows}-row blocks`,
    operand.scale && operand.scale !== "amax" && operand.scale,
    operand.stochastic && "stochastic",
    operand.centered && "centred",
  ];
  return `${operand.kind}: ${marks.filter(Boolean).join(", ")}`;
}

function decision(row) {
  if (row.reason) return row.reason;
  return [row.a, row.b].filter(Boolean).map(operandText).join(" @ ") + (row.hadamard ? ", Hadamard" : "");
}

function decisionCell(row) {
  if (row.reason) return el("span", {}, row.reason);
  return el(
    "span",
    {},
    el("span", { class: "chip four" }, [...new Set([row.a.format, row.b.format])].join(" @ ")),
    " ",
    [row.a, row.b].map((operand) => {
      const marks = [operand.kind, operand.stochastic && "stochastic", operand.centered && "centred"]
        .filter(Boolean)
        .join(", ");
      return el("span", { class: "chip", title: operandText(operand) }, marks);
    }),
    row.hadamard ? el("span", { class: "chip" }, "Hadamard") : "",
  );
}
