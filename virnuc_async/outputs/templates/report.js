
"use strict";
(() => {
  const PAGE = 25;
  const data = JSON.parse(document.getElementById("rows").textContent);
  const body = document.getElementById("contig-rows");
  const status = document.getElementById("contig-status");
  const controls = document.getElementById("contig-controls");
  const headers = [...document.querySelectorAll("#contig-table thead th")];
  const column = Object.fromEntries(data.columns.map((one, number) => [one.key, number]));
  const whole = new Intl.NumberFormat("en");
  let shown = data.rows.map((_, number) => number);
  let sorted = {key: null, descending: false};
  let page = 0;

  function text(value, kind) {
    if (value === null) return "";
    if (kind === "integer") return whole.format(value);
    if (kind === "number") return value.toFixed(3);
    if (kind === "file") return data.files[value];
    return value;
  }

  function cell(value, kind) {
    const made = document.createElement("td");
    if (kind === "verdict") {
      made.className = "left verdict " + value;
      made.textContent = value;
    } else {
      if (kind === "id" || kind === "file") made.className = "id left";
      made.textContent = text(value, kind);
    }
    return made;
  }

  function draw() {
    const first = page * PAGE;
    const rows = shown.slice(first, first + PAGE).map((number) => {
      const row = document.createElement("tr");
      row.append(...data.rows[number].map((value, at) => cell(value, data.columns[at].kind)));
      return row;
    });
    body.replaceChildren(...rows);
    const last = first + rows.length;
    const range = rows.length ? `Rows ${whole.format(first + 1)} to ${whole.format(last)}` : "No rows";
    status.textContent = `${range} of ${whole.format(shown.length)} that match, of ${whole.format(data.rows.length)} in this report.`;
    document.getElementById("previous").disabled = page === 0;
    document.getElementById("next").disabled = last >= shown.length;
  }

  function filtered() {
    const value = (id) => document.getElementById(id)?.value ?? "";
    const words = value("filter-id").toLowerCase();
    const verdict = value("filter-verdict");
    const file = value("filter-file");
    const length = Number(value("filter-length"));
    const score = Number(value("filter-score"));
    return data.rows.map((_, number) => number).filter((number) => {
      const row = data.rows[number];
      return (!words || row[column.contig].toLowerCase().includes(words))
        && (!verdict || row[column.verdict] === verdict)
        && (!file || row[column.file] === Number(file))
        && row[column.length] >= length
        && (!score || row[column.mean_p_virus] >= score);
    });
  }

  function compared(one, other, kind) {
    if (one === null || other === null) return (one === null) - (other === null) || 0;
    const order = kind === "id" || kind === "verdict" ? (one < other ? -1 : Number(one > other)) : one - other;
    return sorted.descending ? -order : order;
  }

  function update() {
    shown = filtered();
    if (sorted.key !== null) {
      const at = column[sorted.key];
      const {kind} = data.columns[at];
      shown.sort((one, other) => compared(data.rows[one][at], data.rows[other][at], kind) || one - other);
    }
    page = 0;
    draw();
  }

  headers.forEach((header, at) => {
    const {key, kind} = data.columns[at];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      // Large numbers first: they are what is looked for.
      const first = kind === "integer" || kind === "number";
      sorted = {key, descending: sorted.key === key ? !sorted.descending : first};
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending");
      update();
    });
  });
  controls.addEventListener("input", update);
  document.getElementById("show-all").addEventListener("click", () => {
    controls.reset();
    sorted = {key: null, descending: false};
    headers.forEach((header) => header.removeAttribute("aria-sort"));
    update();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("previous").addEventListener("click", () => { page -= 1; draw(); });
  document.getElementById("next").addEventListener("click", () => { page += 1; draw(); });
  document.querySelectorAll("[data-script]").forEach((element) => { element.hidden = false; });
  document.querySelectorAll("[data-no-script]").forEach((element) => { element.hidden = true; });
  draw();
})();
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : window.matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { button.textContent = dark() ? "Light colours" : "Dark colours"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
  // On paper nothing can be opened.
  const details = [...document.querySelectorAll("details")];
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = details.filter((one) => !one.open);
    closed.forEach((one) => { one.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
})();
