// The tabs, and everything begun.
const PARTS = {
  summary: "Summary",
  products: "Products",
  graph: "Graph",
  code: "Before and after",
  numerics: "Numerics",
};
const shownPart = () => Object.keys(PARTS).find((part) => !byId(part).hidden);

function show(part) {
  for (const name of Object.keys(PARTS)) {
    byId(name).hidden = name !== part;
    const tab = byId(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === part));
    tab.tabIndex = name === part ? 0 : -1;
  }
  byId("panel").hidden = chosen.node < 0 || !["graph", "code"].includes(part);
  if (location.hash !== `#${part}`) history.replaceState(null, "", `#${part}`);
}

function drawTabs() {
  const names = Object.keys(PARTS);
  byId("tabs").append(
    ...names.map((name, place) =>
      el(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-controls": name,
          onclick: () => show(name),
          onkeydown: (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!step) return;
            const next = names[(place + step + names.length) % names.length];
            show(next);
            byId(`tab-${next}`).focus();
          },
        },
        PARTS[name],
      ),
    ),
  );
  names.forEach((name) => byId(name).setAttribute("aria-labelledby", `tab-${name}`));
}

drawTabs();
drawSummary();
drawProducts();
drawGraph();
drawPanel();
drawCode();
drawNumerics();
show(PARTS[location.hash.slice(1)] ? location.hash.slice(1) : "summary");
addEventListener("hashchange", () => PARTS[location.hash.slice(1)] && show(location.hash.slice(1)));
addEventListener("keydown", (event) => {
  if (event.key !== "/" || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  const field = { products: "product-search", graph: "search" }[shownPart()];
  if (field) {
    event.preventDefault();
    byId(field).focus();
  }
});
/** For tests: where on the canvas a node of the shown stage lies, in pixels from its corner. */
window.spectralReport = {
  place: (name) => {
    const node = picture.stage.index.get(name);
    return [picture.centreX[node] * view.scale + view.x, picture.centreY[node] * view.scale + view.y];
  },
};
