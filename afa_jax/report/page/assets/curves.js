// Curves to choose from, with a crosshair that the pointer and the arrow keys move.

function startCurves() {
  const { tasks, metrics, splits } = data.curves;
  const controls = { task: byId("curves-task"), metric: byId("curves-metric"), split: byId("curves-split"), mode: byId("curves-mode"), log: byId("curves-log") };
  const plot = byId("curves-plot"), legend = byId("curves-legend");
  const AT_FIRST = 12; // more lines than these are not drawn until they are chosen
  let lines = [], drawn = null, step = null;

  const task = () => tasks[controls.task.selectedIndex];
  const metric = () => Object.keys(metrics)[controls.metric.selectedIndex];
  const split = () => Object.keys(splits)[controls.split.selectedIndex];
  const chosen = () => lines.filter((line) => line.box.checked);
  const name = (line) => (line.name ? `${task().labels[line.label]}, ${line.name}` : task().labels[line.label]);

  function words(line, i) {
    if (i < 0) return "–";
    const digits = ["top1", "tar"].includes(metric()) ? 1 : 3;
    return line.y[i].toFixed(digits) + (line.d ? ` ± ${line.d[i].toFixed(digits)}` : "");
  }

  function read() {
    const { steps } = drawn;
    const at = step === null ? steps.length - 1 : steps.indexOf(step);
    const shown = step === null ? steps[at] : step;
    byId("curves-step").textContent = steps.length ? `Step ${shown.toLocaleString("en")}${step === null ? ", the last" : ""}` : "";
    const values = [];
    for (const line of lines) {
      const value = line.box.checked && steps.length ? words(line, nearest(line, shown)) : "";
      line.output.textContent = value;
      if (line.box.checked && values.length < AT_FIRST) values.push(`${name(line)} ${value}`);
    }
    plot.setAttribute("aria-valuemax", Math.max(0, steps.length - 1));
    plot.setAttribute("aria-valuenow", Math.max(0, at));
    plot.setAttribute("aria-valuetext", steps.length ? `Step ${shown}: ${values.join("; ")}` : "nothing to draw");
    drawn.mark(step);
  }

  function redraw() {
    const boundaries = unique(chosen().flatMap((line) => task().boundaries[line.label]));
    const yTitle = metrics[metric()];
    drawn = chart(plot, { lines: chosen(), boundaries, log: controls.log.checked, xTitle: "step", yTitle });
    if (!drawn.steps.includes(step)) step = null;
    const ends = chosen().slice(0, AT_FIRST).map((line) => `${name(line)} ${words(line, line.y.length - 1)}`);
    const kind = controls.mode.value === "means" ? "mean ± standard deviation over seeds" : "single runs";
    plot.setAttribute(
      "aria-label",
      `Line chart of ${splits[split()]} ${yTitle} against the step on ${task().name}, ${kind}. At their ends: ${ends.join("; ") || "none"}. The arrow keys move the crosshair.`,
    );
    read();
  }

  function choices() {
    const before = new Map(lines.map((line) => [name(line), line.box.checked]));
    const found = task()[controls.mode.value][split()][metric()];
    const seeds = new Map();
    lines = found.map((line, i) => {
      const seed = seeds.get(line.label) || 0;
      seeds.set(line.label, seed + 1);
      const single = controls.mode.value === "runs";
      const drawnAs = single ? `c${line.label % 7} d${seed % 4}` : look(line.label);
      const box = make("input", { type: "checkbox" });
      const made = { ...line, look: drawnAs, thin: single, box, output: make("output") };
      box.checked = before.get(name(made)) ?? i < AT_FIRST;
      return made;
    });
    const swatch = (line) =>
      draw("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, draw("line", { class: `curve ${line.look}`, x1: 0, x2: 26, y1: 5, y2: 5 }));
    const rows = lines.map((line) => {
      const text = make("span", { class: "name" }, name(line));
      if (line.n > 1) text.append(make("small", {}, ` ${line.n} seeds`));
      return make("label", {}, line.box, swatch(line), text, line.output);
    });
    legend.replaceChildren(legend.querySelector("legend"), ...rows);
    if (!lines.length) legend.append(make("p", { class: "note" }, `No ${metrics[metric()]} was recorded here.`));
    redraw();
  }

  function move(target) {
    const { steps } = drawn;
    if (!steps.length) return;
    let best = 0;
    steps.forEach((at, i) => {
      if (Math.abs(at - target) < Math.abs(steps[best] - target)) best = i;
    });
    step = steps[best];
    read();
  }

  function key(event) {
    const { steps } = drawn;
    const last = steps.length - 1;
    const at = step === null ? last : steps.indexOf(step);
    const tenth = Math.max(1, Math.round(last / 10));
    const moves = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last, PageDown: at - tenth, PageUp: at + tenth };
    if (event.key === "Escape") {
      step = null;
      read();
    } else if (event.key in moves && last >= 0) {
      event.preventDefault();
      step = steps[Math.min(last, Math.max(0, moves[event.key]))];
      read();
    }
  }

  function tick(on) {
    for (const line of lines) line.box.checked = on;
    redraw();
  }

  choose(controls.task, tasks.map((one) => one.name));
  choose(controls.metric, Object.values(metrics));
  // The test split, unless it has no such curve: identities that are held out have no losses.
  const last = Object.keys(splits).findLastIndex((name) => tasks[0].means[name][metric()].length);
  choose(controls.split, Object.values(splits), Math.max(0, last));
  byId("curves-view").hidden = false;
  choices();
  for (const control of [controls.task, controls.metric, controls.split, controls.mode]) control.addEventListener("change", choices);
  controls.log.addEventListener("change", redraw);
  legend.addEventListener("change", redraw);
  byId("curves-all").addEventListener("click", () => tick(true));
  byId("curves-none").addEventListener("click", () => tick(false));
  const follow = (event) => move(drawn.toStep(event.clientX - plot.getBoundingClientRect().left));
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("keydown", key);
  new ResizeObserver(redraw).observe(plot);
}
