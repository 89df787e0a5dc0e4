"use strict";
(() => {
  const section = document.getElementById("cells");
  if (!section) return;
  const table = section.querySelector("table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const controls = section.querySelector(".controls");
  const search = controls.querySelector("input");
  const shown = section.querySelector(".shown");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const selects = new Map();

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      const chosen = [...selects].every(([column, select]) => !select.value || row.cells[column].textContent === select.value);
      row.hidden = !(chosen && words.every((word) => texts[i].includes(word)));
      count += !row.hidden;
    });
    shown.textContent = `${count} of ${rows.length} runs`;
  };

  const byValue = (column) => (a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    const [p, q] = [x.dataset.v, y.dataset.v];
    if (p !== undefined && q !== undefined) return p - q;
    if (x.classList.contains("n") || y.classList.contains("n")) return (p === undefined) - (q === undefined);
    return x.textContent.localeCompare(y.textContent, "en", { numeric: true });
  };

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = byValue(column);
      const missing = (row) => row.cells[column].classList.contains("n") && row.cells[column].dataset.v === undefined;
      rows.map((row) => [row, missing(row)])
        .sort(([a, none], [b, nothing]) => none - nothing || (down ? -1 : 1) * compare(a, b))
        .forEach(([row]) => body.append(row));
    });
    if (!("choice" in head.dataset)) return;
    const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
    values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    if (values.length < 2 || values.length > 60) return;
    const select = document.createElement("select");
    const name = head.textContent;
    select.setAttribute("aria-label", name);
    select.append(new Option(`${name}: all`, ""), ...values.map((value) => new Option(`${name}: ${value}`, value)));
    select.addEventListener("change", show);
    controls.append(select);
    selects.set(column, select);
  });

  search.addEventListener("input", show);
  controls.hidden = false;
  show();
})();
