// Tables of class "sortable": a click on a heading sorts by it, a second click the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value;
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort !== "descending";
    const order = (a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const found = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -found : found;
    };
    heads.forEach(each => { each.ariaSort = "none"; });
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort(order));
  }));
}
