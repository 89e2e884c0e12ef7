"use strict";
(() => {
  const root = document.documentElement;
  const remember = (value) => { try { localStorage.setItem("waterfill-theme", value); } catch { /* a page on disk may not */ } };
  const remembered = () => { try { return localStorage.getItem("waterfill-theme"); } catch { return null; } };

  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = document.getElementById("theme");
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colors`); };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; remember(root.dataset.theme); name(); });

  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return 1;
    if (typeof b === "number") return -1;
    return a.localeCompare(b, "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.classList.contains("n");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * compare(key(a, column), key(b, column)));
      table.tBodies[0].append(...rows);
    }));
  }

  const filter = document.getElementById("filter");
  const table = document.querySelector("table[data-filter]");
  if (filter && table) {
    const rows = [...table.tBodies[0].rows];
    const show = () => {
      const wanted = filter.value.trim().toLowerCase();
      let count = 0;
      for (const row of rows) {
        row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
        count += row.hidden ? 0 : 1;
      }
      document.getElementById("count").textContent = `${count} of ${rows.length} rows`;
    };
    filter.closest("p").hidden = false;
    filter.addEventListener("input", show);
    addEventListener("hashchange", () => { if (/^#t\d+$/.test(location.hash)) { filter.value = ""; show(); document.querySelector(location.hash)?.scrollIntoView({ block: "center" }); } });
    show();
  }

  const select = document.getElementById("weight");
  if (select) {
    const figures = [...document.querySelectorAll("figure.weight")];
    const show = () => figures.forEach((figure) => { figure.hidden = figure.id !== select.value; });
    select.closest("p").hidden = false;
    select.addEventListener("change", show);
    show();
  }
})();
