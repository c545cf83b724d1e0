// Mouse, touch and keys on the picture of a graph, and the search in it.
function nodeAt(x, y) {
  const [wx, wy] = view.world(x, y);
  for (const row of [Math.floor(wy / NODE.row) - 1, Math.floor(wy / NODE.row), Math.floor(wy / NODE.row) + 1]) {
    for (const node of picture.byRow.get(row) || []) {
      if (
        Math.abs(picture.centreX[node] - wx) <= NODE.width / 2 &&
        Math.abs(picture.centreY[node] - wy) <= NODE.height / 2
      )
        return node;
    }
  }
  return -1;
}

function pointer(canvas, tip) {
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    from = { x: event.offsetX, y: event.offsetY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) {
      hover(event.offsetX, event.offsetY);
      return;
    }
    const [dx, dy] = [event.offsetX - from.x, event.offsetY - from.y];
    if (!from.moved && Math.hypot(dx, dy) < 4) return;
    canvas.classList.add("moving");
    tip.hidden = true;
    from = { x: event.offsetX, y: event.offsetY, moved: true };
    view.move(dx, dy);
  });
  canvas.addEventListener("pointerup", (event) => {
    canvas.classList.remove("moving");
    if (from && !from.moved) choose(picture.stage, nodeAt(event.offsetX, event.offsetY), false);
    from = null;
  });
  canvas.addEventListener("pointerleave", () => {
    tip.hidden = true;
    picture.over = -1;
    view.changed();
  });
  function hover(x, y) {
    const node = nodeAt(x, y);
    canvas.classList.toggle("over", node >= 0);
    tip.hidden = node < 0;
    if (node !== picture.over) {
      picture.over = node;
      view.changed();
    }
    if (node < 0) return;
    const stage = picture.stage;
    tip.textContent = [stage.names[node], stage.type(node), stage.layer(node)].filter(Boolean).join("  ·  ");
    tip.style.left = `${Math.min(x + 14, view.width - 260)}px`;
    tip.style.top = `${y + 18}px`;
  }
}

function mapPointer(map) {
  const go = (event) => {
    if (event.buttons !== 1) return;
    const [, y] = view.world(0, view.height / 2);
    view.move(0, (y - (event.offsetY - 6) / picture.map.scale) * view.scale);
  };
  map.addEventListener("pointerdown", go);
  map.addEventListener("pointermove", go);
}

function keys(event) {
  const step = 60;
  const known = {
    ArrowLeft: () => view.move(step, 0),
    ArrowRight: () => view.move(-step, 0),
    ArrowUp: () => view.move(0, step),
    ArrowDown: () => view.move(0, -step),
    "+": () => view.zoom(1.3),
    "=": () => view.zoom(1.3),
    "-": () => view.zoom(1 / 1.3),
    0: showAll,
    "]": () => neighbour(1),
    "[": () => neighbour(-1),
    Escape: () => choose(picture.stage, -1),
  }[event.key];
  if (!known || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  known();
}

function neighbour(step) {
  const count = picture.stage.names.length;
  choose(picture.stage, (Math.max(chosen.node, step > 0 ? -1 : 0) + step + count) % count);
}

function find(text) {
  const wanted = text.trim().toLowerCase();
  const stage = picture.stage;
  picture.match = -1;
  picture.matches =
    !wanted || !stage
      ? []
      : stage.names
          .map((_, node) => node)
          .filter((node) =>
            [stage.names[node], stage.target(node), stage.layer(node), stage.type(node)].some((part) =>
              part.toLowerCase().includes(wanted),
            ),
          );
  picture.count.textContent = !wanted
    ? ""
    : picture.matches.length
      ? plural(picture.matches.length, "match", "matches")
      : "no match";
  picture.mapImage = null;
  view?.changed();
}

function nextMatch(step) {
  const { matches } = picture;
  if (!matches.length) return;
  picture.match = (picture.match + step + matches.length) % matches.length;
  if (picture.match < 0) picture.match = matches.length - 1;
  picture.count.textContent = `${picture.match + 1} of ${matches.length}`;
  choose(picture.stage, matches[picture.match]);
}
