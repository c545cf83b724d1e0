// A table that sorts by any column and shows what a filter lets through.

/** columns: [{name, value(row), cell(row)?, right?, title?}]; value is what is sorted by, and shown without a cell. */
class Table {
  constructor(columns, rows, { onRow, empty = "nothing here" } = {}) {
    Object.assign(this, {
      columns,
      rows,
      onRow,
      empty,
      column: -1,
      down: false,
      passes: () => true,
      marked: () => false,
    });
    this.heads = columns.map((column, place) =>
      el(
        "th",
        { scope: "col", class: column.right ? "right" : undefined },
        el("button", { type: "button", title: column.title, onclick: () => this.sort(place) }, column.name),
      ),
    );
    this.body = el("tbody");
    this.element = el("table", {}, el("thead", {}, el("tr", {}, this.heads)), this.body);
    this.draw();
  }

  sort(place) {
    const { right, up } = this.columns[place];
    this.down = this.column === place ? !this.down : Boolean(right && !up); // the largest number first
    this.column = place;
    this.heads.forEach((head, index) => {
      if (index === place) head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    this.draw();
  }

  filter(passes) {
    this.passes = passes;
    return this.draw();
  }

  /** Returns how many rows are shown. */
  draw() {
    let shown = this.rows.filter(this.passes);
    if (this.column >= 0) {
      const value = this.columns[this.column].value;
      shown = shown
        .map((row) => [value(row), row])
        .sort((a, b) => (this.down ? -1 : 1) * compare(a[0], b[0]))
        .map(([, row]) => row);
    }
    this.body.replaceChildren(
      ...shown.map((row) => {
        const cells = this.columns.map((column) =>
          el(
            "td",
            { class: column.right ? "right" : column.class },
            column.cell ? column.cell(row) : String(column.value(row) ?? ""),
          ),
        );
        return el("tr", { class: this.marked(row) ? "chosen" : undefined, ...(this.onRow && this.pick(row)) }, cells);
      }),
    );
    if (!shown.length) {
      this.body.append(el("tr", {}, el("td", { colspan: this.columns.length, class: "empty" }, this.empty)));
    }
    return shown.length;
  }

  /** What makes a row one to choose, by mouse and by key. */
  pick(row) {
    const onkeydown = (event) => {
      if (event.key !== "Enter") return;
      const place = [...this.body.children].indexOf(event.currentTarget);
      this.onRow(row);
      this.body.children[place].focus(); // rows are drawn afresh
    };
    return { tabindex: "0", onclick: () => this.onRow(row), onkeydown };
  }
}

/** Numbers by size, texts by letters and the numbers in them; what is missing comes first. */
function compare(a, b) {
  const [none, other] = [a === null || a === undefined || a === "", b === null || b === undefined || b === ""];
  if (none || other) return Number(other) - Number(none);
  if (isNumber(a) && isNumber(b)) return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
