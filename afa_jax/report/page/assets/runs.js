// The table of all runs: sorted by its headers, filtered by words and choosers, with the command of each run.

function startRuns() {
  const table = byId("runs-table");
  const bodies = [...table.tBodies];
  const cells = (body) => body.rows[0].cells;
  const words = new Map(bodies.map((body) => [body, body.textContent.toLowerCase()]));

  function sort(header) {
    const descending = header.getAttribute("aria-sort") === "ascending";
    const place = header.cellIndex;
    const numeric = header.dataset.kind === "number";
    for (const other of table.tHead.rows[0].cells) if (other.ariaSort) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (body) => cells(body)[place].dataset.value;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what is not known stays at the end
      const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return descending ? -order : order;
    };
    table.append(...bodies.sort((a, b) => compare(value(a), value(b))));
  }

  function filter() {
    const wanted = byId("runs-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...document.querySelectorAll("[data-filter]")];
    let shown = 0;
    for (const body of bodies) {
      const fits =
        wanted.every((word) => words.get(body).includes(word)) &&
        chosen.every((select) => !select.value || body.dataset[select.dataset.filter] === select.value);
      body.hidden = !fits;
      shown += fits;
    }
    byId("runs-count").textContent = `${shown} of ${bodies.length} runs`;
  }

  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // a page from a file may not write there: the text is marked instead
      button.textContent = document.execCommand("copy") ? "Copied" : "Marked: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  for (const detail of table.querySelectorAll(".detail")) detail.hidden = true;
  byId("runs-filters").hidden = false;
  byId("runs-filters").addEventListener("input", filter);
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.classList.contains("copy")) copy(button);
    else if (button.classList.contains("more")) {
      const detail = byId(button.getAttribute("aria-controls"));
      detail.hidden = !detail.hidden;
      button.setAttribute("aria-expanded", String(!detail.hidden));
    } else sort(button.closest("th"));
  });
}
