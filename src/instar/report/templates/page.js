"use strict";
// The page reads well without this: it adds sorting, filtering and the hiding of column groups.
(() => {
  const root = document.documentElement;
  const errors = [];
  window.addEventListener("error", (event) => {
    errors.push(event.message);
    root.dataset.errors = errors.join("; ");
  });

  const rank = (row, column, kind) => {
    const cell = row.cells[column];
    if (kind === "text") return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };

  const compare = (a, b, direction) => {
    if (a === null || b === null) return (a === null) - (b === null); // missing figures stay at the end
    return (a < b ? -1 : a > b ? 1 : 0) * direction;
  };

  const sort = (table, header) => {
    const column = header.cellIndex;
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const rows = Array.from(table.tBodies[0].rows, (row) => [rank(row, column, header.dataset.sort), row]);
    rows.sort((a, b) => compare(a[0], b[0], ascending ? 1 : -1));
    table.tBodies[0].append(...rows.map((pair) => pair[1]));
  };

  const sortable = (table) => {
    for (const header of table.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, header));
    }
  };

  const filter = (table, text) => {
    const wanted = text.trim().toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      const name = row.cells[0].textContent.toLowerCase();
      row.classList.toggle("gone", !wanted.every((word) => name.includes(word)));
    }
  };

  for (const tools of document.querySelectorAll(".tools")) {
    const table = tools.parentNode.querySelector("table.sortable");
    tools.hidden = false;
    sortable(table);
    tools.querySelector("input[type=search]").addEventListener("input", (event) => filter(table, event.target.value));
    for (const box of tools.querySelectorAll("[data-group]")) {
      box.addEventListener("change", () => {
        for (const cell of table.querySelectorAll(`[data-kind="${box.dataset.group}"]`)) {
          cell.classList.toggle("off", !box.checked);
        }
      });
    }
  }

  // For tests and for the curious: page.html#selftest sorts, filters and measures, and writes what it found on <html>.
  if (location.hash === "#selftest") {
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const table of document.querySelectorAll("table.sortable")) {
      const last = table.querySelector("tr:last-child th[data-sort]:last-child button");
      last.click();
      root.dataset.sorted = Array.from(table.tBodies[0].rows, (row) => row.cells[row.cells.length - 1].dataset.value).join(" ");
      filter(table, "\u0000none");
      root.dataset.filtered = table.querySelectorAll("tr.gone").length;
      filter(table, "");
    }
    root.dataset.width = root.scrollWidth;
    root.dataset.window = root.clientWidth;
  }
  root.dataset.ready = "yes";
})();
