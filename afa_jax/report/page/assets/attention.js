// Attention over photos: choosers for run, photo, stage and layer, and a slider for how strong it lies on the photo.

function startAttention() {
  const { runs, pictures } = data.attention;
  if (!runs.length) {
    for (const link of document.querySelectorAll('[data-for="attention"]')) link.remove();
    return;
  }
  const chooser = Object.fromEntries(["run", "photo", "stage", "tap"].map((name) => [name, byId(`attention-${name}`)]));
  const strength = byId("attention-strength"), stack = byId("attention-stack"), told = byId("attention-words");
  const shown = (select) => select.options[select.selectedIndex]?.textContent;
  const run = () => runs[chooser.run.selectedIndex];
  const photo = () => run().photos[chooser.photo.selectedIndex];
  const layer = (overlay) => `${overlay.tap}, ${overlay.kind}`; // a layer may have both kinds

  // Keeps what was chosen where the new list has it too.
  function again(select, names) {
    choose(select, names, names.indexOf(shown(select)));
  }

  function choices() {
    again(chooser.photo, run().photos.map((one, i) => [`${i + 1}`, [one.true, one.name].filter(Boolean).join(", ")].join(": ")));
    again(chooser.stage, unique(photo().overlays.map((one) => one.stage)));
    again(chooser.tap, unique(photo().overlays.filter((one) => one.stage === shown(chooser.stage)).map(layer)));
    show();
  }

  function show() {
    const now = photo();
    const overlay = now.overlays.find((one) => one.stage === shown(chooser.stage) && layer(one) === shown(chooser.tap));
    const sure = `${(100 * now.probability).toFixed(1)} %`;
    const right = now.true === now.predicted;
    const verdict = now.true === null ? "Seen as" : right ? "Rightly seen as" : "Wrongly seen as";
    const base = make("img", { src: pictures[now.picture], alt: `Photo ${now.name}${now.true === null ? "" : `, class ${now.true}`}, seen as ${now.predicted} with probability ${sure}` });
    stack.replaceChildren(base);
    told.replaceChildren(
      make("h3", {}, now.true ?? now.predicted),
      make("p", now.true === null || right ? {} : { class: "wrong" }, `${verdict} ${now.predicted}, with probability ${sure}.`),
      make("p", { class: "note" }, now.name),
    );
    if (!overlay) {
      told.append(make("p", {}, "There is no attention for this choice."));
      return;
    }
    const where = overlay.kind === "channel" ? "channels" : "positions";
    const peak = `${overlay.peak.toFixed(1)} times that of even attention over all ${where}`;
    const over = make("img", { src: pictures[overlay.picture], alt: `Overlay of the ${overlay.kind} attention of ${overlay.tap} in stage ${overlay.stage}; its largest weight is ${peak}` });
    over.style.opacity = strength.value / 100;
    stack.append(over);
    told.append(make("p", {}, `${overlay.kind === "channel" ? "Channel" : "Spatial"} attention of ${overlay.tap} in stage ${overlay.stage}. Its largest weight is ${peak}.`));
    if (overlay.top.length) told.append(weights(overlay.top));
  }

  function weights(top) {
    const most = Math.max(...top.map(([, weight]) => weight));
    const rows = top.map(([channel, weight]) =>
      make("tr", {}, make("th", { scope: "row" }, `channel ${channel}`), make("td", { class: "number" }, number(weight)),
        make("td", {}, make("meter", { min: 0, max: most, value: weight, "aria-label": `weight of channel ${channel}` }))),
    );
    return make("table", { class: "weights" }, make("caption", { class: "hidden-text" }, "The channels with the largest weights"), make("tbody", {}, ...rows));
  }

  choose(chooser.run, runs.map((one) => one.name));
  byId("attention").hidden = false;
  choices();
  for (const select of Object.values(chooser)) select.addEventListener("change", choices);
  strength.addEventListener("input", () => {
    const over = stack.querySelectorAll("img")[1];
    if (over) over.style.opacity = strength.value / 100;
  });
}
